"""The omni model against transformers' models on the folder that it writes."""

import copy

import pytest
import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ForCausalLM

from qwen3asr_train.data import features
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.positions import (
    Audio,
    Film,
    Text,
    Vision,
    position_ids,
    sound_places,
)
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.models import asr, omni

VISION = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4,
              spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=16,
              deepstack_visual_indexes=[0], initializer_range=0.2)


@pytest.fixture(scope="module")
def ours(model, processor):
    return omni.build(copy.deepcopy(model), copy.deepcopy(processor), VISION, seed=1).eval()


@pytest.fixture(scope="module")
def folder(ours, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    asr.save(ours, processor, path)
    return path


def dummy():
    """A picture and a clip of which no token is there."""
    return {"pixel_values": torch.zeros(4, 3 * 2 * 16), "grid_thw": torch.tensor([[1, 2, 2]])}


def speech(processor, waveforms):
    prompts, rows = PromptBuilder(processor.tokenizer), []
    for waveform, text in zip(waveforms, ["turn on", "关上客厅的门", "light", "the", "now"],
                              strict=True):
        mel = features.log_mel(waveform)
        rows.append(Example(mel, prompts.prompt(features.audio_tokens(len(mel))),
                            prompts.target(text, "English")))
    batch = collate(rows, processor.tokenizer.pad_token_id)
    length = batch["input_ids"].shape[1]
    places = position_ids([Text(length)])[:, None].expand(-1, len(rows), -1)
    return batch | dummy() | {"position_ids": places}


def test_speech_is_transformers_qwen3_asr(ours, folder, processor, waveforms):
    theirs = Qwen3ASRForConditionalGeneration.from_pretrained(folder).eval()
    batch = speech(processor, waveforms)
    with torch.no_grad():
        found = ours.lm_head(ours.read(batch, use_cache=False)[0])
        for row, waveform in enumerate(waveforms):
            mel = features.log_mel(waveform)
            length = int((batch["labels"][row] != -100).nonzero().max()) + 1
            chunks, _ = features.chunk(mel)
            frames = chunks.transpose(0, 1).flatten(1)[None]
            mask = (torch.arange(frames.shape[2]) < len(mel))[None].long()
            expected = theirs(input_ids=batch["input_ids"][row:row + 1, :length],
                              input_features=frames, input_features_mask=mask).logits[0]
            torch.testing.assert_close(found[row, :length], expected, rtol=1e-4, atol=1e-4)
        ours_loss = ours.target_loss(batch)[0]
        alone = {name: value for name, value in batch.items() if name != "position_ids"}
        torch.testing.assert_close(ours_loss, asr.load(str(folder))[0].eval().target_loss(alone)[0])


def test_text_is_transformers_qwen3(ours, folder):
    theirs = Qwen3ForCausalLM(ours.config.text_config).eval()
    theirs.model.load_state_dict(
        asr.load(str(folder))[0].model.language_model.state_dict())
    theirs.tie_weights()
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        found = ours.lm_head(ours.model.language_model(
            input_ids=ids, position_ids=position_ids([Text(40)])[:, None]).last_hidden_state)
        torch.testing.assert_close(found, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_folder_goes_on_whole_and_opens_without_the_tower(ours, folder):
    again, _ = omni.load(str(folder))
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert omni.is_omni(str(folder))
    speaker, _ = asr.load(str(folder))
    assert not any("visual" in name for name in speaker.state_dict())
    for name, value in speaker.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_a_recogniser_saved_after_it_is_no_omni_model(folder, processor, tmp_path):
    asr.save(asr.load(str(folder))[0], processor, tmp_path)
    assert not omni.is_omni(str(tmp_path))


def mixed(ours, waveform):
    """A picture, words and a clip in one row."""
    mel = features.log_mel(waveform)
    chunks, lengths = features.chunk(mel)
    count = features.audio_tokens(len(mel))
    ids = ([5, ours.config.vision_start_token_id] + [ours.config.image_token_id] * 6 +
           [ours.config.vision_end_token_id, 7] + [ours.config.audio_token_id] * count + [9, 11])
    places = position_ids([Text(2), Vision(2, 3), Text(2), Audio(count), Text(2)])
    rng = torch.Generator().manual_seed(0)
    return {"input_ids": torch.tensor([ids]), "position_ids": places[:, None],
            "labels": torch.tensor([[-100] * (len(ids) - 2) + [9, 11]]),
            "input_features": chunks, "chunk_lengths": lengths,
            "clip_chunks": torch.tensor([len(lengths)]),
            "pixel_values": torch.randn(24, 96, generator=rng),
            "grid_thw": torch.tensor([[1, 4, 6]])}


def film(ours, waveform):
    """A film of two steps with sound that ends before the ids of its columns do."""
    batch, grid = mixed(ours, waveform), (1, 18)
    count = int((batch["input_ids"] == ours.config.audio_token_id).sum())
    inside = Film(Vision(*grid, (0.0, 0.1)), count)
    pads = [ours.config.audio_token_id if heard else ours.config.video_token_id
            for heard in sound_places(inside).tolist()]
    ids = [5, ours.config.vision_start_token_id, *pads, ours.config.vision_end_token_id, 9, 11]
    return batch | {
        "input_ids": torch.tensor([ids]),
        "position_ids": position_ids([Text(2), inside, Text(3)])[:, None],
        "labels": torch.tensor([[-100] * (len(ids) - 2) + [9, 11]]),
        "pixel_values": torch.randn(144, 96, generator=torch.Generator().manual_seed(1)),
        "grid_thw": torch.tensor([[2, 2, 36]])}


@pytest.mark.parametrize("make", [mixed, film])
def test_what_is_seen_and_heard_matters_and_reaches_every_part(ours, waveforms, make):
    batch = make(ours, waveforms[0])
    ours.zero_grad()
    loss, _ = ours.target_loss(batch)
    loss.backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        for key in ("pixel_values", "input_features"):
            assert not torch.allclose(ours.target_loss(batch | {key: batch[key] * 0.5})[0], loss)


def test_rows_and_columns_matter(ours, waveforms):
    batch = mixed(ours, waveforms[1])
    flat = batch | {"position_ids": batch["position_ids"][:1].expand(4, -1, -1)}
    with torch.no_grad():
        assert not torch.allclose(ours.target_loss(batch)[0], ours.target_loss(flat)[0])


def test_tokens_without_data_are_refused(ours, waveforms):
    batch = mixed(ours, waveforms[1])
    with pytest.raises(ValueError, match="6 picture tokens with data for 1"):
        ours.target_loss(batch | dummy())


@pytest.mark.parametrize("make", [mixed, film])
def test_answers_equal_those_without_a_cache(ours, waveforms, make):
    batch = make(ours, waveforms[0])
    pad = 3
    prompt = {"prompt_ids": torch.nn.functional.pad(batch["input_ids"], (pad, 0)),
              "prompt_mask": torch.nn.functional.pad(torch.ones_like(batch["input_ids"]), (pad, 0)),
              "prompt_positions": torch.nn.functional.pad(batch["position_ids"][1:], (pad, 0))}
    found = ours.answer(batch | prompt, 30)[0].tolist()
    ids, places = batch["input_ids"], batch["position_ids"]
    assert make is mixed or places[1:].max() > places[1, 0, -1]
    for token in found:
        with torch.no_grad():
            hidden, _ = ours.read(batch | {"input_ids": ids, "position_ids": places},
                                  use_cache=False)
        assert int(ours.lm_head(hidden[0, -1]).argmax()) == token
        if token in ours.config.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        places = torch.cat([places, places[:, :, -1:] + 1], 2)  # an answer is text


def test_every_parameter_has_a_part(ours):
    parts = {omni.part_of(name) for name, _ in ours.named_parameters()}
    assert parts == set(omni.PARTS)


def test_sections_are_those_released():
    assert omni.sections(128) == [24, 20, 20]
    assert omni.sections(36) == [6, 6, 6] and sum(omni.sections(12)) == 6
