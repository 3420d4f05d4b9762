"""The end of a run: metrics.json, results.jsonl and the report."""

import platform
from collections.abc import Sequence
from pathlib import Path

import lightning
import numpy as np
import torch
import transformers
from omegaconf import DictConfig, OmegaConf

import qwen3asr_train
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.shards import Entry, ShardReader
from qwen3asr_train.evaluation.metrics import Utterance, bootstrap_interval, score
from qwen3asr_train.evaluation.report import write_report
from qwen3asr_train.evaluation.report_clips import counts_of
from qwen3asr_train.evaluation.tables import Row
from qwen3asr_train.options import headline_of
from qwen3asr_train.runtime.metrics import write_metrics, write_rows

HEADLINE = ("test/aas_ms", "test/aas_floor_ms", "test/median_ms", "test/p90_ms",
            "test/within_80_ms", "test/teacher_aas_ms", "test/wer", "test/cer",
            "test/lid_accuracy", "val/wer", "train/loss", "train/seconds",
            "train/audio_seconds_per_second", "train/padding_share")
"""Figures at the head of the report, after a suite's own."""

REPORT_CLIPS = 8
"""Clips with a player in the report: half the worst, half perfect ones."""


def finish_run(config: DictConfig, run_dir: Path, metrics: dict[str, float],
               results: list[tuple[Utterance, Entry]], history: list[dict],
               timings: dict[str, float], *, suite: Sequence[Row] = (), **sections
               ) -> dict[str, float]:
    """Write metrics.json, results.jsonl and report.html; returns the metrics.

    ``suite``: rows of a suite, which has written its results, and of which ``results`` are a part.
    ``sections``: further parts of the report, see ``write_report``.
    """
    utterances = [utterance for utterance, _ in results]
    if utterances and not suite:
        metrics = metrics | {f"test/{name}": value for name, value in score(utterances).items()}
        low, high = bootstrap_interval(utterances)
        metrics |= {"test/wer_low": low, "test/wer_high": high}
        write_rows(run_dir / "results.jsonl", map(vars, utterances))
    metrics |= {f"time/{name}_seconds": value for name, value in timings.items()}
    chosen = (*headline_of(config.get("suite")), *HEADLINE)
    headline = {name: metrics[name] for name in chosen if name in metrics}
    write_report(run_dir / "report.html", title=f"{config.stage.name}: {run_dir.name}",
                 headline=headline, history=history, utterances=utterances,
                 clips=_clips(results), config_yaml=OmegaConf.to_yaml(config, resolve=True),
                 environment=environment(), timings=timings, suite=suite, **sections)
    write_metrics(run_dir / "metrics.json", metrics)
    return metrics


def _clips(results: list[tuple[Utterance, Entry]]) -> dict[str, np.ndarray]:
    """Waveforms of the worst utterances and of some perfect ones."""
    def errors(result: tuple[Utterance, Entry]) -> float:
        counts = counts_of(result[0])
        return counts.errors / max(1, counts.reference_units)

    ranked = sorted((r for r in results if r[1].audio_at), key=errors, reverse=True)
    half = REPORT_CLIPS // 2
    chosen = {id(r): r for r in ranked[:half] + ranked[::-1][:half]}.values()
    reader = ShardReader()
    clips = {u.key: decode(reader.read(entry)[1], name=entry.name) for u, entry in chosen}
    reader.close()
    return clips


def environment() -> dict[str, str]:
    """What the run ran on, for the report."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() \
        else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, "platform": platform.platform(), "python": platform.python_version(),
            "qwen3asr_train": qwen3asr_train.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "lightning": lightning.__version__}
