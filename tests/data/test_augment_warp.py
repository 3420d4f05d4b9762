"""Warped frequencies: tones that come where other tones are, no warp, any warp, its draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.augment import Augmentation
from qwen3asr_train.data.augment_warp import warp_frequencies
from qwen3asr_train.data.features import MEL_BINS, log_mel
from qwen3asr_train.data.plan import sample_rng

KNOTS = (500.0, 1500.0, 3000.0)


def tones(*hertz: float) -> torch.Tensor:
    time = np.arange(16_000) / 16_000
    return log_mel(sum(np.sin(2 * np.pi * f * time) for f in hertz).astype(np.float32) / 10)


def peaks(features: torch.Tensor, count: int) -> list[int]:
    """Mel bins of the highest local maxima, upwards."""
    mean = features.mean(0)
    local = [i for i in range(1, MEL_BINS - 1) if mean[i - 1] < mean[i] >= mean[i + 1]]
    return sorted(sorted(local, key=lambda i: -mean[i])[:count])


@pytest.mark.parametrize("factors", [(1.2, 1.2, 1.2), (0.8, 1.0, 1.25), (1.25, 0.8, 0.9)])
def test_tones_go_where_the_factors_send_them(factors):
    moved = [f * factor for f, factor in zip(KNOTS, factors, strict=True)]
    found = peaks(warp_frequencies(tones(*KNOTS), KNOTS, factors), 3)
    assert np.abs(np.subtract(found, peaks(tones(*moved), 3))).max() <= 1
    assert np.abs(np.subtract(found, peaks(tones(*KNOTS), 3))).max() >= 3


def test_below_the_first_the_factor_stays_and_the_highest_bin_keeps_its_place():
    found = peaks(warp_frequencies(tones(300.0, 1000.0), (1000.0,), (1.2,)), 2)
    assert np.abs(np.subtract(found, peaks(tones(360.0, 1200.0), 2))).max() <= 1
    ramp = torch.arange(float(MEL_BINS)).expand(3, -1)
    assert warp_frequencies(ramp, (1000.0,), (1.2,))[0, -1] == pytest.approx(MEL_BINS - 1, abs=0.2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.75, 1.3), min_size=3, max_size=3), st.integers(1, 20))
def test_bins_keep_their_order_and_values_their_range(factors, frames):
    ramp = torch.arange(float(MEL_BINS)).expand(frames, -1)
    source = warp_frequencies(ramp, KNOTS, factors)  # of a ramp: where each bin comes from
    assert source.shape == ramp.shape and source.dtype == ramp.dtype
    assert bool((source.diff(dim=1) >= 0).all()) and source.min() >= 0
    assert source.max() < MEL_BINS
    assert torch.allclose(warp_frequencies(ramp, KNOTS, (1.0, 1.0, 1.0)), ramp, atol=1e-4)


def test_warping_changes_no_draw_of_another_step():
    features = tones(700.0) + torch.rand(100, MEL_BINS)  # no bin the same in all frames but masked
    for key in "abcd":
        rngs = [sample_rng(0, 0, key) for _ in range(2)]
        plain, warped = (Augmentation(frequency_masks=2, warp_share=share).features(features, rng)
                         for share, rng in zip((0.0, 1.0), rngs, strict=True))
        masked = [(one == one[0]).all(0) for one in (plain, warped)]
        assert torch.equal(*masked) and masked[0].any() and not masked[0].all()
        assert not torch.equal(plain, warped) and rngs[0].random() == rngs[1].random()
    features = tones(700.0)
    drawn = [Augmentation(warp_share=0.5).features(features, sample_rng(0, 0, str(i)))
             for i in range(200)]
    assert 70 < sum(torch.equal(one, features) for one in drawn) < 130
