"""Log-mel features of the released models, one clip at a time, in chunks of one second.

The numbers are those of transformers' ``Qwen3ASRFeatureExtractor`` for a clip on its own: Slaney
mel filters, squared magnitudes of a 400-point STFT every 160 samples, log10, floored 8 below the
clip's maximum, ``(x + 4) / 4``. A clip's features never depend on its neighbours in a batch: the
STFT's edge reflection and the maximum are the clip's own.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.errors import DataError

N_FFT = 400
HOP = 160
MEL_BINS = 128
CHUNK_FRAMES = 100
"""Mel frames in one encoder chunk (1 s): ``2 * n_window`` of the encoder's config."""
LEAST_POWER = 1e-10
MIN_SAMPLES = 8000
"""Shorter clips are padded with zeros to half a second, as the released client does."""


@lru_cache(maxsize=1)
def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Window ``(400,)`` and mel filters ``(201, 128)``, float32."""
    filters = mel_filter_bank(1 + N_FFT // 2, MEL_BINS, 0.0, 8000.0, 16_000, norm="slaney",
                              mel_scale="slaney")
    return torch.hann_window(N_FFT), torch.from_numpy(filters).float().contiguous()


def mel_frames(samples: int) -> int:
    """How many mel frames a clip of ``samples`` samples at 16 kHz has."""
    return max(samples, MIN_SAMPLES) // HOP


def padded_seconds(samples: int) -> float:
    """How long a clip of ``samples`` samples at 16 kHz is for the encoder."""
    return max(samples, MIN_SAMPLES) / SAMPLE_RATE


def audio_tokens(frames: int) -> int:
    """Encoder tokens for ``frames`` mel frames: 13 for each full second, fewer for a rest."""
    full, rest = divmod(frames, CHUNK_FRAMES)
    return 13 * full + -(-rest // 8)


def log_mel(waveform: np.ndarray, window_frames: int | None = None) -> torch.Tensor:
    """float32 ``(samples,)`` at 16 kHz -> ``(frames, 128)`` float32.

    ``window_frames``: take the floor of each window of so many frames from the maximum up to its
    end, as a stream has to, rather than from the clip's: the two differ in what is 80 dB quieter
    than something that is yet to come.
    """
    signal = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    if signal.numel() < MIN_SAMPLES:
        signal = torch.nn.functional.pad(signal, (0, MIN_SAMPLES - signal.numel()))
    mel = _log_mel(_reflected(signal), signal.numel() // HOP)
    if window_frames is None:
        return _normalise(mel, float(mel.max()))
    windows, loudest = [], -math.inf
    for window in mel.split(window_frames):
        loudest = max(loudest, float(window.max()))
        windows.append(_normalise(window, loudest))
    return torch.cat(windows)


def _reflected(signal: torch.Tensor) -> torch.Tensor:
    """``(samples,)`` with half a frame mirrored at both ends."""
    edge = N_FFT // 2  # torch's reflecting pad takes four times as long
    return torch.cat([signal[1:edge + 1].flip(0), signal, signal[-edge - 1:-1].flip(0)])


def _log_mel(padded: torch.Tensor, frames: int) -> torch.Tensor:
    """The first frames of a signal as log10 of mel energies ``(frames, 128)``."""
    window, filters = _tables()
    spectrum = torch.fft.rfft(padded.unfold(0, N_FFT, HOP)[:frames] * window)
    squares = torch.view_as_real(spectrum).square_()
    power = squares[..., 0] + squares[..., 1]
    return (power @ filters).clamp_(min=LEAST_POWER).log10_()


def _normalise(mel: torch.Tensor, loudest: float) -> torch.Tensor:
    """In place: floored 8 (80 dB) below ``loudest``, ``(x + 4) / 4``."""
    return mel.clamp_(min=loudest - 8.0).add_(4.0).mul_(0.25)


class LogMelStream:
    """:func:`log_mel` with ``window_frames`` of audio that arrives bit by bit.

    Windows are computed one by one from as many samples each, so the same audio gives the same bits
    however it is cut. A window is ready 200 samples (12.5 ms, half a frame) after its last frame's
    centre.
    """

    def __init__(self, window_frames: int):
        self._frames = window_frames
        self._pending = torch.empty(0)  # from half a frame before the next window's first sample
        self._started = self._finished = False
        self._loudest = -math.inf

    def accept(self, piece: np.ndarray) -> list[torch.Tensor]:
        """float32 ``(samples,)`` -> the windows ``(window_frames, 128)`` that are now whole.

        Raises DataError for what is not finite mono audio, ValueError after :meth:`finish`.
        """
        if self._finished:
            raise ValueError("the stream is finished")
        piece = np.asarray(piece, dtype=np.float32)
        if piece.ndim != 1 or not np.isfinite(piece).all():
            raise DataError("a piece of audio must be finite samples of one channel")
        self._pending = torch.cat([self._pending, torch.from_numpy(piece)])
        if not self._started:
            if len(self._pending) < MIN_SAMPLES:  # no window is shorter
                return []
            self._pending = _reflected(self._pending)[:-(N_FFT // 2)]
            self._started = True
        needed = (self._frames - 1) * HOP + N_FFT
        windows = []
        while len(self._pending) >= needed:
            windows.append(self._window(self._pending[:needed], self._frames))
            self._pending = self._pending[self._frames * HOP:].clone()
        return windows

    def finish(self) -> list[torch.Tensor]:
        """The windows that are left, the last one shorter; none if all audio is in windows."""
        if self._finished:
            raise ValueError("the stream is finished")
        self._finished = True
        if not self._started:
            rest = torch.nn.functional.pad(self._pending, (0, MIN_SAMPLES - len(self._pending)))
            padded, frames = _reflected(rest), MIN_SAMPLES // HOP
        else:
            edge = N_FFT // 2
            padded = torch.cat([self._pending, self._pending[-edge - 1:-1].flip(0)])
            # the rest begins half a frame before its first frame's centre
            frames = (len(self._pending) - edge) // HOP
        windows = []
        while frames > 0:
            count = min(frames, self._frames)
            windows.append(self._window(padded[:(count - 1) * HOP + N_FFT], count))
            padded, frames = padded[count * HOP:], frames - count
        return windows

    def _window(self, padded: torch.Tensor, frames: int) -> torch.Tensor:
        mel = _log_mel(padded, frames)
        self._loudest = max(self._loudest, float(mel.max()))
        return _normalise(mel, self._loudest)


def chunk(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(frames, 128)`` -> zero-padded chunks ``(n, 128, 100)`` and their frame counts ``(n,)``."""
    frames = features.shape[0]
    if not frames:
        return features.new_zeros(0, MEL_BINS, CHUNK_FRAMES), torch.zeros(0, dtype=torch.long)
    count = -(-frames // CHUNK_FRAMES)
    padded = torch.nn.functional.pad(features, (0, 0, 0, count * CHUNK_FRAMES - frames))
    lengths = torch.full((count,), CHUNK_FRAMES)
    lengths[-1] = frames - (count - 1) * CHUNK_FRAMES
    return padded.view(count, CHUNK_FRAMES, MEL_BINS).transpose(1, 2), lengths
