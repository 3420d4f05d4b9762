"""Augmentation of waveforms and features; everything random comes from the sample's generator."""

from dataclasses import dataclass

import numpy as np
import soxr
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Shares are probabilities per sample; see configs/data/*.yaml for what each field means."""

    speed_share: float = 0.0
    speed_range: tuple[float, float] = (0.9, 1.1)
    noise_share: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    gain_share: float = 0.0
    gain_db: tuple[float, float] = (-12.0, 6.0)
    frequency_masks: int = 0
    frequency_mask_bins: int = 27
    time_masks: int = 0
    time_mask_share: float = 0.05

    def waveform(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float32 ``(samples,)`` at 16 kHz -> the same, changed in speed, noise and level."""
        if rng.random() < self.speed_share:
            waveform = change_speed(waveform, rng.uniform(*self.speed_range))
        if rng.random() < self.noise_share:
            waveform = add_noise(waveform, rng.uniform(*self.noise_snr_db),
                                 coloured_noise(len(waveform), rng))
        if rng.random() < self.gain_share:
            waveform = waveform * np.float32(10 ** (rng.uniform(*self.gain_db) / 20))
        return waveform

    def features(self, features: Tensor, rng: np.random.Generator) -> Tensor:
        """SpecAugment (Park et al. 2019) without warping: ``(frames, mel)``, masked by its mean."""
        if not (self.frequency_masks or self.time_masks):
            return features
        frames, bins = features.shape
        features, fill = features.clone(), features.mean()
        for _ in range(self.frequency_masks):
            width = int(rng.integers(0, self.frequency_mask_bins + 1))
            start = int(rng.integers(0, bins - width + 1))
            features[:, start:start + width] = fill
        for _ in range(self.time_masks):
            width = int(rng.integers(0, int(frames * self.time_mask_share) + 1))
            start = int(rng.integers(0, frames - width + 1))
            features[start:start + width] = fill
        return features


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Resample so that ``factor`` > 1 is faster and higher, as a tape would be."""
    return soxr.resample(waveform, 16_000 * factor, 16_000).astype(np.float32)


def coloured_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with a power spectrum of 1/f^a, a drawn from 0 (white) to 2 (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    return np.fft.irfft(spectrum * frequency ** (-rng.uniform(0.0, 2.0) / 2), samples)


def add_noise(waveform: np.ndarray, snr_db: float, noise: np.ndarray) -> np.ndarray:
    """``waveform`` plus ``noise`` scaled to the signal-to-noise ratio over the whole clip."""
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    if power == 0.0 or noise_power == 0.0:
        return waveform
    scale = np.sqrt(power / noise_power / 10 ** (snr_db / 10))
    return (waveform + scale * noise).astype(np.float32)


def build(config: dict | None) -> Augmentation:
    """An :class:`Augmentation` from a config mapping (lists become tuples)."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in (config or {}).items()}
    return Augmentation(**options)


IDENTITY = Augmentation()
"""Changes nothing: evaluation."""

