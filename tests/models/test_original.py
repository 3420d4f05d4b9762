"""Checkpoints of PyPI's qwen-asr (qwen_asr/make.py), against what it answered with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRForTokenClassification

from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aligner, asr, original
from qwen3asr_train.models.aut import load_encoder

HERE = Path(__file__).parent / "qwen_asr"
EXPECTED = json.loads((HERE / "expected.json").read_text())
END, END_OF_TEXT, ASR_TEXT = 256, 257, 262
CONTEXT = "Names: Ada"
WORDS = ["open", "the", "door"]


def waveform():
    """As make.py makes it."""
    time = np.arange(int(3.3 * 16000)) / 16000
    noise = np.random.default_rng(0).normal(0, 0.05, len(time))
    return (noise + 0.3 * np.sin(2 * np.pi * 300 * time * (1 + time / 4))).astype(np.float32)


def asked(processor):
    """Inputs of transformers' own model, by its own processor."""
    return processor.apply_chat_template(
        [[{"role": "system", "content": CONTEXT},
          {"role": "user", "content": [{"type": "audio", "audio": waveform()}]}]],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_it_answers_as_qwen_asr_does(name, tmp_path):
    model, processor = asr.load(str(HERE / name))
    assert model.config.asr_text_token_id == ASR_TEXT  # of CTC, and of own tokens
    assert model.generation_config.eos_token_id == [END_OF_TEXT, END]
    asr.save(model, processor, tmp_path)  # and so do transformers' own classes, once saved
    theirs = Qwen3ASRForConditionalGeneration.from_pretrained(tmp_path)
    inputs = asked(asr.load(str(tmp_path))[1])
    assert inputs["input_ids"][0].tolist() == EXPECTED[name]["ids"]
    with torch.inference_mode():
        logits = theirs(**inputs).logits[0, -1]
        tokens = theirs.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1]:]
    np.testing.assert_allclose(logits, EXPECTED[name]["logits"], atol=1e-5)
    assert tokens.tolist() == EXPECTED[name]["tokens"]


def test_the_aligner_answers_as_qwen_asr_does(tmp_path):
    model, processor = aligner.load(str(HERE / "aligner"))
    assert model.config.num_labels == len(EXPECTED["aligner"]["logits"][0])
    assert processor.timestamp_segment_time == 80
    aligner.save(model, aligner.with_slots(processor), tmp_path)
    theirs = Qwen3ASRForTokenClassification.from_pretrained(tmp_path)
    inputs = aligner.load(str(tmp_path))[1].apply_chat_template(
        [[{"role": "user", "content": [{"type": "audio", "audio": waveform()},
                                       *({"type": "text", "text": word} for word in WORDS)]}]],
        tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == EXPECTED["aligner"]["ids"]
    with torch.inference_mode():
        slots = inputs["input_ids"][0] == theirs.config.timestamp_token_id
        logits = theirs(**inputs).logits[0, slots]
    np.testing.assert_allclose(logits, EXPECTED["aligner"]["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["tied", "untied", "aligner"])
def test_an_export_is_what_qwen_asr_wrote(name, tmp_path):
    """qwen-asr's own folder, read and written again."""
    kind = aligner if name == "aligner" else asr
    original.save(*kind.load(str(HERE / name)), tmp_path, torch.float32)
    weights, written = (load_file(folder / "model.safetensors")
                        for folder in (HERE / name, tmp_path))
    assert written.keys() - weights.keys() == (
        {"thinker.lm_head.weight"} if name == "tied" else set())
    assert all(torch.equal(written[key], value) for key, value in weights.items())
    assert_within(json.loads((tmp_path / "config.json").read_text()),
                  json.loads((HERE / name / "config.json").read_text()))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["audio_token"]
    again = kind.load(str(tmp_path))[1].tokenizer
    assert again.get_vocab() == kind.load(str(HERE / name))[1].tokenizer.get_vocab()


def assert_within(part, whole, path=""):
    """Every field of ``part`` has its value in ``whole``, where that has it."""
    for key, value in part.items():
        if isinstance(value, dict) and key in whole:
            assert_within(value, whole[key], f"{path}.{key}")
        elif key in whole and key not in ("support_languages", "dtype"):
            assert value == whole[key], f"{path}.{key}"


def test_its_encoder_is_read_alone():
    whole = asr.load(str(HERE / "untied"))[0].model.audio_tower.state_dict()
    alone = load_encoder(str(HERE / "untied")).state_dict()
    assert all(torch.equal(alone[name], whole[name]) for name in whole | alone)


def copied(target, change_weights=None, change_config=None):
    """The untied checkpoint with other weights, or another config."""
    shutil.copytree(HERE / "untied", target)
    if change_weights:
        weights = load_file(target / "model.safetensors")
        save_file(change_weights(weights), target / "model.safetensors", {"format": "pt"})
    if change_config:
        config = json.loads((target / "config.json").read_text())
        change_config(config["thinker_config"])
        (target / "config.json").write_text(json.dumps(config))
    return str(target)


def test_missing_weights_are_not_made_up(tmp_path):
    cut = copied(tmp_path / "cut", lambda weights: {
        name: value for name, value in weights.items() if "proj2.bias" not in name})
    with pytest.raises(UserError, match=r"1 weights are missing, .*linear_2\.bias"):
        asr.load(cut)


def test_a_stretched_rotation_is_refused(tmp_path):
    other = copied(tmp_path / "other", change_config=lambda thinker: thinker["text_config"].update(
        rope_scaling={"rope_type": "yarn", "factor": 4.0}))
    with pytest.raises(UserError, match=r"init_from=.*other: rope_type=yarn"):
        asr.load(other)
