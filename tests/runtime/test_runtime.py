"""Schedules, checkpoints on a full disk, guards."""

import os
import signal
import subprocess
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from qwen3asr_train.data.dataset import StepLoader
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.errors import UserError
from qwen3asr_train.runtime.checkpoint import (
    AtomicCheckpointIO,
    checkpoints,
    refuse_used_folder,
    resume_from,
)
from qwen3asr_train.runtime.metrics import MetricsFile, read_history
from qwen3asr_train.runtime.schedule import lr_factor
from qwen3asr_train.runtime.strategies import build_strategy
from qwen3asr_train.runtime.training import TrainingModule, build_trainer, freeze


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from(["cosine", "wsd", "constant"]),
       st.floats(0, 1))
def test_schedules_warm_up_and_end_where_they_should(total, warmup, schedule, final):
    rates = [lr_factor(step, total=total, warmup=warmup, schedule=schedule, final=final,
                       decay_share=0.2) for step in range(total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    rising = rates[:min(warmup, total)]
    assert rising == sorted(rising)
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)
    if warmup < total and schedule != "constant":
        assert rates[-1] == pytest.approx(final)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="one of cosine"):
        lr_factor(1, total=2, warmup=0, schedule="linear", final=0, decay_share=0.1)


def test_a_full_disk_keeps_the_checkpoints_that_were_whole(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    io = AtomicCheckpointIO()
    try:
        io.save_checkpoint({"x": torch.zeros(100)}, disk / "step-1.ckpt")
        with pytest.raises(UserError, match=r"no space left .*step-2\.ckpt"):
            io.save_checkpoint({"x": torch.zeros(1_000_000)}, disk / "step-2.ckpt")
        assert [path.name for path in disk.iterdir()] == ["step-1.ckpt"]
        assert io.load_checkpoint(disk / "step-1.ckpt")["x"].shape == (100,)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_is_never_executed(tmp_path):
    torch.save({"f": print}, tmp_path / "step-1.ckpt")  # a function is not plain data
    with pytest.raises(UserError, match=r"step-1\.ckpt: .*holds more than plain tensors"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step-1.ckpt")


def test_a_cut_checkpoint_is_named(tmp_path):
    torch.save({"x": torch.zeros(1000)}, tmp_path / "step-1.ckpt")
    (tmp_path / "step-1.ckpt").write_bytes((tmp_path / "step-1.ckpt").read_bytes()[:1500])
    with pytest.raises(UserError, match=r"step-1\.ckpt: not a whole checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step-1.ckpt")


def test_resume_finds_the_newest_whole_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert resume_from("auto", tmp_path) is None and resume_from(None, tmp_path) is None
    for name in ("step-9.ckpt", "step-10.ckpt", "step-11.ckpt.partial"):
        (folder / name).touch()
    assert [path.name for path in checkpoints(folder)] == ["step-9.ckpt", "step-10.ckpt"]
    assert resume_from("auto", tmp_path).name == "step-10.ckpt"
    assert resume_from(str(tmp_path), tmp_path).name == "step-10.ckpt"
    assert resume_from(str(folder / "step-9.ckpt"), tmp_path).name == "step-9.ckpt"
    with pytest.raises(UserError, match="no checkpoint there"):
        resume_from(str(tmp_path / "nothing"), tmp_path)


def test_history_survives_a_kill_and_is_rewound(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": float(step)}, step)
    with open(logger.path, "a") as file:
        file.write('{"step": 4, "tra')
    assert [row["step"] for row in read_history(logger.path)] == [1, 2, 3]
    logger.rewind(2)
    assert [row["step"] for row in read_history(logger.path)] == [1, 2]


def test_freezing_by_pattern():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    assert freeze(model, ["encoder.*"]) == 9
    assert [name for name, p in model.named_parameters() if p.requires_grad] == \
        ["head.weight", "head.bias"]
    with pytest.raises(UserError, match="matches no parameter"):
        freeze(model, ["decoder.*"])


class Fragile(TrainingModule):
    """A linear model whose loss is not finite in the given steps."""

    def __init__(self, bad_steps: set[int], limit: int):
        super().__init__(nn.Linear(1, 1), {
            "name": "adamw", "lr": 0.1, "betas": [0.9, 0.98], "weight_decay": 0.0,
            "warmup_steps": 0, "schedule": "constant", "final_lr_share": 0.0, "decay_share": 0.1},
            {"max_nonfinite_steps": limit, "log_every": 1}, seed=0)
        self.bad_steps = bad_steps
        for parameter in self.model.parameters():
            nn.init.ones_(parameter)  # far enough from the minimum for every step to go down

    def summed_losses(self, batch):
        inputs = batch["inputs"]
        loss = self.model(inputs["x"]).square().sum()
        return {"loss": (1.0, loss * float("nan") if inputs["step"] in self.bad_steps else loss)}


def fit(module, folder, steps=6, checkpoint_every=0):
    config = OmegaConf.create({
        "trainer": {"max_steps": steps, "accumulate": 1, "gradient_clip": 1.0, "precision": "auto",
                    "accelerator": "cpu", "checkpoint_every": checkpoint_every,
                    "keep_checkpoints": 1, "validate_every": 0, "progress": False,
                    "deterministic": False},
        "strategy": {"name": "single", "devices": 1, "num_nodes": 1},
        "stage": {"optimizer": {"name": "adamw"}}, "logger": {"name": "none"}})
    entry = Entry("shard", "utt7", (0, 0), None, None, 1.0, None)
    batches = [{"inputs": {"x": torch.ones(1, 1), "step": step},
                "meta": {"target_tokens": 1, "entries": [entry], "padding": 0.0, "skipped": []}}
               for step in range(steps)]
    build_trainer(config, folder).fit(module, StepLoader(batches, accumulate=1, max_bad=0))
    return read_history(folder / "metrics.jsonl")


def test_steps_with_a_gradient_that_is_not_finite_change_nothing(tmp_path):
    rows = fit(Fragile({1, 3}, limit=2), tmp_path)
    assert rows[-1]["train/nonfinite_steps"] == 2
    losses = [row["train/loss"] for row in rows]
    assert losses[2] < losses[0] and losses[5] < losses[2]


def test_a_loaded_model_trains_in_train_mode():
    loaded = nn.Linear(1, 1).eval()  # as from_pretrained leaves it
    optimizer = {"name": "adamw", "schedule": "constant"}
    assert TrainingModule(loaded, optimizer, {}, seed=0).model.training


def test_the_row_of_a_step_is_written_before_its_checkpoint(tmp_path, monkeypatch):
    save, rows = AtomicCheckpointIO.save_checkpoint, []

    def watched(self, checkpoint, path, storage_options=None):
        rows.append((read_history(tmp_path / "metrics.jsonl")[-1]["step"], Path(path).name))
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", watched)
    fit(Fragile(set(), limit=0), tmp_path, checkpoint_every=2)
    assert rows == [(step, f"step-{step}.ckpt") for step in (2, 4, 6)]


def test_a_folder_of_an_earlier_run_is_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    refuse_used_folder(tmp_path, None)
    folder.mkdir()
    for step in (5, 9):
        (folder / f"step-{step}.ckpt").touch()
    refuse_used_folder(tmp_path, folder / "step-9.ckpt")
    for other in (None, folder / "step-5.ckpt", tmp_path / "step-9.ckpt"):
        with pytest.raises(UserError, match=r"holds step-9\.ckpt of an earlier run: resume=auto"):
            refuse_used_folder(tmp_path, other)


def test_too_many_such_steps_stop_the_run_and_name_the_samples(tmp_path):
    with pytest.raises(UserError, match=r"in 3 steps .*max_nonfinite_steps=2.* step 4 on utt7"):
        fit(Fragile({0, 1, 3}, limit=2), tmp_path)


@pytest.mark.parametrize("devices", [0, -1, "many", 1.5, None, 100_000])
def test_a_number_of_processes_that_cannot_be_is_refused(devices):
    with pytest.raises(UserError, match=rf"strategy\.devices={devices}: "):
        build_strategy({"name": "ddp", "devices": devices, "num_nodes": 1}, "cpu")


def test_two_processes_on_any_machine():
    assert build_strategy({"name": "ddp", "devices": 2, "num_nodes": 1}, "cpu")[1] == 2


@pytest.mark.parametrize("resume", [True, 1, "nowhere"])
def test_resuming_from_nothing_says_so(resume, tmp_path):
    with pytest.raises(UserError, match=f"resume={resume}: no checkpoint there"):
        resume_from(resume, tmp_path)


def test_sigterm_enters_no_collective(tmp_path, monkeypatch):
    """In a handler it would wait for ever where the other ranks are in another one."""
    trainers = []

    def kept(*arguments, **options):
        trainers.append(build(*arguments, **options))
        return trainers[-1]

    build = lightning.Trainer
    monkeypatch.setattr(lightning, "Trainer", kept)
    fit(Fragile(set(), limit=2), tmp_path, steps=1)
    monkeypatch.setattr(build, "world_size", 2)
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: pytest.fail("a collective"))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    connector = trainers[0]._signal_connector
    connector.register_signal_handlers()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert connector.received_sigterm
    finally:
        connector.teardown()
