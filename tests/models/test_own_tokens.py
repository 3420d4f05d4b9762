"""Scheduled sampling against the softmax of each sample by itself."""

import pytest
import torch

from qwen3asr_train.data import features
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.models.own_tokens import with_own_tokens

ROWS = [[3, 0], [1, 2]]


@pytest.fixture(scope="module")
def examples(processor, waveforms):
    """Three heard and one written; of the first three every second token of the text is drawn."""
    prompts = PromptBuilder(processor.tokenizer)
    numbers = torch.rand(3, 100, generator=torch.Generator().manual_seed(5)).tolist()
    found = []
    for waveform, context, text, drawn in zip(
            waveforms, ["", "light, now", ""],
            ["turn on the light", "关上客厅的门", "please"], numbers, strict=False):
        mel = features.log_mel(waveform)
        target = prompts.target(text, "English")
        first = target.index(prompts.marker) + 1
        own = [drawn[i] if first <= i < len(target) - 1 and i % 2 else -1.0
               for i in range(len(target))]
        found.append(Example(mel, prompts.prompt(features.audio_tokens(len(mel)), context), target,
                             own=own))
    return [*found, Example(torch.zeros(0, 128), prompts.written_prompt("the light"),
                            prompts.target("light", "English"))]


def embeddings_of(model, batch):
    return model.embed(batch["input_ids"], model.encode_audio(batch))


@pytest.mark.parametrize("rows", [None, ROWS])
def test_what_stands_there_is_drawn_from_the_softmax_behind_right_tokens(model, processor, examples,
                                                                        rows):
    pad = processor.tokenizer.pad_token_id
    batch = collate(examples, pad, rows)
    with torch.no_grad():
        found = with_own_tokens(model, batch, embeddings_of(model, batch))
        expected, drawn = [], 0
        for line in rows or [[i] for i in range(len(examples))]:
            ids = []
            for example in (examples[i] for i in line):
                alone = collate([example], pad)
                probabilities = model.lm_head(model.model.language_model(
                    inputs_embeds=embeddings_of(model, alone)).last_hidden_state[0]
                    ).double().softmax(-1)
                target = list(example.target)
                for place, number in enumerate(example.own or []):
                    if number >= 0:
                        below = probabilities[len(example.prompt) + place - 1].cumsum(-1)
                        token = int((below <= number).sum())
                        target[place] = token if token < processor.tokenizer.vocab_size else \
                            target[place]
                        drawn += 1
                ids += example.prompt + target
            expected.append(ids)
    assert drawn > 4
    assert [row[:len(ids)] for row, ids in zip(found.tolist(), expected, strict=True)] == expected
    assert not torch.equal(found, batch["input_ids"])


def test_control_tokens_are_not_taken(model, processor, examples):
    batch = collate(examples, processor.tokenizer.pad_token_id)
    batch["own_tokens"] = torch.where(batch["own_tokens"] < 0, -1.0, 1 - 2**-24)  # the last token
    with torch.no_grad():
        found = with_own_tokens(model, batch, embeddings_of(model, batch))
    assert torch.equal(found, batch["input_ids"])


def test_the_targets_stay_and_gradients_flow(model, processor, examples):
    batch = collate(examples, processor.tokenizer.pad_token_id, ROWS)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    model.zero_grad()
    loss = model.target_loss(batch)[0]
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(batch[name], tensor) for name, tensor in before.items())
    plain = collate([example._replace(own=None) for example in examples],
                    processor.tokenizer.pad_token_id, ROWS)
    assert "own_tokens" not in plain
    assert loss.item() != pytest.approx(model.target_loss(plain)[0].item(), rel=1e-3)
    with torch.no_grad():
        written = with_own_tokens(model, batch, embeddings_of(model, batch))
    torch.testing.assert_close(loss, model.target_loss(plain | {"input_ids": written})[0])
