"""Clipping, and the way through lossy codecs and the telephone; length and times stay."""

import io
from functools import lru_cache

import numpy as np
import soundfile
import soxr

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.augment_room import convolve, rms
from qwen3asr_train.data.augment_time import fit_length

CODECS = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS"),
          "ulaw": ("WAV", "ULAW"), "alaw": ("WAV", "ALAW"), "gsm": ("WAV", "GSM610")}
"""Container and subtype of libsndfile. The last three are 8 kHz telephone: G.711 in both of its
companding laws (64 kbit/s), and GSM 06.10 full rate (13 kbit/s)."""

TELEPHONE = ("ulaw", "alaw", "gsm")

_TELEPHONE_RATE = 8000
_TELEPHONE_HERTZ = (300.0, 3400.0)
_SPEECH_LEVEL = 10 ** (-26 / 20)  # RMS of full scale: -26 dBov, usual for tests of speech codecs


def clip_peaks(waveform: np.ndarray, drive_db: float) -> np.ndarray:
    """Cut off what lies above ``drive_db`` below the clip's peak, as an overdriven input does."""
    ceiling = np.float32(np.abs(waveform).max() * 10 ** (-drive_db / 20))
    return np.clip(waveform, -ceiling, ceiling)


def through_codec(waveform: np.ndarray, codec: str, kbps: float) -> np.ndarray:
    """Coded and decoded again: float32 ``(samples,)`` at 16 kHz, the same length and alignment.

    ``codec``: one of :data:`CODECS`. ``kbps``: the bit rate aimed at by mp3 (8 to 160), opus (6 to
    256) and vorbis (about 28 to 68), which take their nearest; telephone codecs have one rate.
    The clip is coded at -26 dBov, or less where it would clip, and brought back to its level: what
    is lost depends on the codec, not on the recording's level. Silence stays as it is.
    """
    level, peak = rms(waveform), float(np.abs(waveform).max())
    if level == 0.0:
        return waveform
    scale = min(_SPEECH_LEVEL / level, 0.99 / peak)
    scaled = (waveform * np.float64(scale)).astype(np.float32)
    coded = _telephone(scaled, codec) if codec in TELEPHONE else _music(scaled, codec, kbps)
    return (fit_length(coded, len(waveform)) / np.float64(scale)).astype(np.float32)


def _music(waveform: np.ndarray, codec: str, kbps: float) -> np.ndarray:
    # libsndfile's compression level runs from 0 (most bits) to 1, linear in the bit rate for mp3
    # and opus (mpeg_l3_encode.c, ogg_opus.c) and in vorbis' quality; at 16 kHz mono quality 0.1 is
    # about 30 kbit/s and quality 1 about 68.
    lowest, highest = {"mp3": (8, 160), "opus": (6, 256), "vorbis": (28, 68)}[codec]
    level = float(np.clip((highest - kbps) / (highest - lowest), 0.0, 0.999))  # not 1 for mp3
    # AVERAGE: at a constant rate below 40 kbit/s no frame has room for LAME's tag with the
    # encoder's delay, and the decoder does not take the 1105 samples off.
    mode = "AVERAGE" if codec == "mp3" else None
    return _code(waveform, SAMPLE_RATE, codec, compression_level=level, bitrate_mode=mode)


def _telephone(waveform: np.ndarray, codec: str) -> np.ndarray:
    narrow = soxr.resample(waveform, SAMPLE_RATE, _TELEPHONE_RATE)
    band = _telephone_band()
    narrow = convolve(narrow, band, len(band) // 2)
    decoded = _code(np.clip(narrow, -1.0, 1.0), _TELEPHONE_RATE, codec)
    return soxr.resample(decoded, _TELEPHONE_RATE, SAMPLE_RATE)


def _code(waveform: np.ndarray, rate: int, codec: str, **options) -> np.ndarray:
    """To a file in memory and back: float32 at ``rate``; codecs with frames may add some at the
    end. libsndfile takes the delay of encoders off by what the file says about it."""
    container, subtype = CODECS[codec]
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=container, subtype=subtype, **options)
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


@lru_cache(maxsize=1)
def _telephone_band() -> np.ndarray:
    """300 to 3400 Hz at 8 kHz: linear-phase windowed sinc ``(257,)``, edges 100 Hz wide."""
    times = np.arange(-128, 129) / _TELEPHONE_RATE
    low, high = (2 * edge / _TELEPHONE_RATE * np.sinc(2 * edge * times)
                 for edge in _TELEPHONE_HERTZ)
    return ((high - low) * np.hamming(257)).astype(np.float32)
