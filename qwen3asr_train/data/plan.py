"""The batch plan: which samples make up global step k, and which rank holds which of them.

A pure function of (indexes, config, seed, step). The sample set of a step does not depend on the
number of ranks, workers or micro-batches, so a run resumes at any step on any number of ranks.

An epoch is one pass over the shards in a drawn order, cut into *groups* of consecutive shards; only
one group's entries are in memory. A group's samples are sorted by length (with some jitter, so that
batches differ between epochs) and the sorted line is cut into steps of equal audio seconds. How
many steps a group holds follows from its total seconds alone, which the index headers give, so the
group of step k is found without reading any entry. The idea of an epoch that is a line cut at equal
costs, rather than a stream filled greedily, is what makes the jump possible; compare lhotse's
``DynamicBucketingSampler``, whose steps are known only by running it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from qwen3asr_train.data.mixture import draw_entries, drawn_counts, mixture_rates
from qwen3asr_train.data.shards import Entry, ShardSummary, read_entries, read_summary
from qwen3asr_train.errors import UserError

MIN_COST = 0.1
"""Seconds that a sample counts for at least, so that text without audio has a place on the line."""


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """A 64-bit seed from (seed, epoch, key): the same in every process, unlike ``hash``."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator for everything random about one sample in one epoch."""
    return np.random.default_rng(sample_seed(seed, epoch, key))


@dataclass(frozen=True)
class Cell:
    """What one rank trains on in one micro-batch of one step; ``entries`` may be empty."""

    step: int
    epoch: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class _Group:
    shards: tuple[int, ...]
    first_step: int  # within the epoch
    steps: int


class BatchPlan:
    """Steps over a set of shards; see the module's text.

    ``batch_seconds``: audio seconds per global step. ``max_seconds``: longer samples are left out
    (``dropped`` counts them). ``shards_per_group``: how many shards are shuffled together.
    ``length_jitter``: standard deviation of the relative noise on lengths before sorting.
    ``sets``, ``shares``, ``temperature``: the mixture, see :func:`mixture_rates`; without it every
    sample comes once an epoch. ``read``: shard path -> entries, by default from the index on disk.
    """

    def __init__(self, sets: Mapping[str, Sequence[ShardSummary]], *, batch_seconds: float,
                 seed: int, max_seconds: float = 30.0, shards_per_group: int = 16,
                 length_jitter: float = 0.1, shares: Mapping[str, float] | None = None,
                 temperature: float = 1.0, read: Callable[[str], list[Entry]] = read_entries):
        self.batch_seconds, self.seed, self.max_seconds = batch_seconds, seed, max_seconds
        self.shards_per_group, self.length_jitter = shards_per_group, length_jitter
        self._read = read
        self.dropped = 0
        usable = {name: [kept for shard in shards if (kept := self._usable(shard)).samples]
                  for name, shards in sets.items()}
        self.shards = [shard for shards in usable.values() for shard in shards]
        self.samples = sum(shard.samples for shard in self.shards)
        if not self.samples:
            raise UserError(f"nothing to train on: {sum(map(len, sets.values()))} shards hold no "
                            f"sample of at most {max_seconds:g} s (data.max_seconds)")
        self._rates = None if shares is None and temperature == 1 else mixture_rates(
            usable, shares, temperature)
        cost = sum(map(self._shard_cost, self.shards))
        # never more steps than samples: a step must hold at least one
        self.steps_per_epoch = int(max(1, min(cost // batch_seconds, self._least_samples())))
        # of this group and the next, also where spares are taken from beyond the end of training
        self._groups = lru_cache(maxsize=4)(self._draw_groups)
        self._steps = lru_cache(maxsize=4)(self._cut_group)

    @classmethod
    def from_paths(cls, sets: Mapping[str, Sequence[str]], **options) -> "BatchPlan":
        """A plan over data sets of shards by their paths, from the headers of their indexes."""
        return cls({name: [read_summary(path) for path in paths] for name, paths in sets.items()},
                   **options)

    def _usable(self, shard: ShardSummary) -> ShardSummary:
        """The summary without samples that are too long; reads the entries only if some are."""
        if shard.max_seconds <= self.max_seconds:
            return shard
        entries = self._read(shard.path)
        fitting = [entry for entry in entries if entry.duration <= self.max_seconds]
        self.dropped += len(entries) - len(fitting)
        return ShardSummary.of(shard.path, fitting)

    @staticmethod
    def _shard_cost(shard: ShardSummary) -> float:
        return max(shard.seconds, shard.samples * MIN_COST)

    def _least_samples(self) -> int:
        """Samples that every epoch has at least; not 0, since some rate is at least 1."""
        if self._rates is None:
            return self.samples
        return sum(int(count * self._rates[shard.path].get(language, 0.0))
                   for shard in self.shards for language, (count, _) in shard.languages.items())

    def _drawn(self, epoch: int, shard: ShardSummary) -> tuple[dict[str, int] | None, int, float]:
        """What an epoch takes from a shard: counts by language (None: all), samples, cost."""
        if self._rates is None:
            return None, shard.samples, self._shard_cost(shard)
        rng = sample_rng(self.seed, epoch, f"mixture/{shard.path}")
        counts = drawn_counts(shard, self._rates[shard.path], rng)
        cost = sum(max(seconds / samples, MIN_COST) * counts[language]
                   for language, (samples, seconds) in shard.languages.items())
        return counts, sum(counts.values()), cost

    def _draw_groups(self, epoch: int) -> list[_Group]:
        order = sample_rng(self.seed, epoch, "shards").permutation(len(self.shards))
        drawn = [self._drawn(epoch, shard) for shard in self.shards]
        counts = np.array([count for _, count, _ in drawn])
        costs = np.array([cost for *_, cost in drawn])
        step_cost = costs.sum() / self.steps_per_epoch
        members: list[list[int]] = [[]]
        for shard in order:
            if not counts[shard]:
                continue
            full = len(members[-1]) >= self.shards_per_group
            if full and costs[members[-1]].sum() >= step_cost:
                members.append([])
            members[-1].append(int(shard))
        # a rest worth less than a step joins the group before it
        if len(members) > 1 and costs[members[-1]].sum() < step_cost:
            rest = members.pop()
            members[-1] += rest
        steps = share_steps([costs[group].sum() for group in members],
                            [counts[group].sum() for group in members], self.steps_per_epoch)
        firsts = np.cumsum(steps) - steps
        return [_Group(tuple(group), int(first), int(count))
                for group, first, count in zip(members, firsts, steps, strict=True)]

    def _cut_group(self, epoch: int, number: int) -> list[tuple[Entry, ...]]:
        """The steps of one group, in the order in which they are trained."""
        group = self._groups(epoch)[number]
        entries = [entry for shard in group.shards for entry in self._entries(epoch, shard)]
        rng = sample_rng(self.seed, epoch, f"group/{group.first_step}")
        cost = np.array([max(entry.duration, MIN_COST) for entry in entries])
        jittered = cost * np.exp(self.length_jitter * rng.standard_normal(len(entries)))
        order = np.argsort(jittered, kind="stable")
        cuts = cut_evenly(cost[order], group.steps)
        steps = [tuple(entries[i] for i in order[a:b])
                 for a, b in pairwise(cuts)]
        return [steps[i] for i in rng.permutation(len(steps))]

    def _entries(self, epoch: int, number: int) -> list[Entry]:
        """What an epoch takes from a shard."""
        shard = self.shards[number]
        entries = [e for e in self._read(shard.path) if e.duration <= self.max_seconds]
        counts, *_ = self._drawn(epoch, shard)
        if counts is None:
            return entries
        return draw_entries(entries, counts, sample_rng(self.seed, epoch, f"draw/{shard.path}"))

    def step(self, k: int) -> tuple[int, tuple[Entry, ...]]:
        """``(epoch, samples)`` of global step ``k``, counted from 0 over all epochs."""
        epoch, within = divmod(k, self.steps_per_epoch)
        groups = self._groups(epoch)
        number = int(np.searchsorted([g.first_step for g in groups], within, side="right")) - 1
        return epoch, self._steps(epoch, number)[within - groups[number].first_step]

    def cells(self, k: int, ranks: int, accumulate: int) -> list[list[Cell]]:
        """Step ``k`` dealt out: ``[rank][micro_batch]``, alike in length inside each cell."""
        epoch, entries = self.step(k)
        ordered = sorted(entries, key=lambda entry: (-entry.duration, entry.key))
        cost = np.array([max(entry.duration, MIN_COST) for entry in ordered])
        cuts = cut_evenly(cost, ranks * accumulate, allow_empty=True)
        return [[Cell(k, epoch, tuple(ordered[cuts[i]:cuts[i + 1]]))
                 for i in range(rank, ranks * accumulate, ranks)] for rank in range(ranks)]

    def walk(self, rank: int, ranks: int, accumulate: int, start: int, stop: int) -> Iterator[Cell]:
        """The micro-batches of one rank for steps ``start`` … ``stop - 1``, in order."""
        for k in range(start, stop):
            yield from self.cells(k, ranks, accumulate)[rank]


def share_steps(costs: Sequence[float], samples: Sequence[int], steps: int) -> np.ndarray:
    """``steps`` over groups in proportion to cost, at least 1 and at most its samples to each.

    Raises ValueError unless ``len(costs) <= steps <= sum(samples)``.
    """
    if not len(costs) <= steps <= sum(samples):
        raise ValueError(f"{steps} steps cannot be shared by groups of {list(samples)} samples")
    line = np.cumsum(costs)
    bounds = np.floor(line / line[-1] * steps + 0.5).astype(int)
    shares = np.clip(np.diff(bounds, prepend=0), 1, samples)
    while (excess := int(shares.sum()) - steps) != 0:
        # rare: clipping moved some; take from, or give to, whoever has most room
        room = shares - 1 if excess > 0 else np.asarray(samples) - shares
        shares[int(np.argmax(room))] -= 1 if excess > 0 else -1
    return shares


def cut_evenly(cost: np.ndarray, pieces: int, allow_empty: bool = False) -> np.ndarray:
    """Bounds ``(pieces + 1,)`` that cut ``cost`` ``(n,)`` into contiguous pieces of like sum.

    An item goes to the piece in which its middle lies. Every piece gets at least one item unless
    ``allow_empty`` (then the first pieces are filled when there are fewer items than pieces).
    """
    count = len(cost)
    if count < pieces:
        if not allow_empty:
            raise ValueError(f"{count} items cannot fill {pieces} pieces")
        return np.minimum(np.arange(pieces + 1), count)
    middle = np.cumsum(cost) - cost / 2
    bounds = np.searchsorted(middle, np.arange(pieces + 1) * (cost.sum() / pieces))
    bounds[0], bounds[-1] = 0, count
    index = np.arange(pieces + 1)
    bounds = np.maximum.accumulate(bounds - index) + index  # each piece starts after the one before
    return np.minimum(bounds, count - pieces + index)


def longest_first(lengths: Sequence[float], most: float, cost: Callable[[float], float]
                  ) -> list[list[int]]:
    """Indices, the longest first, in batches: each has as many as cost at most ``most`` when all
    are padded to its longest, and one at least."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * cost(lengths[batches[-1][0]]) > most:
            batches.append([])
        batches[-1].append(index)
    return batches


def evaluation_cells(entries: Sequence[Entry], batch_seconds: float, rank: int,
                     ranks: int) -> list[Cell]:
    """Every sample once, longest first, in batches of at most ``batch_seconds`` padded seconds.

    All ranks get the same number of cells; a cell may be empty.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.duration, entry.key))
    batches = [[ordered[i] for i in batch] for batch in longest_first(
        [entry.duration for entry in ordered], batch_seconds,
        lambda seconds: max(seconds, MIN_COST))]
    batches += [[]] * (-len(batches) % ranks)
    return [Cell(i, 0, tuple(batch)) for i, batch in enumerate(batches) if i % ranks == rank]
