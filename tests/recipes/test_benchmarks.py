"""The benchmark recipes run, and their comparison of losses would notice a wrong one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ASRForConditionalGeneration

from qwen3asr_train.models import asr
from tests.models.conftest import SIZES

RECIPES = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def sft():
    specification = importlib.util.spec_from_file_location("benchmark_sft", RECIPES / "sft.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


@pytest.fixture(scope="module")
def sides(sft, tmp_path_factory):
    """Clips, the two models with the same weights, and the processor."""
    clips = sft.make_clips(4, seed=1, shortest=1.0, longest=4.0)
    ours, processor = sft.make_model(SIZES, clips, entries=400)
    folder = tmp_path_factory.mktemp("model")
    asr.save(ours, processor, folder)
    theirs = Qwen3ASRForConditionalGeneration.from_pretrained(folder)
    return clips, ours.eval(), theirs.eval(), processor


def test_losses_agree(sft, sides):
    clips, ours, theirs, processor = sides
    found = sft.compare_losses(ours, theirs, processor, clips, batch_size=3)
    assert found["loss_difference"] < 1e-4
    assert found["loss"] > 1.0


def test_loss_depends_on_the_audio(sft, sides):
    clips, ours, _, processor = sides
    silent = [sft.Clip(np.zeros_like(clip.waveform), clip.text) for clip in clips]
    batch, other = (sft.our_batch(processor, part) for part in (clips, silent))
    with torch.no_grad():
        losses = [float(ours.target_loss(b)[0]) / sft.targets(b["labels"])
                  for b in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_labels_are_the_processors(sft, sides):
    clips, _, _, processor = sides
    for clip in clips:
        ours = sft.our_batch(processor, [clip])
        theirs = sft.their_batch(processor, [clip])
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert ours["labels"].tolist() == theirs["labels"].tolist()


def test_features_runs(tmp_path):
    figures = tmp_path / "features.json"
    done = subprocess.run(
        [sys.executable, RECIPES / "features.py", "--clips", "4", "--longest", "2", "--rounds", "1",
         "--batch-size", "2", "--json", figures], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("speedup=")
    result = json.loads(figures.read_text())
    assert result["max_difference"] < 1e-4 and result["speedup"] > 0


def test_ctc_runs(tmp_path):
    figures = tmp_path / "ctc.json"
    done = subprocess.run(
        [sys.executable, RECIPES / "ctc.py", "--clips", "3", "--rounds", "1",
         "--vocabularies", "50", "--json", figures], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    row, = json.loads(figures.read_text())
    for figure in ("loss", "gradient_norm"):
        assert row["packed"][figure] == pytest.approx(row["padded"][figure], rel=1e-4)
    assert min(row["packed"]["seconds"], row["padded"]["seconds"]) > 0


def test_encoder_runs(tmp_path):
    figures = tmp_path / "encoder.json"
    done = subprocess.run(
        [sys.executable, RECIPES / "encoder.py", "--small", "--rounds", "1", "--threads", "1",
         "--theirs", "--json", figures], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert result["speed"]["output_difference"] < 1e-4
    assert result["speed"]["gradient_difference"] < 1e-4
    assert result["speed"]["speedup"] > 0
    assert result["memory"]["ours"]["peak_mib"] > 0 and result["memory"]["theirs"]["peak_mib"] > 0
    assert [row["tokens"] for row in result["long"]["rows"]] == [13, 26]


def test_encoder_reports_too_little_memory():
    done = subprocess.run(
        [sys.executable, RECIPES / "encoder.py", "memory", "--limit-gib", "1", "--threads", "1"],
        capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "this library  more than 1 GiB" in done.stdout


def test_alignment(tmp_path):
    subprocess.run([sys.executable, str(RECIPES / "align.py"), "--batches", "1", "3", "--seconds",
                    "1", "3", "--repeats", "1", "--num-labels", "60", "--slots", "2000", "300",
                    "--json", str(tmp_path / "x.json")], check=True, capture_output=True)
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [row["batch"] for row in rows["align"]] == [1, 3]
    assert rows["align"][0]["same_words"] == 1.0  # of one clip alone; in a batch features leak
    assert rows["repair"]["ours_seconds"] < 0.05


def test_packed_rows(tmp_path):
    figures = tmp_path / "x.json"
    subprocess.run([sys.executable, str(RECIPES / "packed.py"), "--length", "300", "--repeats", "1",
                    "--json", str(figures)], check=True, capture_output=True, timeout=120)
    result = json.loads(figures.read_text())
    assert result["samples"] == 4 and result["ratio"] > 0
    assert result["difference"] < 1e-4 and result["gradient_difference"] < 1e-4
