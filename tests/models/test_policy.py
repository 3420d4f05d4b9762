"""Shared prompts against rows of their own, and sampling against the plain way."""

from copy import deepcopy
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

from qwen3asr_train.data import features
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.decoding.generate import generate
from qwen3asr_train.models.policy import Sampling, answer_log_probs, pack, sample_answers
from qwen3asr_train.objectives.gspo import AVERAGES, Objective, policy_loss
from qwen3asr_train.stages.rollout import Roller


@pytest.fixture(scope="module")
def examples(processor, waveforms):
    prompts = PromptBuilder(processor.tokenizer)
    mels = [features.log_mel(waveform) for waveform in waveforms[:3]]
    return [Example(mel, prompts.prompt(features.audio_tokens(len(mel)), context), [])
            for mel, context in zip(mels, ["", "light, now", ""], strict=True)]


@pytest.fixture(scope="module")
def batch(examples, processor):
    return collate(examples, processor.tokenizer.pad_token_id, with_prompts=True)


@pytest.fixture(scope="module")
def answers(processor):
    prompts = PromptBuilder(processor.tokenizer)
    texts = [["turn on", "the light", ""], ["关上客厅的门", "now"], ["please", "on", "on", "now"]]
    rows = [[prompts.target(text, "English") for text in row] for row in texts]
    rows[1][0].insert(3, processor.audio_token_id)  # sampled, it stands for no audio
    return rows


def log_probs_of(model, prompt, answer, example, temperature):
    """One answer to one utterance, in a row of its own."""
    alone = collate([example], 0)
    alone["input_features"] = alone["input_features"].to(model.dtype)
    embeddings = torch.cat([model.embed(torch.tensor([prompt]), model.encode_audio(alone)),
                            model.model.language_model.embed_tokens(torch.tensor([answer]))], 1)
    hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    logits = (hidden[0, len(prompt) - 1:-1] @ model.lm_head.weight.T) / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_packed_rows_equal_rows_of_their_own(model, examples, batch, answers, temperature):
    model = deepcopy(model).double()  # some gradients, as of a bias of keys, are all rounding
    packed = pack([e.prompt for e in examples], answers, 0) | {
        "input_features": batch["input_features"].double(), "chunk_lengths": batch["chunk_lengths"],
        "clip_chunks": batch["clip_chunks"]}
    weights = torch.randn(len(packed["targets"]), generator=torch.Generator().manual_seed(0))
    results = []
    for way in ("packed", "apart"):
        model.zero_grad()
        if way == "packed":
            found, entropy = answer_log_probs(model, packed, temperature)
            assert (entropy > 0).all() and entropy.shape == found.shape
        else:
            found = torch.cat([log_probs_of(model, e.prompt, answer, e, temperature)
                               for e, row in zip(examples, answers, strict=True) for answer in row])
        (found * weights).sum().backward()
        results.append((found.detach(), {name: p.grad.clone() for name, p in
                                         model.named_parameters() if p.grad is not None}))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        assert (grad - their_grads[name]).norm() <= 1e-5 * their_grads[name].norm() + 1e-9, name


def split_by(values: list, rows: list[list]) -> list[list]:
    ends = list(accumulate(map(len, rows)))
    return [values[end - len(row):end] for end, row in zip(ends, rows, strict=True)]


@pytest.mark.parametrize("average", AVERAGES)
def test_references_behind_the_answers_have_the_cross_entropy_of_sft(model, processor, examples,
                                                                     answers, average):
    model = deepcopy(model).double()
    targets = [row[-1] for row in reversed(answers)]
    examples = [Example(e.features.double(), e.prompt, target)
                for e, target in zip(examples, targets, strict=True)]

    class OfThese(Roller):
        def __init__(self, weight):
            self.model, self.tokenizer, self.frozen_audio = model, processor.tokenizer, False
            self.objective = Objective(average=average, cross_entropy=weight)
            self.sampling = Sampling(max_new_tokens=40)

    groups = [SimpleNamespace(example=e, advantages=[0.5] * len(row), old=[],
                              answers=[(tokens, [-1.0] * len(tokens)) for tokens in row])
              for e, row in zip(examples, answers, strict=True)]
    alone, mixed = (OfThese(weight)._training_batch({}, groups) for weight in (0.0, 0.3))
    weights = mixed["reference_weights"]
    assert not alone["reference_weights"].any()
    assert torch.equal(alone["targets"], mixed["targets"][weights == 0])
    assert mixed["targets"][weights > 0].tolist() == [token for row in targets for token in row]
    found, _ = answer_log_probs(model, mixed)
    torch.testing.assert_close(found[weights == 0], answer_log_probs(model, alone)[0],
                               rtol=1e-9, atol=1e-9)
    ours = -(found * weights.double()).sum()
    # as much as the answers' own losses of 1 a token weigh, summed
    weigh = [-policy_loss(Objective(average=average), *torch.zeros(2, 1, len(tokens)),
                          torch.ones(1), torch.ones(1, len(tokens)), max_tokens=40).total
             for row in answers for tokens in row]
    of_rows = [torch.stack(part).sum() for part in split_by(weigh, answers)]
    theirs = sum(weight / len(e.target) *
                 model.target_loss(collate([e], processor.tokenizer.pad_token_id))[0]
                 for e, weight in zip(examples, of_rows, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(loss, parameters, allow_unused=True)
                      for loss in (ours, theirs)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= 1e-5 * b.norm() + 1e-9


def test_a_blank_runs_the_parts_of_the_model_that_groups_run(model, processor, examples):
    """Under ZeRO-3 ranks with and without groups gather weights in step: with a frozen encoder
    neither runs it."""
    class Frozen(Roller):
        def __init__(self):
            self.model, self.tokenizer, self.frozen_audio = model, processor.tokenizer, True
            self.objective, self.sampling = Objective(), Sampling(max_new_tokens=40)

    example = examples[0]
    audio = torch.zeros(example.prompt.count(model.config.audio_token_id),
                        model.config.text_config.hidden_size)
    group = SimpleNamespace(example=example, advantages=[0.5], answers=[([7, 8], [-1.0, -2.0])],
                            old=[[-1.5, -2.5]], audio=audio)
    some = Frozen()._training_batch({}, [group])
    none = Frozen()._training_batch({"meta": {"examples": [example]}}, [])
    assert some.keys() == none.keys() and "input_features" not in none
    assert torch.equal(some["audio"], none["audio"])
    assert answer_log_probs(model, none, audio=none["audio"])[0].shape == (1,)
    assert some["old_log_probs"].tolist() == [[-1.5, -2.5]]
    assert some["sampled_log_probs"].tolist() == [[-1.0, -2.0]]


def test_sampling_inverts_the_distribution_token_by_token(model, examples, batch):
    uniforms = torch.rand(3, 2, 12, generator=torch.Generator().manual_seed(1))
    found = sample_answers(model, batch, uniforms, Sampling(2, 1.3, 12))
    ends = set(model.generation_config.eos_token_id)
    for example, rows, draws in zip(examples, found, uniforms, strict=True):
        for (tokens, log_probs), row in zip(rows, draws, strict=True):
            expected = []
            while len(expected) < 12 and not (expected and expected[-1] in ends):
                embeddings = torch.cat([
                    model.embed(torch.tensor([example.prompt]),
                                model.encode_audio(collate([example], 0))),
                    model.model.language_model.embed_tokens(torch.tensor([expected]).long())], 1)
                hidden = model.model.language_model(inputs_embeds=embeddings
                                                    ).last_hidden_state[0, -1]
                below = (model.lm_head.weight @ hidden / 1.3).double().softmax(0).cumsum(0)
                expected.append(int((below <= float(row[len(expected)])).sum()))
            assert tokens == expected
            torch.testing.assert_close(
                torch.tensor(log_probs), log_probs_of(model, example.prompt, tokens, example, 1.3),
                rtol=1e-4, atol=1e-4)


def test_neighbours_and_order_do_not_matter(model, examples, batch, processor):
    uniforms = torch.rand(3, 4, 10, generator=torch.Generator().manual_seed(2))
    together = sample_answers(model, batch, uniforms, Sampling(4, 1.0, 10))
    for i, example in enumerate(examples):
        alone = collate([example], processor.tokenizer.pad_token_id, with_prompts=True)
        (found,) = sample_answers(model, alone, uniforms[i:i + 1], Sampling(4, 1.0, 10))
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in together[i]]


def test_cold_sampling_is_greedy_decoding(model, batch):
    uniforms = torch.full((3, 2, 16), 0.5)
    found = sample_answers(model, batch, uniforms, Sampling(2, 1e-4, 16))
    ends = set(model.generation_config.eos_token_id)
    for rows, greedy in zip(found, generate(model, batch, 16), strict=True):
        for tokens, _ in rows:
            assert [t for t in tokens if t not in ends] == greedy.tokens


def test_answers_end_once_and_within_the_limit(model, batch):
    ends = set(model.generation_config.eos_token_id)
    # high temperature on a small vocabulary: ends come early in some rows, so that rows are dropped
    uniforms = torch.rand(3, 40, 200, generator=torch.Generator().manual_seed(3))
    found = [row for rows in sample_answers(model, batch, uniforms, Sampling(40, 50.0, 200))
             for row in rows]
    assert all(len(tokens) == len(logs) <= 200 for tokens, logs in found)
    assert all(not ends & set(tokens[:-1]) for tokens, _ in found)
    lengths = sorted(len(tokens) for tokens, _ in found)
    assert lengths[0] < 100 and all(tokens[-1] in ends for tokens, _ in found if len(tokens) < 200)
