"""A miniature corpus and a finished miniature run, made once a session; the command line."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers: names of no folder fail at once

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings

from data_prep.embedded import Corpus, ensure_corpus
from qwen3asr_train.command_line import CONFIGS

ROOT = Path(__file__).parent.parent

# The same examples in every run, so that a test that fails was broken by a change;
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a worker a core

MINI = {"train_samples": 96, "validation_samples": 8, "test_samples": 8}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder that holds the miniature corpus."""
    folder = tmp_path_factory.mktemp("cache")
    ensure_corpus(Corpus(**MINI), folder)
    return folder


@pytest.fixture(scope="session")
def corpus(cache):
    """Split folders of the miniature corpus."""
    return ensure_corpus(Corpus(**MINI), cache)


@pytest.fixture(scope="session")
def command_line(cache, tmp_path_factory):
    """Runs ``python -m qwen3asr_train`` with a tiny model on the miniature corpus."""
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {"QWEN3ASR_CACHE": str(cache), "OMP_NUM_THREADS": "1",
                                "PYTHONPATH": str(ROOT)}

    def run(*arguments: str, small: bool = True, check: bool = True, cwd: Path = home,
            popen: bool = False, **extra_environment: str):
        shrink = SMALL if small else []
        command = [sys.executable, "-m", "qwen3asr_train", *shrink, *arguments]
        options = {"cwd": cwd, "env": environment | extra_environment, "text": True,
                   "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if popen:
            return subprocess.Popen(command, **options)
        done = subprocess.run(command, **options, timeout=300)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def composed():
    """A config of overrides, in this process."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda *overrides: compose("config", list(overrides))


SMALL = [f"data.corpus.{name}={value}" for name, value in MINI.items()] + [
    "data.workers=0", "data.batch_seconds=15", "trainer.log_every=1", "trainer.progress=false",
    "model.tokenizer=300", "model.audio_config.d_model=32", "model.audio_config.encoder_layers=1",
    "model.audio_config.encoder_ffn_dim=48", "model.audio_config.downsample_hidden_size=4",
    "model.text_config.hidden_size=32", "model.text_config.intermediate_size=48",
    "model.text_config.num_hidden_layers=2", "model.text_config.head_dim=8",
    "stage.optimizer.warmup_steps=4", "stage.decoding.max_new_tokens=6"]
"""Overrides for a model that trains tens of steps a second."""


@pytest.fixture(scope="session")
def finished_run(command_line, tmp_path_factory):
    """The folder of a short finished SFT run."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    done = command_line("stage=sft", f"run_dir={folder}", "trainer.max_steps=12",
                        "trainer.validate_every=6", "trainer.checkpoint_every=5")
    (folder / "stdout.txt").write_text(done.stdout)
    return folder
