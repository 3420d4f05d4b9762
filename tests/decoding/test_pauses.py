"""Where long audio is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.decoding.pauses import middle_of_longest, split_at_pauses, split_at_quiet


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_middle_of_the_longest_run(mask):
    runs, start = [], None
    for i, value in enumerate([*mask, False]):
        if value and start is None:
            start = i
        elif not value and start is not None:
            runs.append((i - start, start))
            start = None
    length, first = max(runs)  # of several as long, the last
    assert middle_of_longest(np.array(mask)) == first + (length - 1) // 2


def test_a_cut_is_in_the_middle_of_a_pause():
    rng = np.random.default_rng(0)
    speech, pause = 0.1 * rng.standard_normal(32_000), np.zeros(9_600)
    waveform = np.concatenate([speech, pause, speech, pause, speech]).astype(np.float32)
    pieces = split_at_quiet(waveform, 4.0)
    assert np.array_equal(np.concatenate(pieces), waveform) and len(pieces) == 3
    for place in np.cumsum([len(piece) for piece in pieces])[:-1]:
        before, behind = (np.flatnonzero(part)[index] for part, index in (
            (waveform[:place], -1), (waveform[place:], 0)))
        assert abs((place - before) - behind) < 0.06 * 16_000


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.3, 6.0), st.floats(0.0, 0.1) | st.floats(0.15, 1.0)),
                min_size=1, max_size=12), st.integers(0, 999))
def test_every_pause_is_a_cut(talk, seed):
    """Speech and digital silence by turns: the pieces are the talk, and no cut is in speech unless
    a piece would be too long."""
    rng, parts, middles, place = np.random.default_rng(seed), [], [], 0
    for number, (speech, pause) in enumerate(talk, start=1):
        parts += [rng.uniform(0.1, 0.2, int(speech * 16_000)) * rng.choice([-1, 1]),
                  np.zeros(int(pause * 16_000))]
        place += len(parts[-2])
        if pause >= 0.15 and number < len(talk):
            middles.append(place + len(parts[-1]) / 2)
        place += len(parts[-1])
    waveform = np.concatenate(parts).astype(np.float32)
    pieces = split_at_pauses(waveform, (1.0, 4.0))
    assert np.array_equal(np.concatenate(pieces), waveform)
    assert max(len(piece) for piece in pieces) <= 64_000
    cuts = np.cumsum([len(piece) for piece in pieces])[:-1]
    for cut, before, after in zip(cuts, pieces, pieces[1:], strict=False):
        in_silence = not waveform[max(0, cut - 160):cut + 160].all()
        assert in_silence or len(before) + len(after) >= 60_000
    last = 0
    for middle in middles:
        if middle - last >= 16_000 + 320:
            assert any(abs(cut - middle) <= 320 for cut in cuts)
            last = middle
        elif middle - last > 16_000 - 320:
            return  # on the edge: either is right


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(110, 300), st.sampled_from([0, 8, 14, 24, 60])), min_size=1,
                max_size=8), st.floats(0.0, 0.5), st.integers(0, 999))
def test_of_a_long_enough_pause_its_edges_stay(talk, keep, seed):
    """Speech and silence by turns, in frames of 10 ms: each piece against what is put together by
    hand."""
    rng, pieces = np.random.default_rng(seed), [np.zeros(0, np.float32)]
    whole, edge = [], round(keep * 16_000)
    for number, (speech, pause) in enumerate(talk, start=1):
        said = np.float32(rng.uniform(0.1, 0.2, speech * 160) * rng.choice([-1, 1], speech * 160))
        silence = np.zeros((pause if number < len(talk) else 0) * 160, np.float32)
        whole += [said, silence]
        cut = len(silence) >= 0.2 * 16_000  # 140 ms are a pause, but no place to cut
        kept = silence[:min(edge, len(silence) // 2)] if cut else silence
        pieces[-1] = np.concatenate([pieces[-1], said, kept])
        if cut:
            pieces.append(kept)
    found = split_at_pauses(np.concatenate(whole), (1.0, 1000.0), 0.2, keep)
    assert [len(piece) for piece in found] == [len(piece) for piece in pieces]
    assert all(np.array_equal(a, b) for a, b in zip(found, pieces, strict=True))


def test_nothing_is_no_recording():
    assert [len(piece) for piece in split_at_pauses(np.zeros(100, np.float32), (1.0, 4.0))] == [100]
    silence = split_at_pauses(np.zeros(16_000 * 9, np.float32), (1.0, 4.0))
    assert sum(len(piece) for piece in silence) == 16_000 * 9
    assert max(len(piece) for piece in silence) <= 64_000
