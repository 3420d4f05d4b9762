"""Recordings that are longer than an aligner takes: pieces that are cut at pauses.

With coarse times of all words (CTC over the whole recording) the pieces are known at once, and what
goes wrong in one stays there: :func:`cut_at_pauses`. Without them, each piece is cut where its own
words were found: :func:`piece_by_piece`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.decoding.pauses import FRAME, frame_energy, speech_level

Spans = list[tuple[float, float]]
"""Start and end (s) of each unit."""

Align = Callable[[Sequence[np.ndarray], Sequence[Sequence[str]]], list[Spans | None]]
"""Waveforms and their units to spans; None for a clip too short for its text."""

_TEXT_SHARE = 0.7  # of the text that a piece of a long recording is expected to hold
_PAUSE_MARGIN = 0.2  # seconds around a pause in which the quietest place is looked for
_QUIET_FRAMES = 15  # of which a cut is the middle
_PAUSE_DECIBELS = 40.0  # what is that much quieter than speech is a pause,
_PAUSE_REWARD = 3.0  # and worth a cut of so many dB
_SHORT_COST = 40.0  # dB, for a piece of no length; in proportion for one that is too short
_LEAST_SECONDS = 0.1  # two cuts in one place are no more worth than one
_SILENCE = 1e-12  # energy (-120 dB) below which all is alike
_EDGE_SECONDS = 1.0  # words that are said to end so near a piece's end may belong behind it


class Piece(NamedTuple):
    """A stretch of a recording (s) and the units said in it, ``first`` to before ``stop``."""

    start: float
    end: float
    first: int
    stop: int

    def of(self, waveform: np.ndarray) -> np.ndarray:
        """Its samples."""
        return waveform[round(self.start * SAMPLE_RATE):round(self.end * SAMPLE_RATE)]


def cut_at_pauses(waveform: np.ndarray, coarse: Spans, seconds: tuple[float, float]
                  ) -> list[Piece]:
    """Pieces cut where it is quietest between words; ``coarse``: times of all units that are about
    right.

    Of all ways to cut, the one whose cuts are the quietest together: the level of each counts in dB
    over that of a pause, so that every pause is a reason to cut, and a louder place is cut only
    where it must. ``seconds``: least and most of a piece. To be shorter costs in proportion and is
    weighed against quiet; one is longer only where two words are further apart than that.
    """
    least, most = max(seconds[0], _LEAST_SECONDS), seconds[1]
    length = len(waveform) / SAMPLE_RATE
    energy = frame_energy(waveform)
    loudness, middles = _loudness(energy), [(a + b) / 2 for a, b in coarse]
    found = [_quietest(loudness, *pair) for pair in pairwise(middles)]
    # nodes: the beginning, in front of each further unit, the end
    places = np.array([0.0, *(place for place, _ in found), length])
    places = np.maximum.accumulate(places)
    level = np.array([0.0, *(level for _, level in found), 0.0])
    costs = np.maximum(_decibels(level) - _decibels(speech_level(energy)) + _PAUSE_DECIBELS, 0.0)
    costs = costs - _PAUSE_REWARD
    best, before = np.zeros(len(places)), np.zeros(len(places), dtype=int)
    for node in range(1, len(places)):
        first = min(int(np.searchsorted(places, places[node] - most)), node - 1)
        lacking = np.maximum(1 - (places[node] - places[first:node]) / least, 0.0)
        totals = best[first:node] + costs[node] + _SHORT_COST * lacking
        before[node] = first + int(totals.argmin())
        best[node] = totals.min()
    nodes = [len(places) - 1]
    while nodes[-1]:
        nodes.append(int(before[nodes[-1]]))
    return [Piece(float(places[a]), float(places[b]), a, b) for a, b in pairwise(nodes[::-1])]


def piece_by_piece(waveform: np.ndarray, units: Sequence[str], max_seconds: float,
                   align: Callable[[np.ndarray, Sequence[str]], Spans]) -> Spans:
    """Times in a recording longer than ``max_seconds``, piece by piece.

    Of each piece of the audio, ``align`` is given somewhat less text than it should hold, by the
    letters; what it finds is kept up to the longest pause in its second half, and the next piece
    starts where it is quietest around that pause.
    """
    found, start = [], 0.0
    length = len(waveform) / SAMPLE_RATE
    letters = [0, *accumulate(map(len, units))]
    while len(found) < len(units):
        done, rest = len(found), length - start
        last = rest <= max_seconds
        expected = letters[-1] - letters[done]
        expected = expected if last else expected * _TEXT_SHARE * max_seconds / rest
        stop = max(done + 1, int(np.searchsorted(letters, letters[done] + expected, "right")) - 1)
        piece = waveform[round(start * SAMPLE_RATE):round((start + max_seconds) * SAMPLE_RATE)]
        spans = align(piece, units[done:stop])
        kept, cut = (len(spans), rest) if last else _cut_at_pause(piece, spans, max_seconds)
        found += [(round(start + a, 3), round(start + b, 3)) for a, b in spans[:kept]]
        start += cut
    return found


def _cut_at_pause(piece: np.ndarray, spans: Spans, seconds: float) -> tuple[int, float]:
    """How many of the spans to keep, and where in the piece the next one starts.

    Words that pile up at the end of the piece are said behind it, so they are not kept.
    """
    sure = [i for i, (_, end) in enumerate(spans, start=1) if end < seconds - _EDGE_SECONDS]
    count = sure[-1] if sure else 1
    pauses = [(after[0] - before[1], i)
              for i, (before, after) in enumerate(pairwise(spans[:count]), start=1)
              if i >= count // 2]
    if not pauses:
        return count, max(spans[count - 1][1], 0.5)
    _, kept = max(pauses)
    return kept, max(_quietest(_loudness(frame_energy(piece)), spans[kept - 1][1] - _PAUSE_MARGIN,
                               spans[kept][0] + _PAUSE_MARGIN)[0], 0.5)


def _loudness(energy: np.ndarray) -> np.ndarray:
    """Mean energy of the 150 ms that begin at each 10 ms; none of less than that."""
    if len(energy) < _QUIET_FRAMES:
        return np.zeros(0)
    return np.convolve(energy, np.full(_QUIET_FRAMES, 1 / _QUIET_FRAMES), mode="valid")


def _decibels(energy):
    return 10 * np.log10(np.maximum(energy, _SILENCE))


def _quietest(loudness: np.ndarray, start: float, end: float) -> tuple[float, float]:
    """The middle of the quietest 150 ms between ``start`` and ``end`` (s), and how loud they are.
    """
    first = min(max(0, round(start * SAMPLE_RATE) // FRAME), max(0, len(loudness) - 1))
    found = loudness[first:max(first + 1, round(end * SAMPLE_RATE) // FRAME - _QUIET_FRAMES + 1)]
    if not len(found):
        return (start + end) / 2, 0.0
    quiet = np.flatnonzero(found <= found.min() * (1 + 1e-6))  # digital silence: its middle
    place = first + quiet[len(quiet) // 2] + _QUIET_FRAMES / 2
    return place * FRAME / SAMPLE_RATE, float(found.min())
