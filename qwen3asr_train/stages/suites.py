"""Suites: several test sets under several conditions, one table beside published figures."""

import logging
import time
from pathlib import Path
from statistics import median

from omegaconf import DictConfig, OmegaConf
from transformers import Qwen3ASRProcessor

from qwen3asr_train.decoding.generate import Model
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.contexts import entity_recall, false_alarm, obeyed_share
from qwen3asr_train.evaluation.metrics import Utterance, bootstrap_interval, score
from qwen3asr_train.evaluation.tables import Row, with_averages, write_tables
from qwen3asr_train.models.aut import AuT
from qwen3asr_train.options import headline_of
from qwen3asr_train.runtime.metrics import write_rows
from qwen3asr_train.stages.conditions import OFFLINE, Condition, TestSet, find_sets
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.scoring import Results, load_recogniser, score_entries, score_live

log = logging.getLogger(__name__)

COST_WINDOW = 15
"""Chunks over which the cost of a chunk is compared: half a minute, as long as a segment."""


def run_suite(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Score ``stage.init_from`` on every set of ``suite``; tables as JSON, CSV and Markdown.

    Tables and results.jsonl are written after each set. The report shows the transcripts of the
    first set under its first condition.
    """
    started = time.perf_counter()
    suite = OmegaConf.to_container(config.suite, resolve=True)
    if suite.get("aligner"):
        raise UserError(f"suite={suite['name']} is for a forced aligner (RUN/model of "
                        f"stage=aligner), which {config.stage.init_from} is not")
    test_sets = find_sets(suite, config)
    model, processor = load_recogniser(config)
    loaded = time.perf_counter()
    rows: list[Row] = []
    transcripts, shown = [], None
    for test_set in test_sets:
        for condition, results, metrics in _score_set(test_set, model, processor, config):
            rows.append(Row(suite["name"], test_set.name, condition.name, metrics,
                            published(test_set.paper, condition.name)))
            transcripts += [{"set": test_set.name, "condition": condition.name} | vars(utterance)
                            for utterance, _ in results]
            shown = shown or results
        write_tables(rows, run_dir)
        write_rows(run_dir / "results.jsonl", transcripts)
    rows = with_averages(rows, suite.get("averages") or {})
    write_tables(rows, run_dir)
    timings = {"preparing": loaded - started, "testing": time.perf_counter() - loaded}
    return finish_run(config, run_dir, figures(rows, headline_of(suite)), shown or [], [],
                      timings, suite=rows)


def figures(rows: list[Row], headline: dict[str, str]) -> dict[str, float]:
    """Under names of their own those of ``headline`` (name -> SET/CONDITION/METRIC, or the
    difference ``A - B`` or ratio ``A / B`` of two), and ``SET/CONDITION/METRIC`` of every row."""
    found = {f"{row.test_set}/{row.condition}/{name}": value
             for row in rows for name, value in row.metrics.items()}
    chosen = {}
    for name, formula in headline.items():
        left, operator, right = (*formula.split(), "", "")[:3]
        if left not in found or (operator and right not in found):
            continue  # a set or condition that was left out
        chosen[name] = found[left]
        if operator == "-":
            chosen[name] = found[left] - found[right]
        elif operator == "/":
            chosen[name] = found[left] / found[right] if found[right] else float("inf")
    return chosen | found


def _score_set(test_set: TestSet, model: Model, processor: Qwen3ASRProcessor, config: DictConfig):
    """Yields ``(condition, results, metrics)`` of every condition that the model can meet."""
    by_name: dict[str, list[Utterance]] = {}
    for condition in test_set.conditions:
        if isinstance(model, AuT) and (condition.streaming or condition.contexts):
            log.warning("%s: %s is left out: an AuT has no context, and its streams are scored by "
                        "stage=aut", test_set.name, condition.name)
            continue
        results, times = _transcribe(test_set, condition, model, processor, config)
        by_name[condition.name] = utterances = [utterance for utterance, _ in results]
        metrics = measure(utterances) | cost_growth(times)
        if condition.force_language:  # it was told
            metrics = {name: value for name, value in metrics.items()
                       if not name.startswith("lid_accuracy")}
        if condition.orders:
            metrics["obeyed"] = obeyed_share(condition.orders, by_name[OFFLINE], utterances)
        yield condition, results, metrics


def _transcribe(test_set: TestSet, condition: Condition, model: Model,
                processor: Qwen3ASRProcessor, config: DictConfig
                ) -> tuple[Results, list[list[float]]]:
    """Results of one set, and of streams the seconds that each chunk took."""
    if not condition.streaming:
        return score_entries(model, processor, test_set.entries, config, condition=condition), []
    return score_live(model, processor, test_set.entries, config, condition, config.stage.live)


def published(paper: dict[str, float], condition: str) -> dict[str, float]:
    """The figures under a condition: those of ``MODEL CONDITION``, offline those of ``MODEL``."""
    if condition != OFFLINE:
        tail = f" {condition}"
        return {model.removesuffix(tail): rate for model, rate in paper.items()
                if model.endswith(tail)}
    return {model: rate for model, rate in paper.items() if not model.endswith(" streaming")}


def measure(utterances: list[Utterance]) -> dict[str, float]:
    """Error rates with the 95 % interval, and what contexts and sounds add to them."""
    metrics = score(utterances)
    low, high = bootstrap_interval(utterances)
    metrics |= {"wer_low": low, "wer_high": high}
    for name, value in (("entity_recall", entity_recall(utterances)),
                        ("false_alarm", false_alarm(utterances))):
        if value is not None:
            metrics[name] = value
    silent = [u for u in utterances if not u.reference.strip()]
    if silent:
        metrics["none_rate"] = sum(u.predicted_language is None and not u.hypothesis.strip()
                                   for u in silent) / len(silent)
    return metrics


def cost_growth(streams: list[list[float]]) -> dict[str, float]:
    """How much longer late chunks of long streams take than early ones.

    ``streams``: seconds of each chunk. ``cost_growth``: the median of the last 15 chunks over that
    of the first 15, begun with the third (a chunk takes longer the further its segment has come,
    so single chunks do not compare); of several streams the middle one. Streams of less than two
    such stretches do not count.
    """
    growths = [median(times[-COST_WINDOW - 1:-1]) / median(times[2:2 + COST_WINDOW])
               for times in streams if len(times) >= 2 * COST_WINDOW + 3]
    return {"cost_growth": median(growths)} if growths else {}
