"""Suites: several test sets under several conditions, one table beside published figures."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from omegaconf import DictConfig, OmegaConf
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data import augment
from qwen3asr_train.data.context import Context, ContextBuilder, EntityTable
from qwen3asr_train.data.shards import Entry, find_shards, read_entries
from qwen3asr_train.decoding.generate import Model
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.contexts import Order, entity_recall, false_alarm, obeyed_share
from qwen3asr_train.evaluation.metrics import Utterance, bootstrap_interval, score
from qwen3asr_train.evaluation.tables import Row, with_averages, write_tables
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.scoring import (
    OFFLINE,
    Condition,
    Results,
    load_recogniser,
    score_entries,
    score_live,
)
from qwen3asr_train.stages.setup import as_list, embedded_folders, sample_records

log = logging.getLogger(__name__)

COST_WINDOW = 15
"""Chunks over which the cost of a chunk is compared: half a minute, as long as a segment."""


@dataclass(frozen=True)
class TestSet:
    """Samples to score, the conditions to score them under, and published error rates."""

    name: str
    shards: list[str]
    entries: list[Entry]
    conditions: list[str]
    paper: dict[str, float]


def run_suite(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Score ``stage.init_from`` on every set of ``suite``; tables as JSON, CSV and Markdown."""
    started = time.perf_counter()
    suite = OmegaConf.to_container(config.suite, resolve=True)
    test_sets = find_sets(suite, config)
    model, processor = load_recogniser(config)
    loaded = time.perf_counter()
    rows, shown = [], []
    for test_set in test_sets:
        found, results = _score_set(suite["name"], test_set, model, processor, config)
        rows += found
        shown = shown or results
    rows = with_averages(rows, suite.get("averages") or {})
    write_tables(rows, run_dir)
    timings = {"preparing": loaded - started, "testing": time.perf_counter() - loaded}
    return finish_run(config, run_dir, figures(rows, suite.get("headline") or {}), shown, [],
                      timings, suite=rows)


def figures(rows: list[Row], headline: dict[str, str]) -> dict[str, float]:
    """``SET/CONDITION/METRIC`` of every row, and under names of their own those of ``headline``
    (name -> SET/CONDITION/METRIC, or the difference ``A - B`` or ratio ``A / B`` of two)."""
    found = {f"{row.test_set}/{row.condition}/{name}": value
             for row in rows for name, value in row.metrics.items()}
    for name, formula in headline.items():
        left, operator, right = formula.split(" ") if " " in formula else (formula, "", "")
        if left not in found or (operator and right not in found):
            continue  # a set or condition that was left out
        found[name] = found[left]
        if operator == "-":
            found[name] = found[left] - found[right]
        elif operator == "/":
            found[name] = found[left] / found[right] if found[right] else float("inf")
    return found


def find_sets(suite: dict, config: DictConfig) -> list[TestSet]:
    """The sets of a suite whose shards are there; the others are left out with a warning.

    Raises UserError when none is there, and for conditions that do not exist.
    """
    conditions = {name: options.get("conditions") or suite["conditions"]
                  for name, options in suite["sets"].items()}
    if unknown := {c for names in conditions.values() for c in names} - {*config.stage.conditions}:
        raise UserError(f"suite={suite['name']}: no condition {sorted(unknown)[0]!r} in "
                        f"stage.conditions; there are {sorted(config.stage.conditions)}")
    found = []
    for name, options in suite["sets"].items():
        patterns = as_list(options["data"]) if "data" in options else \
            [embedded_folders(config.data, options["corpus"])["test"]]
        try:
            shards = find_shards(patterns)
        except UserError as error:
            log.warning("suite %s: %s is left out: %s", suite["name"], name, error)
            continue
        entries = [entry for shard in shards for entry in read_entries(shard)]
        found.append(TestSet(name, shards, entries, conditions[name], options.get("paper") or {}))
    if not found:
        raise UserError(f"suite={suite['name']}: none of its shards is there; the head of "
                        f"configs/suite/{suite['name']}.yaml says how to make them")
    return found


def _score_set(suite: str, test_set: TestSet, model: Model, processor: Qwen3ASRProcessor,
               config: DictConfig) -> tuple[list[Row], Results]:
    """A row for each condition, and the results under the first of them."""
    rows, by_condition = [], {}
    for name in test_set.conditions:
        options = config.stage.conditions[name] or OmegaConf.create({})
        condition = build_condition(name, options, test_set, config)
        times: list[list[float]] = []
        if condition.streaming:
            streamed = score_live(model, processor, test_set.entries, config, condition,
                                  config.stage.live)
            results, times = streamed.results, streamed.chunk_seconds
        else:
            results = score_entries(model, processor, test_set.entries, config, condition=condition)
        by_condition[name] = utterances = [utterance for utterance, _ in results]
        metrics = measure(utterances) | cost_growth(times)
        if orders := orders_of(options):
            plain = by_condition.get(OFFLINE.name)
            if plain is None:
                raise UserError(f"suite={suite}: {name} needs the condition "
                                f"{OFFLINE.name} before it in {test_set.name}")
            metrics["obeyed"] = obeyed_share(orders, plain, utterances)
        rows.append(Row(suite, test_set.name, name, metrics,
                        published(test_set.paper, name)))
        if name == test_set.conditions[0]:
            first = results
    return rows, first


def published(paper: dict[str, float], condition: str) -> dict[str, float]:
    """The figures under a condition: those of ``MODEL CONDITION``, offline those of ``MODEL``."""
    if condition != OFFLINE.name:
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


def build_condition(name: str, options: DictConfig, test_set: TestSet, config: DictConfig
                    ) -> Condition:
    """A condition of ``stage.conditions`` for one test set, whose samples its contexts are of."""
    known = {"streaming", "window", "force_language", "contexts", "augmentation", "orders"}
    if unknown := set(options) - known:
        raise UserError(f"stage.conditions.{name}: unknown {sorted(unknown)}; there are "
                        f"{sorted(known)}")
    made = {field: options[field] for field in ("streaming", "window", "force_language")
            if field in options}
    if "augmentation" in options:
        made["augmentation"] = augment.build(OmegaConf.to_container(options.augmentation))
    if "contexts" in options:
        contexts = {key: tuple(value) if isinstance(value, list) else value for key, value in
                    OmegaConf.to_container(options.contexts).items()}
        if orders := orders_of(options):
            contexts["orders"] = tuple(order.text for order in orders)
        records = sample_records(test_set.shards, config.stage.context_texts)
        table = EntityTable(((r["text"], r.get("entities")) for r in records),
                            contexts.get("rare_share", Context.rare_share))
        made["contexts"] = ContextBuilder(Context(**contexts), table,
                                          [r["text"] for r in records if r["text"]])
    return Condition(name, **made)


def orders_of(options: DictConfig) -> list[Order]:
    """The orders of a condition, if it has any."""
    return [Order(**order) for order in OmegaConf.to_container(
        options.get("orders") or OmegaConf.create([]))]
