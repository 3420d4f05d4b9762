"""Where a stream may be cut into segments: pauses, by the energy of 10 ms frames."""

import numpy as np

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.decoding.pauses import FRAME, frame_energy, runs

_SMOOTH = 10  # frames averaged for the level of speech and for the quietest place


class Pauses:
    """The energy of one segment.

    A pause is ``decibels`` below the loudest 100 ms of the segment. Quiet before the first sound
    is none.
    """

    def __init__(self, decibels: float):
        self._ratio = 10 ** (-decibels / 10)
        self._energy = np.empty(0, np.float32)  # (frames,)
        self._rest = np.empty(0, np.float32)  # samples of a frame that is not whole

    def accept(self, samples: np.ndarray) -> None:
        """float32 ``(samples,)`` of the segment, in order."""
        joined = np.concatenate([self._rest, samples])
        energy = frame_energy(joined)
        self._energy = np.concatenate([self._energy, energy.astype(np.float32)])
        self._rest = joined[len(energy) * FRAME:]

    def cut(self, earliest: int, seconds: float) -> int | None:
        """The sample of the segment at which to cut, ``earliest`` or later; None: nowhere.

        The middle of the longest pause of at least ``seconds`` that lasts beyond ``earliest``; if
        ``seconds`` are not above 0, the quietest 100 ms whatever they hold.
        """
        first = -(-earliest // FRAME)
        newest = self._energy[first:]
        if len(newest) == 0:
            return None
        if seconds <= 0:
            middle = int(np.argmin(_smooth(newest))) + min(_SMOOTH, len(newest)) // 2
            return max(first + middle, 1) * FRAME
        quiet = self._energy < self._ratio * _smooth(self._energy).max()
        starts, stops = runs(quiet)
        long = (stops - starts) * FRAME >= seconds * SAMPLE_RATE
        kept = long & (starts > 0) & (stops > first)
        if not kept.any():
            return None
        longest = np.argmax(np.where(kept, stops - starts, 0))
        return max(int(starts[longest] + stops[longest]) // 2, first) * FRAME


def _smooth(energy: np.ndarray) -> np.ndarray:
    """Means over 100 ms, or over everything where there is less."""
    width = min(_SMOOTH, len(energy))
    return np.convolve(energy, np.full(width, 1 / width, np.float32), mode="valid")
