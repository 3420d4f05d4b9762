"""The SFT stage from the command line: what a run leaves, resuming, strategies."""

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3ASRForConditionalGeneration

from qwen3asr_train.models import asr
from qwen3asr_train.stages.fit import RecogniserModule


def losses(folder) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_folder_is_as_the_contract_says(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert {"test/wer", "test/cer", "test/lid_accuracy", "val/wer", "train/loss", "train/seconds",
            "train/steps", "train/padding_share"} <= metrics.keys()
    assert metrics["train/steps"] == 12
    assert (finished_run / "config.yaml").is_file()
    assert "<audio" in (finished_run / "report.html").read_text()
    assert [p.name for p in sorted((finished_run / "checkpoints").iterdir())] == \
        ["step-10.ckpt", "step-12.ckpt"]
    assert sorted(losses(finished_run)) == list(range(1, 13))
    last = (finished_run / "stdout.txt").read_text().splitlines()[-1]
    assert last.startswith(f"{finished_run}/report.html ") and "test/wer=" in last
    rows = [json.loads(line) for line in
            (finished_run / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and {"reference", "hypothesis", "language"} <= rows[0].keys()


def test_transformers_opens_the_model_folder(finished_run):
    model = Qwen3ASRForConditionalGeneration.from_pretrained(finished_run / "model")
    assert AutoProcessor.from_pretrained(finished_run / "model").tokenizer.audio_token
    trained = torch.load(finished_run / "checkpoints" / "step-12.ckpt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained["state_dict"][f"model.{name}"])


STEPS = ["trainer.max_steps=14", "trainer.validate_every=0", "trainer.checkpoint_every=3",
         "stage.test=false", "stage.partial.own_token_share=0.3"]


@pytest.fixture(scope="module")
def uninterrupted(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    command_line("stage=sft", f"run_dir={folder}", *STEPS, "trainer.accumulate=2")
    return folder


def test_killed_and_resumed_is_bitwise_the_same(command_line, uninterrupted, tmp_path):
    arguments = ["stage=sft", f"run_dir={tmp_path}", *STEPS, "trainer.accumulate=2"]
    process = command_line(*arguments, popen=True)
    deadline = time.time() + 120
    while not list((tmp_path / "checkpoints").glob("step-*.ckpt")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = command_line(*arguments, "resume=auto")
    assert "resuming from" in done.stderr
    expected, found = weights(uninterrupted), weights(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.parametrize(("before", "after"), [
    (["strategy=ddp", "strategy.devices=2"], []),
    (["strategy=zero2", "strategy.devices=2"], ["strategy=zero3", "strategy.devices=2"]),
    (["stage.optimizer.name=muon", "strategy=ddp", "strategy.devices=2"],
     ["stage.optimizer.name=muon"]),
], ids=["ddp-to-one-process", "zero2-to-zero3", "muon"])
def test_resumed_on_other_ranks_and_strategies(command_line, tmp_path, before, after):
    command_line("stage=sft", *STEPS, f"run_dir={tmp_path / 'a'}", *before,
                 "trainer.keep_checkpoints=9")
    checkpoint = tmp_path / "a" / "checkpoints" / "step-6.ckpt"
    command_line("stage=sft", *STEPS, f"run_dir={tmp_path / 'b'}", f"resume={checkpoint}", *after)
    expected, found = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert sorted(found) == list(range(7, 15))
    for step, loss in found.items():
        assert loss == pytest.approx(expected[step], rel=1e-5), step


@pytest.fixture(scope="module")
def one_process(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    command_line("stage=sft", f"run_dir={folder}", *TWENTY)
    return folder


TWENTY = ["trainer.max_steps=20", "trainer.validate_every=10", "trainer.checkpoint_every=0",
          "stage.test=false", "stage.partial.own_token_share=0.3"]


@pytest.mark.parametrize(("strategy", "accumulate"), [
    ("ddp", 2), ("zero1", 1), ("zero2", 3), ("zero3", 1)])
def test_two_processes_train_as_one(command_line, one_process, tmp_path, strategy, accumulate):
    """Also without a compiler, and beside the build folder of a process that was killed in it."""
    built = tmp_path / "extensions" / "deepspeed_shm_comm"
    built.mkdir(parents=True)
    (built / "lock").touch()
    command_line("stage=sft", f"run_dir={tmp_path}", *TWENTY, f"strategy={strategy}",
                 "strategy.devices=2", f"trainer.accumulate={accumulate}",
                 TORCH_EXTENSIONS_DIR=str(built.parent), CXX="/no/compiler")
    expected, found = losses(one_process), losses(tmp_path)
    assert sorted(found) == list(range(1, 21))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-4), (step, strategy)
    final = weights(tmp_path)
    for name, value in weights(one_process).items():
        torch.testing.assert_close(final[name], value, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_language_model_may_have_its_share_of_the_learning_rate(finished_run, composed, name):
    config = composed("stage=sft", f"stage.optimizer.name={name}",
                      "stage.optimizer.muon_lr_scale=2",
                      "stage.optimizer.language_model_lr_scale=0.25")
    model, processor = asr.load(str(finished_run / "model"))
    module = RecogniserModule(model, processor.tokenizer, config, lr=1e-3, ctc_weight=0.0)
    module._trainer = SimpleNamespace(max_steps=10)
    optimizer = module.configure_optimizers()["optimizer"]
    names = {id(p): n for n, p in module.named_parameters()}
    rates = {names[id(p)]: group["initial_lr"] / (2 if group.get("muon") else 1)
             for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(names.values())
    slow = {n for n in rates if n.startswith("model.model.language_model.")}
    assert {rates[n] for n in slow} == {2.5e-4}
    assert {rates[n] for n in rates.keys() - slow} == {1e-3}
    assert all(group["weight_decay"] == (config.stage.optimizer.weight_decay if p.ndim > 1 else 0)
               for group in optimizer.param_groups for p in group["params"])
