"""Samples of several sources to steps with shares by tokens, and to rows of one length.

Every source is an endless line of its samples, epoch after epoch, each in a drawn order and with a
drawn prompt; a sample covers as many places of the line as it has tokens with a prompt of mean
length. Of each source, step k holds the samples whose middle lies in its k-th stretch, which is as
long as the source's weight says. So shares are exact to within a sample, but for how much longer or
shorter the drawn prompts are than the mean; and step k is a pure function of (sources, config,
seed, k): it does not depend on ranks, workers or micro-batches, and is found without walking there.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.errors import UserError

Layout = Callable[[Sequence[int]], list[list[int]]]
"""Lengths of samples in tokens -> which of them share each row."""


class Item(NamedTuple):
    """One sample as a step holds it: the prompt's number and how many tokens it becomes."""

    entry: Entry
    epoch: int
    way: int
    tokens: int
    source: str


class OmniCell(NamedTuple):
    """What one rank trains on in one micro-batch of one step."""

    step: int
    items: tuple[Item, ...]


Sample = tuple[Entry, Sequence[int]]
"""An entry and its tokens for each of its prompts."""


class Source:
    """The endless line of one source.

    ``tokens``: of each shard, its samples' tokens, of each the mean over its prompts; ``read``:
    shard -> its samples. An epoch is one pass over the shards in a drawn order, cut into groups of
    ``shards_per_group``; a group's samples are in a drawn order, and every prompt comes as often. A
    shard is as long in every epoch, so the group at any place follows from ``tokens`` alone, and
    only groups under way are in memory.
    """

    def __init__(self, name: str, tokens: Mapping[str, float],
                 read: Callable[[str], Sequence[Sample]], seed: int, shards_per_group: int = 16):
        self._shards = [path for path, count in tokens.items() if count]
        if not self._shards:
            raise UserError(f"data.sources.{name}: no sample that can be used")
        self.name, self._read, self._seed = name, read, seed
        self._tokens = np.array([tokens[path] for path in self._shards])
        self._length, self._group_size = float(self._tokens.sum()), shards_per_group
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._samples = lru_cache(maxsize=2)(self._draw_samples)

    def _draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch, and where on its line each group of them ends."""
        rng = sample_rng(self._seed, epoch, f"source/{self.name}")
        order = rng.permutation(len(self._shards))
        starts = np.arange(0, len(order), self._group_size)
        return order, np.cumsum(np.add.reduceat(self._tokens[order], starts))

    def _draw_samples(self, epoch: int, number: int) -> tuple[list[Item], np.ndarray]:
        """The samples of a group of an epoch, and the middle of each on the group's line."""
        rng = sample_rng(self._seed, epoch, f"source/{self.name}/{number}")
        order, _ = self._order(epoch)
        shards = order[number * self._group_size:(number + 1) * self._group_size]
        drawn = [sample for shard in shards for sample in self._read(self._shards[shard])]
        counts, ways = np.array([len(lengths) for _, lengths in drawn]), np.zeros(len(drawn), int)
        for count in np.unique(counts):
            alike = np.flatnonzero(counts == count)
            ways[alike] = rng.permutation(np.arange(len(alike)) % count)
        items, means = [], []
        for i in rng.permutation(len(drawn)):
            (entry, lengths), way = drawn[i], int(ways[i])
            items.append(Item(entry, epoch, way, int(lengths[way]), self.name))
            means.append(sum(lengths) / len(lengths))
        return items, np.cumsum(means) - np.array(means) / 2

    def between(self, begin: float, end: float) -> list[Item]:
        """Samples whose middle lies in ``[begin, end)`` of the line."""
        found, epoch = [], int(begin // self._length)
        while (offset := epoch * self._length) < end:
            ends = self._order(epoch)[1]
            first = int(np.searchsorted(ends, begin - offset, side="right"))
            for number in range(first, len(ends)):
                start = offset + (ends[number - 1] if number else 0.0)
                if start >= end:
                    break
                items, middles = self._samples(epoch, number)
                low, high = np.searchsorted(start + middles, [begin, end])
                found += items[low:high]
            epoch += 1
        return found


class TokenPlan:
    """Steps of ``step_tokens`` from sources by ``weights``, which are scaled to sum to 1."""

    def __init__(self, sources: Sequence[Source], weights: Mapping[str, float], step_tokens: int):
        names = {source.name for source in sources}
        if set(weights) != names or min(weights.values()) < 0 or not sum(weights.values()):
            raise UserError(f"weights of {sorted(weights)}, sources {sorted(names)}: one of at "
                            "least 0 for each, and not all 0")
        total = sum(weights.values())
        self.weights = {name: weight / total for name, weight in weights.items()}
        self.sources, self.step_tokens = list(sources), step_tokens

    def step(self, k: int) -> list[Item]:
        """All samples of global step ``k``, counted from 0."""
        items = []
        for source in self.sources:
            stretch = self.weights[source.name] * self.step_tokens
            items += source.between(k * stretch, (k + 1) * stretch) if stretch else []
        return items

    def cells(self, k: int, ranks: int, accumulate: int) -> list[list[OmniCell]]:
        """Step ``k`` dealt out, alike in tokens: ``[rank][micro_batch]``."""
        dealt = deal(self.step(k), ranks * accumulate)
        return [[OmniCell(k, tuple(dealt[i])) for i in range(rank, ranks * accumulate, ranks)]
                for rank in range(ranks)]

    def walk(self, rank: int, ranks: int, accumulate: int, start: int, stop: int):
        """The micro-batches of one rank for steps ``start`` … ``stop - 1``, in order."""
        for k in range(start, stop):
            yield from self.cells(k, ranks, accumulate)[rank]


def deal(items: Sequence[Item], hands: int) -> list[list[Item]]:
    """Items to so many hands of like sums: the longest first, each to the one with least."""
    order = sorted(items, key=lambda item: (-item.tokens, item.entry.name, item.epoch))
    return [[order[i] for i in hand] for hand in balance([i.tokens for i in order], hands)]


def balance(sizes: Sequence[int], bins: int) -> list[list[int]]:
    """Indices to so many bins: each in turn to the bin that holds least."""
    heap = [(0, number) for number in range(bins)]
    held: list[list[int]] = [[] for _ in range(bins)]
    for index, size in enumerate(sizes):
        filled, number = heapq.heappop(heap)
        held[number].append(index)
        heapq.heappush(heap, (filled + size, number))
    return held


def pack(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices to the fewest rows of at most ``budget`` that :func:`balance` finds, nearly alike, so
    that little is padded. ValueError for a size beyond the budget."""
    if not sizes:
        return []
    if max(sizes) > budget:
        raise ValueError(f"a sample of {max(sizes)} tokens does not fit into {budget}")
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    ordered = [sizes[i] for i in order]
    rows = math.ceil(sum(sizes) / budget)
    while True:
        found = even_out(balance(ordered, rows), ordered)
        if max(sum(ordered[i] for i in row) for row in found) <= budget:
            return [[order[i] for i in row] for row in found if row]
        rows += 1


def apart(sizes: Sequence) -> list[list[int]]:
    """Every sample a row of its own."""
    return [[index] for index in range(len(sizes))]


def together(sizes: Sequence[int]) -> list[list[int]]:
    """Rows of at most twice the longest sample: short ones find company, and attention, which grows
    with the square of a row, stays small beside the rest."""
    return pack(sizes, 2 * max(sizes))


def in_one_row(sizes: Sequence[int]) -> list[list[int]]:
    """All samples in one row, for attention that is told where each begins."""
    return [list(range(len(sizes)))]


def even_out(bins: list[list[int]], sizes: Sequence[int]) -> list[list[int]]:
    """The bins after exchanges that make the fullest one emptier, until none is left or it is
    within half a percent of the mean.

    A bin holds few samples, so that filling them in turn alone leaves some percent between them.
    """
    sums = [sum(sizes[i] for i in held) for held in bins]
    while True:
        full = max(range(len(bins)), key=sums.__getitem__)
        if sums[full] * len(bins) <= 1.005 * sum(sums):
            return bins
        best = None  # the fuller of the two afterwards, the other bin, what goes there and back
        for other in range(len(bins)):
            gap = sums[full] - sums[other]
            for a in bins[full]:
                for b in (*bins[other], None):
                    moved = sizes[a] - (0 if b is None else sizes[b])
                    if 0 < moved < gap:
                        after = max(sums[full] - moved, sums[other] + moved)
                        if best is None or after < best[0]:
                            best = after, other, a, b
        if best is None:
            return bins
        _, other, a, b = best
        bins[full].remove(a)
        bins[other].append(a)
        if b is not None:
            bins[other].remove(b)
            bins[full].append(b)
        sums = [sum(sizes[i] for i in held) for held in bins]
