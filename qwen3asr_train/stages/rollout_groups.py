"""What a rollout is made of, and what of it a checkpoint holds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from qwen3asr_train.data.collate import Example
from qwen3asr_train.data.context import DrawnContext
from qwen3asr_train.data.dataset import sum_over_ranks
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.decoding.policy_server import Answer
from qwen3asr_train.stages.scoring import gather_lists

FLAT = 1e-6
"""Rewards of a group that differ less than this have no variance."""


@dataclass
class Group:
    """The answers to one utterance. ``answers``: ids, the end included, and the log-probabilities
    they were sampled with; ``old``: those of the training pass, where it was asked. ``planned``:
    the step of the batch plan that it comes from."""

    planned: int
    entry: Entry
    record: dict
    context: DrawnContext
    example: Example
    waveform: np.ndarray
    answers: list[Answer]
    old: list[list[float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    audio: Tensor | None = None

    @property
    def name(self) -> str:
        """The utterance, also among copies of its own, other epochs and other data sets."""
        return f"{self.planned}/{self.entry.name}#{self.entry.copy}"

    @property
    def drawn_as(self) -> str:
        """What the randomness of its answers follows from, wherever its shard lies."""
        return f"{self.planned}/{self.entry.key}#{self.entry.copy}/answers"

    @property
    def whole(self) -> bool:
        """Whether every answer has a reward."""
        return all(map(math.isfinite, self.rewards))

    @property
    def flat(self) -> bool:
        """Whether all answers are equally good."""
        return max(self.rewards) - min(self.rewards) < FLAT


class Answered:
    """What a micro-batch trains on: its ``groups``, as tensors for the loss in ``inputs``.

    Not a mapping, for the same reason as :class:`~qwen3asr_train.data.rollouts.Rollout`.
    """

    def __init__(self, groups: list[Group], inputs: dict[str, Tensor]):
        self.groups, self.inputs = groups, inputs


class Rolled(NamedTuple):
    """A group and the micro-batch that trains on it: the ``part``-th of ``step`` on its rank."""

    step: int
    part: int
    group: Group


class Underway:
    """Answers of a rollout that an earlier process began: of each of its steps still to come."""

    def __init__(self, state: dict | None = None):
        state = state or {"steps": [], "groups": []}
        # a step all of whose groups were alike trains on none of them, and is not answered again
        self._saved: dict[int, list[tuple]] = {step: [] for step in state["steps"]}
        for step, *saved in state["groups"]:
            self._saved[step].append(saved)

    @staticmethod
    def state(steps: Iterable[int], rolled: Sequence[Rolled]) -> dict:
        """For a checkpoint, from all ranks: ``steps`` still to come, of which all know the same,
        and this rank's groups, in the order in which they are trained on."""
        steps = sorted(set(steps))
        return {"steps": steps, "groups": gather_lists(
            [(step, part, group.name, group.answers, group.old) for step, part, group in rolled
             if step in steps])}

    def restore(self, steps: Sequence[int], own: Sequence[list[Group]], spares: Sequence[Group]
                ) -> dict[int, list[Group]]:
        """Place of a micro-batch -> its groups, with their answers.

        ``steps``, ``own``: of each micro-batch of this rank. Which utterances a rank has depends
        on the number of ranks; if any of a step's is missing somewhere, the step is left out.
        """
        found: dict[int, list[Group]] = {}
        spare = {group.name: group for group in spares}
        for step, saved in self._saved.items():
            places = [i for i, other in enumerate(steps) if other == step]
            here = {group.name: (i, group) for i in places for group in own[i]}
            groups: dict[int, list[Group]] = {i: [] for i in places}
            for part, name, answers, old in saved:
                if name not in here and name in spare and places:
                    here[name] = places[min(part, len(places) - 1)], spare.pop(name)
                if name in here:
                    place, group = here[name]
                    group.answers = [(list(tokens), list(logs)) for tokens, logs in answers]
                    group.old = [list(logs) for logs in old]
                    groups[place].append(group)
            if sum_over_ranks(sum(map(len, groups.values())))[0] == len(saved):
                found |= groups
        return found
