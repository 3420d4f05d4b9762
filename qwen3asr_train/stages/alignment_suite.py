"""Evaluation of a forced aligner: on shards with word times, or on the sets of a suite."""

import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from qwen3asr_train.data.shards import Entry, find_shards
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.report_alignment import AlignmentReport
from qwen3asr_train.models import aligner
from qwen3asr_train.stages.alignment_scoring import score_aligner
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.fit import entries_of
from qwen3asr_train.stages.setup import as_list, embedded_folders


def evaluate_aligner(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Score ``stage.init_from`` on every set of ``suite``, or on ``data.test``.

    Figures of a suite come as ``SET/aas_ms`` and ``SET/WAY/aas_ms``, others as ``test/…``.
    """
    started = time.perf_counter()
    sets = find_alignment_sets(config)
    if config.suite is not None:
        config = OmegaConf.merge(config, {"stage": {"evaluation": config.suite.evaluation}})
    model = aligner.load(str(config.stage.init_from), config.model.attn_implementation)
    loaded = time.perf_counter()
    metrics, whole = {}, None
    for name, entries in sets.items():
        report = score_aligner(*model, entries, config)
        metrics |= {figure.replace("test", name, 1): value
                    for figure, value in report.metrics.items()}
        whole = whole or AlignmentReport(report.class_seconds)
        prefix = "" if name == "test" else f"{name}: "
        whole.rows += [(f"{prefix}{way}", label, figures) for way, label, figures in report.rows]
        whole.pictures += report.pictures
    timings = {"preparing": loaded - started, "testing": time.perf_counter() - loaded}
    return finish_run(config, run_dir, metrics, [], [], timings, alignment=whole)


def find_alignment_sets(config: DictConfig) -> dict[str, list[Entry]]:
    """Samples by the name of their set; ``test`` without a suite. UserError for what is not there.
    """
    if config.suite is None:
        patterns = config.data.test or config.data.validation
        if patterns is None:
            raise UserError("name the shards to align: data.test=shards/mine/test, or "
                            "suite=alignment")
        return {"test": entries_of(find_shards(as_list(patterns)))}
    if not config.suite.get("aligner"):
        raise UserError(f"suite={config.suite.name} is for recognisers, and "
                        f"{config.stage.init_from} is a forced aligner; say suite=alignment")
    sets = {}
    for name, options in config.suite.sets.items():
        patterns = [embedded_folders(config.data, options.corpus)["test"]] \
            if "corpus" in options else as_list(options.data)
        sets[name] = entries_of(find_shards(patterns))
    return sets
