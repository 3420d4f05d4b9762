"""Where long audio is cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3asr_train.decoding.transcriber import middle_of_longest, split_at_quiet


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
