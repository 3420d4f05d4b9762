"""Long training samples made of several: others of the same language are drawn for a sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3asr_train.data.shards import Entry
from qwen3asr_train.errors import UserError


@dataclass(frozen=True)
class Joins:
    """``share`` of the samples go on with others, until they are as long as a length drawn from
    ``seconds`` allows, with pauses of ``pause_seconds`` between them.

    Raises UserError for what makes no sense.
    """

    share: float = 0.0
    seconds: tuple[float, float] = (10.0, 30.0)
    pause_seconds: tuple[float, float] = (0.1, 0.6)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"data.joins.share={self.share}: a share is from 0 to 1")
        for name in ("seconds", "pause_seconds"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UserError(f"data.joins.{name}={[low, high]}: [least, most]")


class Joiner:
    """Draws what follows a sample, from ``entries`` of its language."""

    def __init__(self, options: Joins, entries: Sequence[Entry]):
        self.options = options
        self._by_language: dict[str | None, list[Entry]] = {}
        for entry in entries:
            self._by_language.setdefault(entry.language, []).append(entry)

    def following(self, entry: Entry, rng: np.random.Generator) -> list[Entry]:
        """Entries that come after ``entry``; none for most samples and for what has no language."""
        pool = self._by_language.get(entry.language, [])
        if rng.random() >= self.options.share or not pool or not entry.language:
            return []
        room = rng.uniform(*self.options.seconds) - entry.duration
        pause = self.options.pause_seconds[1]
        found = []
        while True:
            candidate = pool[int(rng.integers(len(pool)))]
            room -= candidate.duration + pause
            if room < 0:
                return found
            found.append(candidate)
