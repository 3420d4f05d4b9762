"""Recordings longer than an aligner takes, with oracles in its place."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.decoding.alignment_long import cut_at_pauses, piece_by_piece


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.1, 1.0)), min_size=1, max_size=60),
       st.floats(1.0, 10.0), st.sampled_from([0.0, 0.5]), st.floats(0.0, 5.0),
       st.integers(0, 2**32 - 1))
def test_pieces_are_the_whole_recording_and_every_word(words, max_seconds, least, rest, seed):
    place, spans = 0.0, []
    for pause, seconds in words:
        spans.append((place + pause, place + pause + seconds))
        place += pause + seconds
    length = round((place + rest) * 16_000)
    noise = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    pieces = cut_at_pauses(noise, spans, (least * max_seconds, max_seconds))
    assert pieces[0].start == 0 and pieces[-1].end == length / 16_000
    assert pieces[0].first == 0 and pieces[-1].stop == len(words)
    for before, after in pairwise(pieces):
        assert before.end == after.start and before.stop == after.first > before.first
        (a, b), (c, d) = spans[after.first - 1], spans[after.first]
        assert (a + b) / 2 - 0.16 <= before.end <= (c + d) / 2 + 0.16
        if before.end - before.start > max_seconds + 0.01:  # nowhere else to cut
            assert before.stop == before.first + 1
    assert sum(len(piece.of(noise)) for piece in pieces) == length


def test_pieces_are_cut_in_pauses_that_coarse_times_miss():
    """Words of 0.6 s at whole seconds, found up to 0.25 s too early or late."""
    rng = np.random.default_rng(0)
    waveform = np.zeros(30 * 16_000, np.float32)
    for second in range(30):
        waveform[second * 16_000:][:9_600] = rng.standard_normal(9_600)
    coarse = [(i + off, i + 0.6 + off) for i, off in enumerate(rng.uniform(-0.25, 0.25, 30))]
    long, short = (cut_at_pauses(waveform, coarse, seconds) for seconds in ((4.0, 8.0), (0.5, 8.0)))
    assert len(short) == 30 and 4 <= len(long) <= 8
    assert min(piece.end - piece.start for piece in long[:-1]) > 3.8
    for piece in long[1:] + short[1:]:
        assert piece.start % 1 == pytest.approx(0.8, abs=0.15)
        assert piece.first == round(piece.start + 0.2)


def test_a_pause_is_cut_once():
    """Words that coarse times put into one pause do not get pieces without audio."""
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(16_000).astype(np.float32)
    waveform = np.concatenate([sound, np.zeros(16_000, np.float32), sound])
    coarse = [(0.2, 0.8), (1.4, 1.42), (1.44, 1.46), (1.48, 1.5), (2.2, 2.8)]
    pieces = cut_at_pauses(waveform, coarse, (0.0, 2.0))
    assert len(pieces) > 1 and min(piece.end - piece.start for piece in pieces) >= 0.1
    pieces = cut_at_pauses(waveform, coarse, (0.6, 2.0))
    assert len(pieces) == 2 and 1.0 < pieces[1].start < 2.0


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_no_other_cuts_are_as_quiet(words, seed):
    """Against every way to cut: in front of which words, and what each cut costs."""
    rng = np.random.default_rng(seed)
    waveform = np.repeat(10 ** rng.uniform(-3, 0, words * 4), 4_000).astype(np.float32)
    spans = [(float(i), i + 0.5) for i in range(words)]
    pieces = cut_at_pauses(waveform, spans, (0.0, 2.6))

    def level(place):  # dB over a pause
        first = round(place * 100) - 7
        energy = np.square(waveform.astype(float)).reshape(-1, 160).mean(1)
        loud = energy[first:first + 15].mean()
        return max(10 * np.log10(loud / np.percentile(energy, 95)) + 40, 0) - 3

    places = {i: cut_at_pauses(waveform, [spans[i - 1], spans[i]], (0.0, 0.1))[1].start
              for i in range(1, words)}
    ways = [way for count in range(words) for way in combinations(range(1, words), count)
            if all(b - a <= 2.6 for a, b in pairwise([0, *(places[i] for i in way), words]))]
    cost = {way: sum(level(places[i]) for i in way) for way in ways}
    assert cost[tuple(piece.first for piece in pieces[1:])] == pytest.approx(min(cost.values()))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.1, 1.0)), min_size=1, max_size=120),
       st.floats(8.0, 30.0))
def test_long_recordings_with_an_oracle(words, max_seconds):
    """An aligner that is right about what it hears, and piles up the rest at the end."""
    place, truth = 0.0, []
    for pause, seconds in words:
        truth.append((place + pause, place + pause + seconds))
        place += pause + seconds
    waveform = np.arange(round(place * 16_000), dtype=np.float64)
    calls = 0

    def align(piece, units):
        nonlocal calls
        calls += 1
        start, end = piece[0] / 16_000, (piece[-1] + 1) / 16_000
        spans = [truth[unit] for unit in units]
        return [(min(max(a, start), end) - start, min(max(b, start), end) - start)
                for a, b in spans]

    class Unit(int):
        def __len__(self):
            return 4

    found = piece_by_piece(waveform, [Unit(i) for i in range(len(words))], max_seconds, align)
    assert len(found) == len(truth) and calls <= 3 + 4 * place / max_seconds
    assert np.mean(np.abs(np.array(found) - np.array(truth)) < 0.01) > 0.95


def test_cuts_are_where_it_is_quiet():
    """Words at whole seconds that an aligner finds 0.15 s too late: the cuts still miss them."""
    rng = np.random.default_rng(0)
    waveform = np.zeros(30 * 16_000, np.float32)
    for second in range(30):
        waveform[second * 16_000:][:9_600] = rng.standard_normal(9_600)

    def align(piece, units):
        offset = np.flatnonzero(np.abs(piece) > 0)[0] / 16_000
        assert offset < 0.45  # from inside a pause of 0.4 s
        return [(offset + i + 0.15, offset + i + 0.75) for i in range(len(units))]

    found = piece_by_piece(waveform, ["word"] * 30, 8.0, align)
    assert [round(a - 0.15, 2) for a, _ in found] == pytest.approx(list(range(30)), abs=0.02)
