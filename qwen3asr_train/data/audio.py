"""Audio files to float32 mono at 16 kHz, and back.

libsndfile reads wav, flac, mp3 and ogg (vorbis and opus); soxr resamples. Every failure is a
:class:`DataError` that names the source, so a caller can count it or stop.
"""

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from qwen3asr_train.errors import DataError

SAMPLE_RATE = 16_000
"""Hz. The rate of the released models' feature extractor."""

EXTENSIONS = ("wav", "flac", "mp3", "ogg", "opus")
"""Audio members of a shard and audio files in a folder, by extension without the dot."""

LOOKED_AT = (*EXTENSIONS, "aif", "aiff", "au", "caf", "w64", "rf64", "sph", "m4a", "mp4", "aac",
             "wma", "webm", "amr")
"""Audio files in a folder of the user's. Formats that libsndfile cannot read are looked at as well:
they end in an error that names the file, where silence would look like success."""

_SUBTYPES = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
             "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}

# TypeError: the extension is .raw, which soundfile opens only with a rate.
_UNREADABLE = (soundfile.SoundFileError, OSError, TypeError)
_BLOCK = 1 << 20  # frames read at a time
_MAX_FRAMES = 1 << 40
_STREAMED = 0x7FFF0000  # lengths from here on stand for one that is not known


def decode(source: bytes | str | Path, *, name: str | None = None) -> np.ndarray:
    """Audio bytes or file -> float32 ``(samples,)``, mono, 16 kHz.

    Channels are averaged. Raises DataError for a missing or unreadable file, for no samples and
    for values that are not finite; ``name`` is what the message calls the source.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "audio bytes")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DataError(f"{name}: no such audio file")
    try:
        waveform, rate = _read(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    return to_mono_16k(waveform, rate, name=name)


def _read(handle: io.BytesIO | str) -> tuple[np.ndarray, int]:
    """float32 ``(samples, channels)`` and the rate (Hz).

    Block by block, so that a header that lies about the length does not decide how much memory
    is taken.
    """
    with soundfile.SoundFile(handle) as file:
        _check_frames(file.frames)
        if file.format == "WAV":
            _check_whole(handle)
        blocks = [file.read(_BLOCK, dtype="float32", always_2d=True)]
        while len(blocks[-1]) == _BLOCK:
            blocks.append(file.read(_BLOCK, dtype="float32", always_2d=True))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), file.samplerate


def _check_frames(frames: int) -> None:
    if frames > _MAX_FRAMES:
        raise OSError("the header does not tell the length, as in FLAC from a pipe; encode it anew")


def _check_whole(handle: io.BytesIO | str) -> None:
    """OSError for a WAV file that ends before the samples its header promises, as after a copy that
    was cut off: libsndfile reads what there is. Headers of streams, which promise nothing (0) or
    the most there can be, are let through."""
    if isinstance(handle, str):
        with open(handle, "rb") as file:
            return _check_whole(file)
    place = handle.tell()
    try:
        size = handle.seek(0, io.SEEK_END)
        handle.seek(12)  # RIFF, length, WAVE
        while len(head := handle.read(8)) == 8:
            length, begin = int.from_bytes(head[4:], "little"), handle.tell()
            if head[:4] == b"data":
                if begin + length > size and 0 < length < _STREAMED:
                    raise OSError(f"cut off: {size - begin} of {length} bytes of samples")
                return None
            handle.seek(length + length % 2, io.SEEK_CUR)
    finally:
        handle.seek(place)


def _unreadable(name: str, error: BaseException) -> DataError:
    # The whole message of libsndfile holds the address of our buffer: not the same in two runs.
    reason = getattr(error, "error_string", error)
    return DataError(f"{name}: not readable as {'/'.join(EXTENSIONS)} ({reason})")


def to_mono_16k(waveform: np.ndarray, rate: int, *, name: str = "audio") -> np.ndarray:
    """``(samples,)`` or ``(samples, channels)`` at ``rate`` Hz -> float32 ``(samples,)`` at 16 kHz.

    Raises DataError when there are no samples or some are NaN or infinite.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    if waveform.size == 0:
        raise DataError(f"{name}: no audio samples (zero length)")
    if not np.isfinite(waveform).all():
        raise DataError(f"{name}: audio holds NaN or infinite samples")
    if rate != SAMPLE_RATE:
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE)
        if waveform.size == 0:
            raise DataError(f"{name}: shorter than one sample at {SAMPLE_RATE} Hz")
    return np.ascontiguousarray(waveform)


def encode(waveform: np.ndarray, extension: str, rate: int = SAMPLE_RATE,
           subtype: str | None = None) -> bytes:
    """float ``(samples,)`` in -1..1, or int16 -> the bytes of one ``extension`` file. ``subtype``
    of libsndfile, by default 16 bits where there are samples; ``FLOAT`` keeps what is beyond 1."""
    container, usual = _SUBTYPES[extension]
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=container, subtype=subtype or usual)
    return buffer.getvalue()


def duration(source: bytes | str | Path, *, name: str | None = None) -> float:
    """Seconds of an audio file by its header. Raises DataError as :func:`decode` does."""
    name = name or (str(source) if not isinstance(source, bytes) else "audio bytes")
    try:
        info = soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else str(source))
        _check_frames(info.frames)
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    return info.frames / info.samplerate
