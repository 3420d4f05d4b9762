"""Log-mel features of the released models, one clip at a time, in chunks of one second.

The numbers are those of transformers' ``Qwen3ASRFeatureExtractor`` for a clip on its own: Slaney
mel filters, squared magnitudes of a 400-point STFT every 160 samples, log10, floored 8 below the
clip's maximum, ``(x + 4) / 4``. A clip's features never depend on its neighbours in a batch: the
STFT's edge reflection and the maximum are the clip's own.
"""

from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

N_FFT = 400
HOP = 160
MEL_BINS = 128
CHUNK_FRAMES = 100
"""Mel frames in one encoder chunk (1 s): ``2 * n_window`` of the encoder's config."""
MIN_SAMPLES = 8000
"""Shorter clips are padded with zeros to half a second, as the released client does."""


@lru_cache(maxsize=1)
def _tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Window ``(400,)``, mel filters ``(201, 128)``, and the least power, all float32."""
    filters = mel_filter_bank(1 + N_FFT // 2, MEL_BINS, 0.0, 8000.0, 16_000, norm="slaney",
                              mel_scale="slaney")
    return torch.hann_window(N_FFT), torch.from_numpy(filters).float().contiguous(), \
        torch.tensor(1e-10)


def mel_frames(samples: int) -> int:
    """How many mel frames a clip of ``samples`` samples at 16 kHz has."""
    return max(samples, MIN_SAMPLES) // HOP


def audio_tokens(frames: int) -> int:
    """Encoder tokens for ``frames`` mel frames: 13 for each full second, fewer for a rest."""
    full, rest = divmod(frames, CHUNK_FRAMES)
    return 13 * full + -(-rest // 8)


def log_mel(waveform: np.ndarray) -> torch.Tensor:
    """float32 ``(samples,)`` at 16 kHz -> ``(frames, 128)`` float32."""
    window, filters, floor = _tables()
    signal = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    if signal.numel() < MIN_SAMPLES:
        signal = torch.nn.functional.pad(signal, (0, MIN_SAMPLES - signal.numel()))
    frames = signal.numel() // HOP
    edge = N_FFT // 2
    padded = torch.nn.functional.pad(signal[None], (edge, edge), mode="reflect")[0]
    spectrum = torch.fft.rfft(padded.unfold(0, N_FFT, HOP)[:frames] * window)
    power = spectrum.real.square().add_(spectrum.imag.square())
    mel = torch.maximum(power @ filters, floor).log10_()
    return mel.clamp_(min=float(mel.max()) - 8.0).add_(4.0).div_(4.0)


def chunk(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(frames, 128)`` -> zero-padded chunks ``(n, 128, 100)`` and their frame counts ``(n,)``."""
    frames = features.shape[0]
    count = -(-frames // CHUNK_FRAMES)
    padded = torch.nn.functional.pad(features, (0, 0, 0, count * CHUNK_FRAMES - frames))
    lengths = torch.full((count,), CHUNK_FRAMES)
    lengths[-1] = frames - (count - 1) * CHUNK_FRAMES
    return padded.view(count, CHUNK_FRAMES, MEL_BINS).transpose(1, 2), lengths
