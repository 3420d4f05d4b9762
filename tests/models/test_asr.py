"""Our recogniser against transformers' model on the checkpoint folder that it writes."""

import json
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    Qwen3ASREncoder,
    Qwen3ASREncoderConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)

from qwen3asr_train.data import features
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.plan import longest_first
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.decoding.generate import generate
from qwen3asr_train.decoding.transcriber import Transcriber, join_transcripts
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr
from qwen3asr_train.models.aut import load_encoder
from qwen3asr_train.models.encoder import batch_windows
from qwen3asr_train.models.tokenizer import MARKERS, SPECIAL_TOKENS
from tests.models.conftest import SIZES


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    asr.save(model, processor, path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return Qwen3ASRForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def examples(processor, waveforms):
    prompts = PromptBuilder(processor.tokenizer)
    mels = [features.log_mel(waveform) for waveform in waveforms]
    texts = ["turn on", "关上客厅的门", "light", "please turn the light on now", "the"]
    return [Example(mel, prompts.prompt(features.audio_tokens(len(mel)), context),
                    prompts.target(text, "English"))
            for mel, text, context in zip(mels, texts, ["", "light, now", "", "", ""], strict=True)]


@pytest.fixture(scope="module")
def batch(examples, processor):
    return collate(examples, processor.tokenizer.pad_token_id, with_prompts=True)


def test_the_folder_names_transformers_class(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ASRForConditionalGeneration"]


def test_an_encoder_of_another_depth_takes_the_place_of_its_own(model, batch, processor, tmp_path):
    sizes = SIZES["audio_config"]
    config = Qwen3ASREncoderConfig(**sizes, output_dim=999)
    config.encoder_layers = sizes["encoder_layers"] + 1
    encoder, changed = batch_windows(Qwen3ASREncoder(config)).eval(), deepcopy(model)
    asr.replace_encoder(changed, encoder)
    asr.save(changed, processor, tmp_path)
    reloaded = asr.load(str(tmp_path))[0].eval()
    assert reloaded.config.audio_config.output_dim == model.config.audio_config.output_dim
    with torch.no_grad():
        losses = [each.target_loss(batch)[0] for each in (model, changed, reloaded)]
    assert losses[1] == losses[2] != losses[0]
    with pytest.raises(UserError, match=f"d_model is 8, .* {sizes['d_model']}"):
        asr.replace_encoder(changed, batch_windows(Qwen3ASREncoder(Qwen3ASREncoderConfig(
            **sizes | {"d_model": 8}))))


def test_text_among_speech_changes_nothing_of_it(model, examples, processor):
    prompts = PromptBuilder(processor.tokenizer)
    written = Example(torch.zeros(0, 128), prompts.written_prompt("the light", "turn"),
                      prompts.target("light", "English"))
    pad = processor.tokenizer.pad_token_id
    with torch.no_grad():
        speech, text, both = (model.target_loss(collate(rows, pad), with_ctc=True) for rows in (
            examples[:3], [written], [examples[0], written, *examples[1:3]]))
    assert text[0] > 0 and text[1] == 0
    torch.testing.assert_close(both[0], speech[0] + text[0])
    torch.testing.assert_close(both[1], speech[1])


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4, 5]], [[4, 1], [5, 0], [3, 2]]])
def test_samples_in_one_row_give_the_losses_and_gradients_of_rows_of_their_own(
        model, examples, processor, rows):
    prompts = PromptBuilder(processor.tokenizer)
    written = Example(torch.zeros(0, 128), prompts.written_prompt("the light", "turn"),
                      prompts.target("light", "English"))
    model, found = deepcopy(model).double(), []  # sums of the convolutions' gradients cancel
    for layout in (None, rows):
        model.zero_grad()
        batch = collate([*examples, written], processor.tokenizer.pad_token_id, layout)
        batch["input_features"] = batch["input_features"].double()
        loss, ctc = model.target_loss(batch, with_ctc=True)
        (loss + ctc).backward()
        found.append((loss.detach(), ctc.detach(), [p.grad.clone() for p in model.parameters()]))
    assert batch["input_ids"].shape[0] == len(rows)
    apart, packed = found
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)
    assert apart[1] > 0


def test_text_alone_is_qwen3s(model, processor):
    """Logits of a text prompt equal those of the language model by itself."""
    prompts = PromptBuilder(processor.tokenizer)
    prompt, target = prompts.written_prompt("the light"), prompts.target("light", "English")
    batch = collate([Example(torch.zeros(0, 128), prompt, target)], 0)
    with torch.no_grad():
        hidden = model.model.language_model(torch.tensor([prompt + target])).last_hidden_state[0]
        expected = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[len(prompt) - 1:-1]), torch.tensor(target), reduction="sum")
        torch.testing.assert_close(model.target_loss(batch)[0], expected)


def test_loss_and_gradient_equal_transformers(model, theirs, examples, batch, processor, waveforms):
    model.zero_grad()
    loss, _ = model.target_loss(batch)
    loss.backward()
    theirs.zero_grad()
    expected = 0.0
    for example, waveform in zip(examples, waveforms, strict=True):
        audio = processor.feature_extractor([waveform], sampling_rate=16_000, padding=True,
                                            return_attention_mask=True)
        ids = torch.tensor([example.prompt + example.target])
        labels = ids.clone()
        labels[:, :len(example.prompt)] = -100
        output = theirs(input_ids=ids, input_features=audio["input_features"],
                        input_features_mask=audio["attention_mask"], labels=labels)
        expected = expected + output.loss * len(example.target)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    gradients = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-3,
                                   msg=lambda text, name=name: f"{name}: {text}")


def test_their_generate_gives_our_text(model, theirs, folder, batch, waveforms):
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, Qwen3ASRProcessor)
    ours = generate(model, batch, 12)
    prompts = [None, "light, now", None, None, None]
    for waveform, prompt, mine in zip(waveforms, prompts, ours, strict=True):
        inputs = processor.apply_transcription_request(audio=[waveform], prompt=prompt)
        output = theirs.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1]:]
        whole = torch.cat([inputs["input_ids"][0], output])[None]
        logits = theirs(**inputs | {"input_ids": whole, "attention_mask": whole * 0 + 1}).logits
        logs = logits[0, -len(output) - 1:-1].log_softmax(-1).gather(1, output[:, None])
        assert mine.confidence == pytest.approx(logs.mean().exp().item(), rel=1e-3)
        assert processor.tokenizer.decode(output, skip_special_tokens=True) == \
            processor.tokenizer.decode(mine.tokens, skip_special_tokens=True)


def test_prompt_is_the_processors(processor, waveforms):
    prompts = PromptBuilder(processor.tokenizer)
    for waveform in waveforms:
        tokens = features.audio_tokens(features.mel_frames(len(waveform)))
        for context in (None, "names: Ada,\n李雷"):
            expected = processor.apply_transcription_request(audio=[waveform], prompt=context)
            assert prompts.prompt(tokens, context or "") == expected["input_ids"][0].tolist()
        forced = processor.apply_transcription_request(audio=[waveform], language="zh")
        assert prompts.prompt(tokens) + prompts.prefill("Chinese") == \
            forced["input_ids"][0].tolist()


def test_tokenizer_keeps_qwens_special_tokens(processor, folder):
    reloaded = AutoProcessor.from_pretrained(folder).tokenizer
    text = "language Chinese<asr_text>关上客厅的门<|im_end|>"
    ids = reloaded(text)["input_ids"]
    assert ids == processor.tokenizer(text)["input_ids"]
    assert reloaded.decode(ids) == text
    assert reloaded.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_end|>")
    added = reloaded.convert_tokens_to_ids([*SPECIAL_TOKENS, *MARKERS])
    assert len(set(added)) == len(added) and min(added) >= 256
    # a hanzi is never merged with its neighbour
    assert len(reloaded("关上客厅的门")["input_ids"]) >= 6


def test_ctc_is_torchs_on_each_clip(model, batch, examples, processor):
    audio = model.encode_audio(batch)
    found = model.ctc_loss(audio, batch)
    expected, start = 0.0, 0
    for example in examples:
        tokens = example.prompt.count(model.config.audio_token_id)
        heard = audio[start:start + tokens].double()
        heard = heard / (heard.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        heard = (heard * model.model.language_model.norm.weight).float()
        log_probs = model.lm_head(heard).log_softmax(-1)
        start += tokens
        marker = example.target.index(processor.tokenizer.convert_tokens_to_ids("<asr_text>"))
        target = torch.tensor(example.target[marker + 1:-1])
        expected = expected + torch.nn.functional.ctc_loss(
            log_probs[:, None], target[None], [tokens], [len(target)],
            blank=model.config.pad_token_id, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_activation_checkpointing_changes_nothing(model, batch):
    model.zero_grad()
    model.target_loss(batch)[0].backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.target_loss(batch)[0].backward()
    model.eval()
    model.gradient_checkpointing_disable()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name], rtol=1e-5, atol=1e-5)


def test_transcriber_covers_long_audio_and_forced_language(model, processor, waveforms):
    transcriber = Transcriber(model, processor, max_new_tokens=4, max_piece_seconds=3.0,
                              batch_seconds=8.0)
    found = transcriber(waveforms)
    assert len(found) == len(waveforms)
    assert transcriber(waveforms[:1])[0].text == found[0].text
    with pytest.raises(UserError, match="min_piece_seconds"):
        Transcriber(model, processor, max_piece_seconds=3.0, min_piece_seconds=4.0)
    with pytest.raises(UserError, match="pause_seconds"):
        Transcriber(model, processor, pause_seconds=0.0)
    forced = Transcriber(model, processor, language="Chinese", max_new_tokens=4)(waveforms[:2])
    assert [transcript.language for transcript in forced] == ["Chinese", "Chinese"]


@given(st.lists(st.integers(1, 320_000), min_size=1, max_size=60), st.sampled_from([1.0, 30.0]))
def test_a_batch_of_short_clips_counts_what_they_are_padded_to(lengths, seconds):
    batches = longest_first(lengths, seconds, features.padded_seconds)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(features.MIN_SAMPLES, *(lengths[i] for i in batch)) / 16_000
        assert len(batch) == 1 or len(batch) * longest <= seconds


def test_with_a_least_length_long_audio_is_cut_at_its_pauses(model, processor, waveforms):
    pause = np.zeros(9_600, np.float32)
    first, second = (waveform[:len(waveform) // 160 * 160] for waveform in waveforms[1:3])
    talk = np.concatenate([first, pause, second, pause, first])
    edge = pause[:1_600]
    pieces = [np.concatenate(parts) for parts in (
        [first, edge], [edge, second, edge], [edge, first])]
    options = {"max_new_tokens": 4, "min_piece_seconds": 0.5}
    found = Transcriber(model, processor, max_piece_seconds=4.0, **options)([talk, waveforms[1]])
    plain = Transcriber(model, processor, max_new_tokens=4)
    assert found[0].text == join_transcripts(plain(pieces)).text
    assert found[1].text == plain(waveforms[1:2])[0].text
    whole = Transcriber(model, processor, max_piece_seconds=9.0, **options)([talk])[0]
    assert whole.text == plain([talk])[0].text != found[0].text


@pytest.mark.parametrize(("name", "message"), [
    ("/nowhere/model", "no such folder"), ("./x", "no such folder"), ("plain", "no such folder")])
def test_loading_nothing_says_so(name, message):
    with pytest.raises(UserError, match=message):
        asr.load(name)


@pytest.mark.parametrize(("architecture", "message"), [
    ("Qwen3ASREncoder", "an AuT of stage=aut"),
    ("Qwen3ASRForTokenClassification", "a forced aligner of stage=aligner")])
def test_other_models_are_no_recognisers(folder, tmp_path, architecture, message):
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"other: {message}"):
        asr.load(str(tmp_path / "other"))


def test_loading_a_run_folder_points_to_its_model(folder):
    with pytest.raises(UserError, match=r"did you mean .*model"):
        asr.load(str(folder.parent))


def copied(folder, target, change):
    """The checkpoint with other weights."""
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return str(target)


def test_missing_weights_are_not_made_up(folder, tmp_path):
    cut = copied(folder, tmp_path / "cut", lambda weights: {
        name: value for name, value in weights.items() if "layers.0.fc1.weight" not in name})
    for load in (asr.load, load_encoder):
        with pytest.raises(UserError, match=r"1 weights are missing, first .*layers\.0\.fc1\.w"):
            load(cut)
