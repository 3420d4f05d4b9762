"""Reverberation: direct convolution, decay time and ratio measured back, words in their places."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.augment import Augmentation
from qwen3asr_train.data.augment_room import convolve, reverberate, rms, synthetic_response

RATE = 16_000


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 40_000), taps=st.integers(1, 6000), seed=st.integers(0, 9),
       place=st.floats(0, 1))
def test_convolution_is_the_direct_sum(samples, taps, seed, place):
    rng = np.random.default_rng(seed)
    waveform, kernel = rng.standard_normal(samples), rng.standard_normal(taps)
    origin = int(place * (taps - 1))
    found = convolve(waveform.astype("f4"), kernel.astype("f4"), origin)
    assert found.shape == (samples,) and found.dtype == np.float32
    whole = np.convolve(waveform, kernel) if samples * taps < 4e6 else np.fft.irfft(
        np.fft.rfft(waveform, 1 << 17) * np.fft.rfft(kernel, 1 << 17))
    expected = whole[origin:origin + samples]
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.sqrt(min(taps, samples)) * 10)


@pytest.mark.parametrize("rt60, drr_db", [(0.2, 10.0), (0.6, 0.0), (1.2, -5.0)])
def test_decay_and_ratio_of_made_rooms(rt60, drr_db):
    response = synthetic_response(rt60, drr_db, np.random.default_rng(0)).astype(np.float64)
    assert len(response) == round(rt60 * RATE) and response[0] == 1.0
    assert -10 * np.log10(np.sum(response[1:]**2)) == pytest.approx(drr_db, abs=0.01)
    # Schroeder 1965: the energy still to come falls as the sound does
    rest = 10 * np.log10(np.cumsum(response[:0:-1]**2)[::-1])
    rest -= rest[50]
    fit = (rest < -5) & (rest > -25)
    slope = np.polyfit(np.flatnonzero(fit) / RATE, rest[fit], 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.1)


def test_reverberation_keeps_level_length_and_place():
    rng = np.random.default_rng(0)
    waveform = (rng.standard_normal(30_000) * 0.1).astype(np.float32)
    measured = np.concatenate([np.zeros(700), synthetic_response(0.5, 3.0, rng)])
    wet = reverberate(waveform, measured)
    assert wet.shape == waveform.shape and wet.dtype == np.float32
    assert rms(wet) == pytest.approx(rms(waveform), rel=1e-5)
    lags = np.correlate(wet[1000:21_000], waveform[1500:20_500], "valid")
    assert lags.argmax() == 500


def test_a_response_of_direct_sound_alone_changes_nothing():
    waveform = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    delayed = np.zeros(400, np.float32)
    delayed[123] = -0.3
    np.testing.assert_allclose(reverberate(waveform, delayed), -waveform, atol=1e-5)
    np.testing.assert_array_equal(reverberate(waveform, np.zeros(400, np.float32)), waveform)


def test_measured_rooms_come_from_files(tmp_path):
    response = np.zeros(900)
    response[[300, 700]] = 0.5, 0.25
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    click = np.zeros(4000, np.float32)
    click[1000] = 1.0
    options = Augmentation(reverb_share=1, reverb_files=str(tmp_path))
    found = options.waveform(click, np.random.default_rng(0))
    assert sorted(np.flatnonzero(np.abs(found) > 1e-3)) == [1000, 1400]
    assert found[1400] / found[1000] == pytest.approx(0.5, abs=1e-4)
