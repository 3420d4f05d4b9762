"""Where a recording can be cut without cutting words, by the energy of its 10 ms frames."""

import math

import numpy as np

from qwen3asr_train.data.audio import SAMPLE_RATE

FRAME = 160  # samples in one energy frame (10 ms)
_SMOOTH = 10  # frames averaged when looking for a quiet place
_SEARCH_SECONDS = 5.0  # how far before the limit a quiet place to cut is looked for
_QUIET = 2.0  # times the least energy is about as quiet
_SILENCE = 1e-8  # energy (-80 dB) below which all is alike
_SPEECH_PERCENTILE = 95  # of the frames' energies: how loud speech is
_PAUSE_DECIBELS = 30.0  # a pause is that much quieter than speech,
_PAUSE_SECONDS = 0.12  # and lasts that long


def frame_energy(samples: np.ndarray) -> np.ndarray:
    """Mean square of each whole frame, float64 ``(frames,)``."""
    count = len(samples) // FRAME
    return np.square(samples[:count * FRAME], dtype=np.float64).reshape(count, FRAME).mean(1)


def speech_level(energy: np.ndarray) -> float:
    """The energy of frames of speech, as long as some of a recording is speech."""
    return float(np.percentile(energy, _SPEECH_PERCENTILE)) if len(energy) else 0.0


def find_pauses(waveform: np.ndarray, least_seconds: float = _PAUSE_SECONDS) -> np.ndarray:
    """Start and end (s) of each stretch that is much quieter than the speech, ``(pauses, 2)``; none
    in a recording whose noise is about as loud."""
    energy = frame_energy(waveform)
    starts, ends = runs(energy < speech_level(energy) * 10 ** (-_PAUSE_DECIBELS / 10))
    pauses = np.stack([starts, ends], 1) * FRAME / SAMPLE_RATE
    return pauses[pauses[:, 1] - pauses[:, 0] >= least_seconds]


def split_at_pauses(waveform: np.ndarray, seconds: tuple[float, float],
                    pause_seconds: float = _PAUSE_SECONDS, keep_seconds: float = math.inf
                    ) -> list[np.ndarray]:
    """Cut ``(samples,)`` in the middle of every pause of ``pause_seconds`` or more that is
    ``seconds[0]`` or more behind the cut before; what is longer than ``seconds[1]`` after that, at
    quiet places. Of a pause that is cut, ``keep_seconds`` stay on either side; if that is all of
    it, the pieces joined are the waveform."""
    least, most = seconds
    begins, ends, cut = [0], [], 0  # of the parts; where the last pause was cut
    for pause in find_pauses(waveform, pause_seconds):
        start, end = np.rint(pause * SAMPLE_RATE).astype(int).tolist()
        middle = (start + end) // 2
        inside = start > 0 and len(waveform) - end >= FRAME
        if inside and middle - cut >= least * SAMPLE_RATE:
            keep = round(min(keep_seconds * SAMPLE_RATE, middle - start))
            ends.append(start + keep)
            begins.append(end - keep)
            cut = middle
    parts = [waveform[begin:end] for begin, end in zip(begins, [*ends, len(waveform)], strict=True)]
    return [piece for part in parts for piece in split_at_quiet(part, most)]


def split_at_quiet(waveform: np.ndarray, max_seconds: float) -> list[np.ndarray]:
    """Cut ``(samples,)`` into pieces of at most ``max_seconds``, each in the middle of the longest
    quiet stretch of the last seconds before the limit: where 100 ms are about as quiet as the
    quietest. Joined, the pieces are the waveform."""
    limit = int(max_seconds * SAMPLE_RATE)
    pieces = []
    while len(waveform) > limit:
        start = max(limit // 2, limit - int(_SEARCH_SECONDS * SAMPLE_RATE))
        energy = frame_energy(waveform[start:limit])
        smooth = np.convolve(energy, np.ones(_SMOOTH) / _SMOOTH, mode="valid")
        cut = start + (middle_of_longest(smooth <= _QUIET * smooth.min() + _SILENCE)
                       + _SMOOTH // 2) * FRAME
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]


def middle_of_longest(mask: np.ndarray) -> int:
    """The middle of the longest run of True; of several as long, of the last."""
    starts, ends = runs(mask)
    longest = len(starts) - 1 - int(np.argmax((ends - starts)[::-1]))
    return int(starts[longest] + ends[longest] - 1) // 2


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one after the last of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return edges[::2], edges[1::2]
