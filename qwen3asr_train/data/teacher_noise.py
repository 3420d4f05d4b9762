"""Errors of a made-up teacher on exact word times: what a student trained on them has to see past.
"""

from dataclasses import dataclass

import numpy as np

from qwen3asr_train.data.plan import sample_rng, sample_seed
from qwen3asr_train.errors import UserError

_TOUCH_SECONDS = 0.02  # words that are no further apart have one boundary


@dataclass(frozen=True)
class TeacherNoise:
    """``jitter_ms``: standard deviation of Gaussian noise on every boundary. Words that touch have
    one between them, as the states of an aligner do; noise on each alone would, once sorted, make a
    gap of it: a bias that no aligner has. ``shift_share`` of all words (which ones follows from
    their spelling: the teacher is always wrong about them) come ``shift_ms`` late. ``gross_share``
    of the words are somewhere up to ``gross_ms`` away. Times that run backwards after that are the
    nearest ones, in squares, that do not.

    Raises UserError for what makes no sense.
    """

    jitter_ms: float = 0.0
    shift_share: float = 0.0
    shift_ms: float = 0.0
    gross_share: float = 0.0
    gross_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift_share", "gross_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"stage.teacher.{name}={getattr(self, name)}: a share is from 0 to "
                                "1")
        if min(self.jitter_ms, self.gross_ms) < 0:
            raise UserError("stage.teacher.jitter_ms and gross_ms: not below 0")

    @property
    def on(self) -> bool:
        """Whether any time changes."""
        return bool(self.jitter_ms or self.shift_share * self.shift_ms
                    or self.gross_share * self.gross_ms)

    def of(self, record: dict, seconds: float, seed: int, key: str) -> dict:
        """The record with the teacher's times, in order and inside the clip of ``seconds``.

        They follow from (seed, key): a teacher labels a clip once, not anew in every epoch.
        """
        if not self.on or not record.get("words"):
            return record
        words = record["words"]
        if any(time is None for _, *pair in words for time in pair):
            return record  # not the exact times that this is meant for
        rng = sample_rng(seed, 0, f"{key}/teacher")
        times = np.array([pair for _, *pair in words], dtype=float)  # (words, 2)
        jitter = rng.normal(0.0, self.jitter_ms / 1000, times.shape)
        touching = times[1:, 0] - times[:-1, 1] < _TOUCH_SECONDS
        jitter[1:, 0] = np.where(touching, jitter[:-1, 1], jitter[1:, 0])
        times += jitter
        shifted = np.array([sample_seed(0, 0, word.lower()) / 2**64 < self.shift_share
                            for word, *_ in words])
        times[shifted] += self.shift_ms / 1000
        gross = rng.random(len(words)) < self.gross_share
        reach = self.gross_ms / 1000
        times[gross] += rng.uniform(-reach, reach, (int(gross.sum()), 1))
        ordered = np.clip(nearest_monotone(times.ravel()), 0.0, seconds).reshape(-1, 2)
        return record | {"words": [[word, round(float(a), 4), round(float(b), 4)]
                                   for (word, *_), (a, b) in zip(words, ordered, strict=True)]}


def nearest_monotone(values: np.ndarray) -> np.ndarray:
    """The sequence that never decreases and is nearest in squares: neighbours out of order take
    their mean, until there are none (pool adjacent violators; Ayer et al. 1955)."""
    blocks: list[tuple[float, int]] = []  # mean and length
    for value in values.tolist():
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, length = blocks.pop()
            mean = (before * length + mean * count) / (length + count)
            count += length
        blocks.append((mean, count))
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])
