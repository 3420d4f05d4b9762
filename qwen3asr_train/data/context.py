"""Context biasing: what stands in the system message of a training sample.

A user gives names, hotwords or background; some of it is said in the audio and most is not. Trained
only on contexts that help, a model writes them down unheard, so most lists here hold distractors
from other samples, some hold nothing but distractors, and some order the model to do something else
(Qwen3-ASR obeys no instruction in the prompt). Which, and what, is drawn per sample.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qwen3asr_train.data.shards import is_text
from qwen3asr_train.errors import UserError

SPARE_NAMES = 8
"""Names drawn beyond those wanted, for the ones that turn out to be in the transcript."""

DRAWS_PER_NAME = 3
"""Draws for a name that is wanted, since some repeat others."""

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def candidate_entities(text: str) -> list[str]:
    """What of a text could be an entity: words, or pairs of characters where none are spaced."""
    found = []
    for word in _TOKEN.findall(text):
        if _UNSPACED.search(word):
            found += [word[i:i + 2] for i in range(len(word) - 1)] or [word]
        else:
            found.append(word)
    return found


class EntityTable:
    """How rare every candidate is in a corpus, and a pool of rare ones to draw distractors from.

    ``documents``: ``(text, entities or None)`` of samples; given entities count as rare.
    ``rare_share``: a candidate is rare if at most this share of the documents have it; 0: none but
    the given ones.
    """

    def __init__(self, documents: Iterable[tuple[str, Sequence[str] | None]],
                 rare_share: float = 0.01):
        self._counts: Counter[str] = Counter()
        given: set[str] = set()
        self._documents = 0
        for text, entities in documents:
            self._documents += 1
            self._counts.update({*candidate_entities(text), *(entities or ())})
            given.update(entities or ())
        self._most = max(1, math.floor(rare_share * self._documents)) if rare_share else 0
        self.pool = sorted(given | {c for c, count in self._counts.items() if count <= self._most})
        self._ends = np.cumsum([self._counts[name] for name in self.pool])

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Different names of the pool, as often as samples have them: a name that lists hold more
        seldom than transcripts do would be known as the one that is said. About ``count``: fewer
        where most draws repeat a few names, all of a small pool."""
        if count >= len(self.pool) / 2:
            drawn = rng.permutation(len(self.pool))
        else:
            places = rng.integers(self._ends[-1], size=DRAWS_PER_NAME * count)
            drawn = dict.fromkeys(np.searchsorted(self._ends, places, side="right").tolist())
        return [self.pool[i] for i in drawn][:count]

    def entities_of(self, record: dict, most: int) -> list[str]:
        """Up to ``most`` entities of a sample, the rarest first: given ones, else rare words."""
        if record.get("entities"):
            return list(record["entities"])[:most]
        candidates = sorted(set(candidate_entities(record["text"])),
                            key=lambda c: (self._counts[c], c))
        return [c for c in candidates if 0 < self._counts[c] <= self._most][:most]


@dataclass(frozen=True)
class Context:
    """Shares are probabilities per sample and need not sum to 1: the rest keeps the record's own
    context, or has none (of text alone, with ``text_entities``, a list of others). See
    configs/stage/sft.yaml for what each field means. UserError for a share that is none."""

    entities: float = 0.0
    distractors: float = 0.0
    background: float = 0.0
    instructions: float = 0.0
    text_entities: float | None = None
    list_length: tuple[int, int] = (1, 100)
    most_entities: int = 5
    rare_share: float = 0.01
    formats: tuple[str, ...] = ("{list}",)
    separators: tuple[str, ...] = (", ", " ", "\n", "、")
    orders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("entities", "distractors", "background", "instructions", "text_entities"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"contexts.{name}={share}: a share, from 0 to 1")
        shares = self.entities + self.distractors + self.background + self.instructions
        if shares > 1 + 1e-9:
            raise UserError(f"contexts: entities, distractors, background and instructions are "
                            f"{shares:g} together, more than all samples")
        if not 0 <= self.list_length[0] <= self.list_length[1]:
            raise UserError(f"contexts.list_length={list(self.list_length)}: the fewest and the "
                            "most entries")

    @property
    def on(self) -> bool:
        """Whether any context is made."""
        return self.entities + self.distractors + self.background + self.instructions > 0 \
            or self.text_entities is not None


class DrawnContext(NamedTuple):
    """The system message, and the names that are listed in it.

    A tuple: Lightning's DeepSpeed strategy walks through batches and refuses frozen dataclasses.
    """

    text: str
    names: tuple[str, ...] = ()


class ContextBuilder:
    """Draws the system message of a sample; ``texts``: transcripts that background is made of."""

    def __init__(self, options: Context, table: EntityTable, texts: Sequence[str]):
        self.options, self.table, self.texts = options, table, list(texts)

    def draw(self, record: dict, rng: np.random.Generator) -> DrawnContext:
        """A context for the record; an empty one for none."""
        options, place = self.options, rng.random()
        if options.text_entities is not None and is_text(record):
            return (self._with_entities if place < options.text_entities else
                    self._distractors_only)(record, rng)
        for share, make in ((options.entities, self._with_entities),
                            (options.distractors, self._distractors_only),
                            (options.background, self._background),
                            (options.instructions, self._instruction)):
            if place < share:
                return make(record, rng)
            place -= share
        return DrawnContext(record.get("context") or "")

    def _with_entities(self, record: dict, rng: np.random.Generator) -> DrawnContext:
        entities = self.table.entities_of(record, self.options.most_entities)
        length = self._length(rng)
        names = entities + self._distractors(record, max(0, length - len(entities)), rng)
        return self._list([names[i] for i in rng.permutation(len(names))], rng)

    def _distractors_only(self, record: dict, rng: np.random.Generator) -> DrawnContext:
        return self._list(self._distractors(record, self._length(rng), rng), rng)

    def _background(self, record: dict, rng: np.random.Generator) -> DrawnContext:
        """What other samples say, as a document that the talk may or may not be about."""
        chosen = rng.choice(len(self.texts), size=min(len(self.texts), self._length(rng)),
                            replace=False)
        return DrawnContext(" ".join(self.texts[i] for i in chosen
                                     if self.texts[i] != record["text"]))

    def _instruction(self, record: dict, rng: np.random.Generator) -> DrawnContext:
        """An order, by itself or behind a list."""
        order = str(rng.choice(self.options.orders))
        if rng.random() < 0.5:
            return DrawnContext(order)
        names = self._distractors_only(record, rng)
        return names._replace(text=f"{names.text}\n{order}")

    def _length(self, rng: np.random.Generator) -> int:
        """Entries of a list, log-uniform: short lists are as common as long ones. (From 0 on, of
        one entry more.)"""
        low, high = self.options.list_length
        more = 1 if low == 0 else 0
        return int(np.exp(rng.uniform(np.log(low + more), np.log(high + more + 1)))) - more

    def _distractors(self, record: dict, count: int, rng: np.random.Generator) -> list[str]:
        """``count`` entities of other samples that are not in this one, nor sound like one of its
        own (the record's ``meta.sounds_like``); fewer from a small pool."""
        text = " ".join([record["text"], *(record.get("meta") or {}).get("sounds_like", ())]
                        ).casefold()
        if not count:
            return []
        return [name for name in self.table.draw(count + SPARE_NAMES, rng)
                if name.casefold() not in text][:count]

    def _list(self, names: list[str], rng: np.random.Generator) -> DrawnContext:
        if not names:
            return DrawnContext("")
        joined = str(rng.choice(self.options.separators)).join(names)
        return DrawnContext(str(rng.choice(self.options.formats)).replace("{list}", joined),
                            tuple(names))
