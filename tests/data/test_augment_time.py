"""Speed, tempo, pitch: length, pitch by the peak of the spectrum, places of bursts."""

import numpy as np
import pytest

from qwen3asr_train.data.augment_time import (
    change_pitch,
    change_speed,
    change_tempo,
    fit_length,
    map_words,
    scale_times,
)
from qwen3asr_train.errors import DataError

RATE = 16_000


def sine(hertz: float, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def peak_hertz(waveform: np.ndarray) -> float:
    middle = waveform[len(waveform) // 4:-len(waveform) // 4] * np.hanning(
        len(waveform[len(waveform) // 4:-len(waveform) // 4]))
    return np.abs(np.fft.rfft(middle, 1 << 17)).argmax() * RATE / (1 << 17)


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.0, 1.1, 1.5])
def test_tempo_keeps_pitch_and_level(factor):
    changed = change_tempo(sine(220), factor)
    assert len(changed) == round(2 * RATE / factor)
    assert peak_hertz(changed) == pytest.approx(220, rel=0.005)
    assert changed.std() == pytest.approx(sine(220).std(), rel=0.05)


@pytest.mark.parametrize("semitones", [-4.0, -1.0, 0.0, 2.0, 5.0])
def test_pitch_moves_by_semitones_and_nothing_else(semitones):
    changed = change_pitch(sine(220), semitones)
    assert changed.shape == (2 * RATE,) and changed.dtype == np.float32
    assert peak_hertz(changed) == pytest.approx(220 * 2 ** (semitones / 12), rel=0.005)
    assert changed.std() == pytest.approx(sine(220).std(), rel=0.05)


def bursts(places: list[float], seconds: float) -> np.ndarray:
    """80 ms of noise centred at each place (s)."""
    rng = np.random.default_rng(0)
    waveform = np.zeros(int(seconds * RATE), np.float32)
    for place in places:
        start = int((place - 0.04) * RATE)
        waveform[start:start + 1280] = np.hanning(1280) * rng.standard_normal(1280)
    return waveform


def found_places(waveform: np.ndarray, expected: list[float]) -> list[float]:
    """Centre of energy (s) within 0.2 s of each expected place."""
    times, power = np.arange(len(waveform)) / RATE, waveform.astype(np.float64)**2
    near = [np.abs(times - place) < 0.2 for place in expected]
    return [float((times * power)[n].sum() / power[n].sum()) for n in near]


@pytest.mark.parametrize("change, tolerance", [(change_speed, 0.001), (change_tempo, 0.012)])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_word_times_point_to_the_words(change, tolerance, factor):
    places, waveform = [0.5, 1.3, 2.8, 4.6], bursts([0.5, 1.3, 2.8, 4.6], 5.0)
    changed = change(waveform, factor)
    record = {"words": [["w", place, place + 0.01] for place in places]}
    told = [start for _, start, _ in scale_times(record, factor, len(changed) / RATE)["words"]]
    assert found_places(waveform, places) == pytest.approx(places, abs=0.005)
    late = np.subtract(found_places(changed, told), told)
    assert np.abs(late).max() < tolerance and np.abs(late.mean()) < 0.8 * tolerance


@pytest.mark.parametrize("semitones", [-3.0, 3.0])
def test_pitch_leaves_words_in_their_places(semitones):
    places = [0.5, 1.3, 2.8]
    changed = change_pitch(bursts(places, 3.3), semitones)
    assert found_places(changed, places) == pytest.approx(places, abs=0.012)


def test_tempo_keeps_the_ends_of_a_clip():
    changed = change_tempo(sine(300, 0.5), 0.8)
    for edge in (changed[:320], changed[-320:]):
        assert np.abs(edge).max() > 0.5


def test_times_stay_in_the_clip_and_bad_words_are_named():
    record = {"duration": 1.0, "words": [["a", 0.5, 1.0]], "text": "a"}
    assert scale_times(record, 0.5, 1.99) == {"duration": 1.99, "words": [["a", 1.0, 1.99]],
                                              "text": "a"}
    assert scale_times({"text": "a"}, 2.0, 1.0) == {"text": "a"}
    for words in (["ab"], [["a", 1.0]], [["a", "0", "1"]], 3):
        with pytest.raises(DataError, match="words"):
            map_words(words, lambda time: time / 2)


def test_lengths_are_cut_and_filled():
    np.testing.assert_array_equal(fit_length(np.arange(3.0), 2), [0, 1])
    np.testing.assert_array_equal(fit_length(np.arange(3.0), 5), [0, 1, 2, 0, 0])
    for change in (change_speed, change_tempo):
        assert len(change(np.ones(1, np.float32), 3.0)) == 1
