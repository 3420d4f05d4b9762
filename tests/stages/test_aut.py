"""AuT pretraining from the command line: its run folder, resuming, and what starts from it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3ASREncoder

from qwen3asr_train.data.audio import encode
from tests.conftest import SMALL

SHRINK = [*SMALL, "model.aut_decoder.layers=1", "model.aut_decoder.d_model=32",
          "model.aut_decoder.ffn_dim=48", "trainer.validate_every=0"]
PER_WINDOW = ["test/wer_window_8s", "test/wer_window_4s", "test/wer_window_2s",
              "test/wer_window_1s", "test/wer_streaming_2s"]


@pytest.fixture(scope="module")
def aut_run(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "aut"
    command_line("stage=aut", *SHRINK, f"run_dir={folder}", "trainer.max_steps=10",
                 "trainer.validate_every=5", "trainer.checkpoint_every=4", small=False)
    return folder


def test_run_folder(aut_run):
    metrics = json.loads((aut_run / "metrics.json").read_text())
    assert {*PER_WINDOW, "test/wer", "val/wer", "train/ctc_loss"} <= metrics.keys()
    assert metrics["test/wer"] == metrics["test/wer_window_8s"]
    assert {"test/question_accuracy", "test/question_accuracy/language",
            "test/question_accuracy/meta.speakers"} <= metrics.keys()
    page = (aut_run / "report.html").read_text()
    assert "Attention windows" in page and "Cross-attention" in page and "streaming, 2 s" in page
    encoder = Qwen3ASREncoder.from_pretrained(aut_run / "model")
    trained = torch.load(aut_run / "checkpoints" / "step-10.ckpt", weights_only=True)["state_dict"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, trained[f"model.encoder.{name}"])


def test_resumed_run_is_the_uninterrupted_one(command_line, aut_run, tmp_path):
    arguments = ["stage=aut", *SHRINK, f"run_dir={tmp_path}/cut", "stage.test=false",
                 "trainer.validate_every=0"]
    command_line(*arguments, "trainer.max_steps=10", f"resume={aut_run}/checkpoints/step-8.ckpt",
                 small=False)
    for part in ("model", "model/decoder"):
        whole = load_file(aut_run / part / "model.safetensors")
        for name, value in load_file(tmp_path / "cut" / part / "model.safetensors").items():
            assert torch.equal(value, whole[name]), name


def test_sft_starts_from_the_encoder(command_line, aut_run, tmp_path):
    # a learning rate too small to move a weight of this size
    command_line("stage=sft", f"init_from_encoder={aut_run}/model", f"run_dir={tmp_path}/sft",
                 "trainer.max_steps=1", "stage.optimizer.lr=1e-30", "stage.test=false",
                 "model.audio_config.d_model=8")  # the encoder's own sizes win
    encoder = load_file(aut_run / "model" / "model.safetensors")
    found = load_file(tmp_path / "sft" / "model" / "model.safetensors")
    for name, value in encoder.items():
        assert torch.equal(found[f"model.audio_tower.{name}"], value), name


def test_sft_puts_the_encoder_into_another_model(command_line, aut_run, tmp_path):
    command_line("stage=sft", f"run_dir={tmp_path}/text", "trainer.max_steps=1",
                 "stage.test=false")
    command_line("stage=sft", f"init_from={tmp_path}/text/model",
                 f"init_from_encoder={aut_run}/model", f"run_dir={tmp_path}/both",
                 "trainer.max_steps=1", "stage.optimizer.lr=1e-30", "stage.test=false")
    encoder, text, both = (load_file(folder / "model" / "model.safetensors") for folder in (
        aut_run, tmp_path / "text", tmp_path / "both"))
    moved = {f"model.audio_tower.{name}": value for name, value in encoder.items()}
    assert both.keys() == text.keys()
    assert any(not torch.equal(text[name], value) for name, value in moved.items())
    for name, value in (text | moved).items():
        assert torch.equal(both[name], value), name


def test_its_folder_transcribes_and_is_scored(command_line, aut_run, corpus, tmp_path):
    command_line("stage=evaluate", f"init_from={aut_run}/model", f"data.test={corpus['test']}",
                 f"run_dir={tmp_path}/scored", small=False)
    scored = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    assert scored["test/utterances"] == 8
    (audio := tmp_path / "a.wav").write_bytes(encode(np.zeros(9000, np.float32), "wav"))
    done = command_line("stage=transcribe", f"init_from={aut_run}/model", f"audio={audio}",
                        "format=jsonl", small=False)
    assert 0 < json.loads(done.stdout)["confidence"] <= 1
    done = command_line("stage=transcribe", f"init_from={aut_run}/model", f"audio={audio}",
                        "context=Ada", small=False, check=False)
    assert done.returncode == 2 and "takes no context" in done.stderr


def test_encoder_that_is_none(command_line, tmp_path):
    done = command_line("stage=sft", f"init_from_encoder={tmp_path}", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: init_from_encoder={tmp_path}: ")


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_processes_train_and_score_as_one(command_line, aut_run, tmp_path, strategy):
    command_line("stage=aut", *SHRINK, f"run_dir={tmp_path}", "trainer.max_steps=10",
                 "trainer.validate_every=5", f"strategy={strategy}", "strategy.devices=2",
                 small=False)
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in (aut_run, tmp_path)]
    expected, found = ({row["step"]: row["train/loss"] for row in run if "train/loss" in row}
                       for run in rows)
    assert found == pytest.approx(expected, rel=1e-4)
    scores, alone = (json.loads((run / "metrics.json").read_text()) for run in (tmp_path, aut_run))
    assert scores["test/utterances"] == alone["test/utterances"] and {*PER_WINDOW} <= scores.keys()
    for part in ("model", "model/decoder"):
        whole = load_file(aut_run / part / "model.safetensors")
        for name, value in load_file(tmp_path / part / "model.safetensors").items():
            torch.testing.assert_close(value, whole[name], rtol=1e-2, atol=2e-3)
