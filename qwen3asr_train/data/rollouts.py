"""Micro-batches for reinforcement learning: those of one rollout together, each with spares.

The policy answers the utterances of several steps at once, and these steps then train on the
answers. Utterances whose answers are all equally good teach nothing; the spare micro-batches of a
step hold others to take their place. They are steps of the same batch plan from beyond the end of
training, so they too follow from (index, config, seed, step) alone.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from qwen3asr_train.data.plan import BatchPlan, Cell


class Rollout:
    """The micro-batches of a rollout and the spares of each: ``parts``.

    No sequence: Lightning's DeepSpeed strategy walks through batches and copies what it finds.
    """

    def __init__(self, parts: list[tuple[dict, list[dict]]]):
        self.parts = parts


def rollout_cells(plan: BatchPlan, rank: int, ranks: int, accumulate: int, start: int, stop: int,
                  spares: int) -> Iterator[Cell]:
    """The micro-batches of one rank for steps ``start`` … ``stop - 1``, each followed by its
    ``spares``."""
    for k in range(start, stop):
        rows = [plan.cells(k + stop * number, ranks, accumulate)[rank]
                for number in range(1 + spares)]
        for cells in zip(*rows, strict=True):
            yield from cells


class RolloutLoader:
    """Groups the micro-batches of :func:`rollout_cells` by rollout.

    The first micro-batch of a rollout, or of what a resumed run has left of it, gets
    ``meta["rollout"]``, a :class:`Rollout`. ``steps``: how many share one; it begins at their
    multiples.
    """

    def __init__(self, batches: Iterable[dict], accumulate: int, spares: int, steps: int,
                 start: int, stop: int):
        self.batches, self.accumulate, self.spares = batches, accumulate, spares
        self.steps, self.start, self.stop = steps, start, stop

    def __iter__(self) -> Iterator[dict]:
        batches, step = iter(self.batches), self.start
        while step < self.stop:
            last = min(self.stop, (step // self.steps + 1) * self.steps)
            parts = []
            for _ in range((last - step) * self.accumulate):
                batch, *spares = islice(batches, 1 + self.spares)
                parts.append((batch, spares))
            parts[0][0]["meta"]["rollout"] = Rollout(parts)
            for batch, _ in parts:
                yield batch
            step = last
