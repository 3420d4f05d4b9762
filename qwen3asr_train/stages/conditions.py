"""The test sets of a suite, and the conditions that they are heard under."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

from omegaconf import DictConfig, OmegaConf

from qwen3asr_train.data import augment
from qwen3asr_train.data.context import Context, ContextBuilder, EntityTable
from qwen3asr_train.data.shards import Entry, find_shards, read_entries
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.contexts import Order
from qwen3asr_train.options import as_arguments, headline_of
from qwen3asr_train.stages.setup import as_list, embedded_folders, sample_records

log = logging.getLogger(__name__)

OFFLINE = "offline"
_FIELDS = {"streaming", "window", "force_language", "contexts", "augmentation", "orders"}


@dataclass(frozen=True)
class Condition:
    """How a test set is heard; by default as it is, all of a clip at once.

    ``contexts`` draws system messages instead of the records' own; ``augmentation`` changes the
    audio; both by (seed 0, key), so every model meets the same. ``window``: the encoder's attention
    window in seconds, None: that of its config. ``force_language``: the model is told the
    reference's language. ``streaming``: the audio arrives bit by bit. ``orders``: those that
    ``contexts`` has, to tell whether they were obeyed.
    """

    name: str = OFFLINE
    contexts: ContextBuilder | None = None
    augmentation: augment.Augmentation = augment.IDENTITY
    window: int | None = None
    force_language: bool = False
    streaming: bool = False
    orders: list[Order] = field(default_factory=list)


@dataclass(frozen=True)
class TestSet:
    """Samples to score, the conditions to score them under, and published error rates."""

    name: str
    entries: list[Entry]
    conditions: list[Condition]
    paper: dict[str, float]


def find_sets(suite: dict, config: DictConfig) -> list[TestSet]:
    """The sets of a suite whose shards are there; the others are left out with a warning.

    All that can be wrong with a suite is found here, before hours of scoring. Raises UserError for
    conditions, averages and headline figures that make no sense, and when no set is there.
    """
    _check(suite, config)
    found = []
    for name, options in suite["sets"].items():
        if "corpus" in options:
            patterns = [embedded_folders(config.data, options["corpus"])["test"]]
        elif options.get("data") is None:
            raise UserError(f"suite={suite['name']}: {name} has no shards; name them, e.g. "
                            "data.test=shards/mine/test")
        else:
            patterns = as_list(options["data"])
        try:
            shards = find_shards(patterns)
        except UserError as error:
            log.warning("suite %s: %s is left out: %s", suite["name"], name, error)
            continue
        records = cache(partial(sample_records, shards, config.stage.context_texts))
        found.append(TestSet(
            name, [entry for shard in shards for entry in read_entries(shard)],
            [build_condition(condition, config, shards, records)
             for condition in _conditions_of(suite, name)], options.get("paper") or {}))
    if not found:
        raise UserError(f"suite={suite['name']}: none of its shards is there; the head of "
                        f"configs/suite/{suite['name']}.yaml says how to make them")
    return found


def _conditions_of(suite: dict, name: str) -> list[str]:
    return suite["sets"][name].get("conditions") or suite["conditions"]


def _check(suite: dict, config: DictConfig) -> None:
    """UserError for what names nothing."""
    where, known = f"suite={suite['name']}: ", config.stage.conditions
    for name in suite["sets"]:
        conditions = _conditions_of(suite, name)
        for place, condition in enumerate(conditions):
            if condition not in known:
                raise UserError(f"{where}no condition {condition!r} in stage.conditions; there are "
                                f"{sorted(known)}")
            if (known[condition] or {}).get("orders") and OFFLINE not in conditions[:place]:
                raise UserError(f"{where}{condition} needs the condition {OFFLINE} before it in "
                                f"{name}, to compare with")
    for name, sets in (suite.get("averages") or {}).items():
        if name in suite["sets"] or not sets or set(sets) - set(suite["sets"]):
            raise UserError(f"{where}the average {name!r} needs a name of its own and sets out of "
                            f"{sorted(suite['sets'])}")
    for name, formula in headline_of(suite).items():
        parts = formula.split()
        if not (len(parts) == 1 or (len(parts) == 3 and parts[1] in ("-", "/"))):
            raise UserError(f"{where}headline {name}={formula!r}: SET/CONDITION/FIGURE, or two of "
                            "them with ' - ' or ' / ' between")


def build_condition(name: str, config: DictConfig, shards: list[str],
                    records: Callable[[], list[dict]]) -> Condition:
    """A condition of ``stage.conditions`` for the test set in ``shards``. Contexts are made of its
    ``records``, which nothing else reads. Raises UserError for fields that there are not."""
    options = OmegaConf.to_container(config.stage.conditions[name] or OmegaConf.create({}))
    if unknown := set(options) - _FIELDS:
        raise UserError(f"stage.conditions.{name}: unknown {sorted(unknown)}; there are "
                        f"{sorted(_FIELDS)}")
    made = {field: options[field] for field in ("streaming", "window", "force_language")
            if field in options}
    try:
        made["orders"] = [Order(**order) for order in options.get("orders", [])]
        made["augmentation"] = augment.build(options.get("augmentation"))
        if "contexts" in options:
            contexts = as_arguments(options["contexts"]) | {
                "orders": tuple(order.text for order in made["orders"])}
            made["contexts"] = _builder(name, Context(**contexts), shards, records())
    except TypeError as error:  # a field that a dataclass lacks
        raise UserError(f"stage.conditions.{name}: {error}") from error
    return Condition(name, **made)


def _builder(name: str, options: Context, shards: list[str], records: list[dict]
             ) -> ContextBuilder:
    table = EntityTable(((r["text"], r.get("entities")) for r in records), options.rare_share)
    if (options.entities or options.distractors) and not table.pool:
        raise UserError(f"stage.conditions.{name} lists names, but no record of {shards[0]} or "
                        "its set has `entities`; contexts.rare_share above 0 takes rare words")
    return ContextBuilder(options, table, [r["text"] for r in records if r["text"]])
