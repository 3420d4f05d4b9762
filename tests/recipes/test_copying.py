"""What the study of copying counts."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ASRForConditionalGeneration

from qwen3asr_train.data import features
from qwen3asr_train.data.collate import Example
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.models import asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer
from tests.models.conftest import SIZES

RECIPE = Path(__file__).parents[2] / "recipes" / "embedded" / "copying.py"
TEXTS = ["call Sara Smyth and Sara", "language English", "语言 请找于铭欣"] * 5


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE))


@pytest.fixture(scope="module")
def processor():
    return make_processor(train_tokenizer(TEXTS, 330))


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    asr.save(asr.build(SIZES, processor, seed=0), processor, path)
    return path


@pytest.mark.parametrize(("text", "names"), [
    ("call Sara Smyth and Sara", ["Sara", "Sara Smyth"]), ("Sara calls", ["Sara"]),
    ("call on", ["Sara"]), ("请找于铭欣", ["于铭欣"]), ("call Sarah", [])])
def test_the_tokens_of_names(recipe, processor, text, names):
    prompts = PromptBuilder(processor.tokenizer)
    target = prompts.target(text, "English")
    marks = recipe["is_name"](prompts, {"entities": names}, target)
    found = processor.tokenizer.decode([t for t, mark in zip(target, marks, strict=True) if mark])
    rest = processor.tokenizer.decode([t for t, mark in zip(target, marks, strict=True)
                                       if not mark])
    for name in sorted(names, key=len, reverse=True):
        assert name in found or name not in text
        assert name not in rest
        text = text.replace(name, "")
    assert rest.replace(" ", "") == f"language English<asr_text>{text}<|im_end|>".replace(" ", "")


def test_right_tokens_are_those_that_transformers_finds_likeliest(recipe, processor, folder):
    prompts = PromptBuilder(processor.tokenizer)
    model, _ = asr.load(str(folder))
    theirs = Qwen3ASRForConditionalGeneration.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    examples, expected = [], []
    for seconds, context in ((1.0, "Names: Sara"), (0.4, ""), (0, "Names: Smyth")):
        mel = features.log_mel((0.1 * rng.standard_normal(int(seconds * 16_000))).astype("f")) \
            if seconds else torch.zeros(0, features.MEL_BINS)
        prompt = prompts.prompt(features.audio_tokens(len(mel)), context) if seconds else \
            prompts.written_prompt("Sara Smyth", context)
        target = []  # what is likeliest, but for every third token
        for place in range(9):
            ids = torch.tensor([prompt + target])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if seconds:
                whole = torch.zeros(1, features.MEL_BINS, 100)  # transformers wants whole seconds
                whole[..., :len(mel)] = mel.T
                inputs |= {"input_features": whole,
                           "input_features_mask": (torch.arange(100) < len(mel))[None].long()}
            with torch.no_grad():
                best = int(theirs(**inputs).logits[0, -1].argmax())
            target.append(best if place % 3 else (best + 1) % len(processor.tokenizer))
        examples.append(Example(mel, prompt, target))
        expected.append([bool(place % 3) for place in range(9)])
    assert recipe["right_tokens"](model.eval(), examples, prompts.pad_id) == expected


@pytest.mark.parametrize("audio", [[], ["--audio"]])
def test_shares_of_names_and_of_the_rest(recipe, folder, monkeypatch, capsys, audio):
    monkeypatch.setattr(sys, "argv", ["copying.py", str(folder), "--clips", "6", *audio])
    recipe["main"]()
    heading, *rows = capsys.readouterr().out.splitlines()
    assert int(heading.split()[0]) > 0
    assert [row[:24].rstrip() for row in rows] == list(recipe["conditions"]())
    assert all(0 <= float(share) <= 1 for row in rows for share in row[24:].split())
    assert {len(row[24:].split()) for row in rows} == {2}
