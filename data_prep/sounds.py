"""Sounds without speech, made on the spot: what a recogniser must answer with ``language None``."""

from collections.abc import Callable

import numpy as np

RATE = 16_000

_PEAK = (0.05, 0.7)
_FADE_SECONDS = 0.01


def make_sound(kind: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One sound of :data:`KINDS`, float32 ``(samples,)`` at 16 kHz, of a random level.

    Raises KeyError for an unknown kind.
    """
    time = np.arange(int(seconds * RATE)) / RATE
    waveform = KINDS[kind](time, rng)
    fade = np.minimum(1.0, np.minimum(time, time[::-1]) / _FADE_SECONDS)
    peak = np.abs(waveform).max()
    level = np.exp(rng.uniform(*np.log(_PEAK))) / peak if peak else 0.0
    return (waveform * fade * level).astype(np.float32)


def _noise(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White to brown, steady."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    return np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1), len(time))


def _wind(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Low noise that swells and falls."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.maximum(np.fft.rfftfreq(len(time), 1 / RATE), 1)
    low = np.fft.irfft(spectrum / (1 + (frequency / rng.uniform(150, 500)) ** 2), len(time))
    swell = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.3, 1.2) * time + rng.uniform(0, 6.28))
    return low * swell


def _hum(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mains hum and its harmonics."""
    base = rng.choice([50.0, 60.0])
    return sum(rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * k * base * time + rng.uniform(0, 6.28))
               for k in range(1, 8))


def _tone(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A steady tone with some overtones."""
    base = np.exp(rng.uniform(np.log(200), np.log(3000)))
    overtones = rng.uniform(0, 0.4, 3)
    return np.sin(2 * np.pi * base * time) + sum(
        share * np.sin(2 * np.pi * base * (k + 2) * time) for k, share in enumerate(overtones)
        if base * (k + 2) < RATE / 2)


def _beeps(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tone that goes on and off, as an alarm does."""
    period = rng.uniform(0.15, 0.5)
    on = (time + rng.uniform(0, period)) % period < period * rng.uniform(0.3, 0.6)
    return np.sin(2 * np.pi * rng.uniform(600, 2500) * time) * on


def _siren(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tone whose pitch goes up and down."""
    middle, depth, rate = rng.uniform(600, 1200), rng.uniform(0.2, 0.5), rng.uniform(0.4, 2.0)
    pitch = middle * (1 + depth * np.sin(2 * np.pi * rate * time + rng.uniform(0, 6.28)))
    return np.sin(2 * np.pi * np.cumsum(pitch) / RATE)


def _knocks(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Short bursts that die away."""
    waveform = np.zeros(len(time))
    burst = np.arange(int(0.12 * RATE)) / RATE
    at = rng.uniform(0.02, 0.3)
    while at + 0.12 < time[-1]:
        body = np.sin(2 * np.pi * rng.uniform(120, 400) * burst) + 0.5 * rng.standard_normal(
            len(burst))
        start = int(at * RATE)
        waveform[start:start + len(burst)] += body * np.exp(-burst / rng.uniform(0.01, 0.03))
        at += rng.uniform(0.15, 0.5)
    return waveform


def _music(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plucked notes of a scale over a held chord."""
    root = 110 * 2 ** (rng.integers(12) / 12)
    scale = root * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16]) / 12)
    waveform = sum(0.2 * np.sin(2 * np.pi * root * 2 ** (step / 12) * time) for step in (0, 4, 7))
    beat = rng.uniform(0.15, 0.5)
    for start in np.arange(0, time[-1], beat):
        since = np.maximum(time - start, 0)
        pitch = 2 * rng.choice(scale)
        note = sum(np.sin(2 * np.pi * k * pitch * since) / k for k in range(1, 5))
        waveform = waveform + note * np.exp(-since / beat) * (time >= start)
    return waveform


def _breath(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Broad noise around 1 kHz, in and out."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.maximum(np.fft.rfftfreq(len(time), 1 / RATE), 1)
    octaves = np.log2(frequency / rng.uniform(600, 1800))
    noise = np.fft.irfft(spectrum * np.exp(-(octaves / rng.uniform(0.7, 1.5)) ** 2), len(time))
    return noise * np.sin(np.pi * (time / rng.uniform(0.8, 2.0) + rng.uniform(0, 1))) ** 2


def _silence(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing."""
    return np.zeros(len(time))


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": _noise, "wind": _wind, "hum": _hum, "tone": _tone, "beeps": _beeps, "siren": _siren,
    "knocks": _knocks, "music": _music, "breath": _breath, "silence": _silence,
}
"""Kind of sound -> what makes it from times ``(samples,)`` in seconds."""
