"""Evaluation: scores a model on shards, or on every test set of a suite; writes the report."""

import time
from pathlib import Path

from omegaconf import DictConfig

from qwen3asr_train.data.shards import find_shards, read_entries
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aligner
from qwen3asr_train.stages.alignment_suite import evaluate_aligner
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.scoring import load_recogniser, score_entries
from qwen3asr_train.stages.setup import as_list
from qwen3asr_train.stages.suites import run_suite


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Score ``stage.init_from`` on ``suite``, or on ``data.test``; a forced aligner by AAS."""
    if aligner.is_aligner(str(config.stage.init_from)):
        return evaluate_aligner(config, run_dir)
    if config.suite is not None:
        return run_suite(config, run_dir)
    patterns = config.data.test or config.data.validation
    if patterns is None:
        raise UserError("name the shards to score: data.test=shards/mine/test")
    started = time.perf_counter()
    entries = [entry for shard in find_shards(as_list(patterns)) for entry in read_entries(shard)]
    model, processor = load_recogniser(config)
    loaded = time.perf_counter()
    results = score_entries(model, processor, entries, config)
    timings = {"preparing": loaded - started, "testing": time.perf_counter() - loaded}
    return finish_run(config, run_dir, {}, results, [], timings)
