"""Clipping and codecs: G.711 by its tables, telephone band, length, delay, level, bit rate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data import augment_codec
from qwen3asr_train.data.augment_codec import CODECS, TELEPHONE, clip_peaks, through_codec
from qwen3asr_train.data.augment_room import rms

RATE = 16_000


def speechlike(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise below some 1.5 kHz in syllables, with an impulsive start."""
    rng, samples = np.random.default_rng(seed), int(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / RATE)
    shaped = np.fft.irfft(spectrum / (1 + (hertz / 900)**2), samples)
    shaped *= np.abs(np.sin(np.arange(samples) / 1500)) * 0.05 / shaped.std()
    return shaped.astype(np.float32)


def lag(reference: np.ndarray, other: np.ndarray) -> int:
    size = 1 << (2 * len(reference) - 1).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(other, size) * np.fft.rfft(reference, size).conj())
    place = int(correlation.argmax())
    return place if place < size // 2 else place - size


@pytest.mark.parametrize("kbps", [6.0, 16.0, 40.0, 96.0, 300.0])
@pytest.mark.parametrize("codec", ["mp3", "opus", "vorbis"])
def test_codecs_keep_length_and_time(codec, kbps):
    waveform = speechlike(1.3)
    coded = through_codec(waveform, codec, kbps)
    assert coded.shape == waveform.shape and coded.dtype == np.float32
    assert abs(lag(waveform, coded)) <= 2  # 0.1 ms
    assert not np.array_equal(coded, waveform)


@pytest.mark.parametrize("codec", TELEPHONE)
def test_telephones_keep_length_and_time(codec):
    waveform = speechlike(1.3)
    coded = through_codec(waveform, codec, 0.0)
    assert coded.shape == waveform.shape and abs(lag(waveform, coded)) <= 2


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("gain", [1e-3, 1.0, 30.0])
def test_what_is_lost_does_not_depend_on_the_level(codec, gain):
    waveform = speechlike(0.5)
    coded = through_codec(waveform, codec, 32.0)
    other = through_codec((waveform * gain).astype(np.float32), codec, 32.0)
    assert rms(coded) == pytest.approx(rms(waveform), rel=0.5)
    assert rms(other / gain - coded) < 0.05 * rms(coded)


@pytest.mark.parametrize("codec", ["mp3", "opus", "vorbis"])
def test_fewer_bits_lose_more(codec):
    waveform = speechlike(1.0)
    errors = [rms(through_codec(waveform, codec, kbps) - waveform) for kbps in (64.0, 30.0, 12.0)]
    assert errors[0] < errors[1] and (errors[1] < errors[2] or codec == "vorbis")


def mu_law(samples: np.ndarray) -> np.ndarray:
    """G.711, tables 2a and 2b: coded and decoded, 14-bit magnitudes from -8159 to 8159."""
    magnitude = np.minimum(np.abs(samples), 8158) + 33
    exponent = np.floor(np.log2(magnitude)).astype(int) - 5
    mantissa = (magnitude.astype(int) >> (exponent + 1)) & 15
    return np.sign(samples) * (((2 * mantissa + 33) << exponent) - 33)


def test_mu_law_is_g711():
    wanted = np.arange(-8100, 8101)
    found = augment_codec._code((wanted / 8192).astype(np.float32), 8000, "ulaw") * 8192
    assert np.array_equal(np.unique(np.abs(np.round(found))), np.unique(np.abs(mu_law(wanted))))
    # the smooth law (1 + 255|x|) of which G.711 has the segments, to half a step of it
    step = (1 + 255 * np.abs(wanted) / 8159) * np.log(256) / 255 / 127 * 8159
    assert (np.abs(found - wanted) <= 0.85 * step + 1).all()
    assert np.mean(np.abs(found - mu_law(wanted)) < 0.5) > 0.95  # rest: on the edge of two steps


def test_the_telephone_band():
    def gain_db(hertz: float) -> float:
        tone = 0.1 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE).astype(np.float32)
        noise = 0.02 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
        coded = augment_codec._telephone(tone + noise, "ulaw")
        spectra = [np.abs(np.fft.rfft(w[2000:-2000] * np.hanning(RATE - 4000), RATE))
                   for w in (coded, tone)]
        return 20 * np.log10(spectra[0][int(hertz)] / spectra[1][int(hertz)])

    for hertz in (400, 1500, 2500, 3300):
        assert gain_db(hertz) == pytest.approx(0, abs=0.5)
    for hertz in (60, 200, 3600, 5000):
        assert gain_db(hertz) < -35


@settings(max_examples=50, deadline=None)
@given(drive=st.floats(0, 60), seed=st.integers(0, 50), samples=st.integers(1, 500))
def test_clipping_cuts_the_peaks_alone(drive, seed, samples):
    waveform = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    clipped = clip_peaks(waveform, drive)
    ceiling = np.abs(waveform).max() * 10 ** (-drive / 20)
    assert clipped.dtype == np.float32
    assert np.abs(clipped).max() == pytest.approx(ceiling, rel=1e-5)
    below = np.abs(waveform) < ceiling * 0.999
    np.testing.assert_array_equal(clipped[below], waveform[below])
    assert (np.sign(clipped) == np.sign(waveform)).all()
