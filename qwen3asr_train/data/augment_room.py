"""Reverberation: synthetic and measured impulse responses, convolution."""

import numpy as np

from qwen3asr_train.data.audio import SAMPLE_RATE

_DIRECT_SECONDS = 0.0025
"""What arrives within 2.5 ms counts as direct sound, as is usual where the ratio is measured."""

_LONGEST_SECONDS = 4.0
"""Of a measured response behind its direct sound; what comes later is cut off."""


def synthetic_response(rt60: float, drr_db: float, rng: np.random.Generator) -> np.ndarray:
    """A room's response by Polack's model: float32 ``(samples,)``, direct sound of 1 at its start.

    Behind it Gaussian noise that falls by 60 dB in ``rt60`` seconds, scaled so that the direct
    sound has ``drr_db`` more energy than all of it (Polack 1988; Habets 2007, section 2.4).
    """
    first = round(_DIRECT_SECONDS * SAMPLE_RATE)
    samples = max(first + 1, round(rt60 * SAMPLE_RATE))
    decay = np.exp(np.arange(samples - first) * (-3 * np.log(10) / (rt60 * SAMPLE_RATE)))
    tail = rng.standard_normal(samples - first) * decay
    response = np.zeros(samples, np.float32)
    response[0] = 1.0
    response[first:] = tail * np.sqrt(10 ** (-drr_db / 10) / np.sum(tail**2))
    return response


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The clip in the room, as long and as loud (RMS) as before: float32 ``(samples,)``.

    The strongest sample of ``response`` is taken for the direct sound and set to time 0, so that
    word times stay right. Silence, and a response of nothing but zeros, change nothing.
    """
    direct = int(np.abs(response).argmax())
    response = response[:direct + round(_LONGEST_SECONDS * SAMPLE_RATE)]
    wet = convolve(waveform, response, direct)
    level, wet_level = rms(waveform), rms(wet)
    if level == 0.0 or wet_level == 0.0:
        return waveform
    return (wet * (level / wet_level)).astype(np.float32)


def convolve(waveform: np.ndarray, kernel: np.ndarray, origin: int = 0) -> np.ndarray:
    """Samples ``origin`` … of the convolution, as many as ``waveform`` has: float32 ``(samples,)``.

    By overlap-add: blocks of a few times the kernel's length, transformed together.
    """
    overlap = len(kernel) - 1
    size = max(16_384, 1 << (4 * len(kernel) - 1).bit_length())
    step = size - overlap
    # so many blocks that also the samples behind the clip come out
    blocks = np.zeros((-(-(len(waveform) + overlap) // step), step), np.float32)
    blocks.reshape(-1)[:len(waveform)] = waveform
    spectrum = np.fft.rfft(blocks, size) * np.fft.rfft(kernel.astype(np.float32), size)
    whole = np.fft.irfft(spectrum, size)
    result = whole[:, :step].copy()
    result[1:, :overlap] += whole[:-1, step:]
    return result.reshape(-1)[origin:origin + len(waveform)].astype(np.float32)


def rms(waveform: np.ndarray) -> float:
    """Root of the mean square, in double precision."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
