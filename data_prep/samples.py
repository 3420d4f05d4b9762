"""One recording with its transcript on the way into a shard, and the worker that writes shards.

Worker processes import this module, so it stays light: no torch, no transformers.
"""

import hashlib
import io
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import soundfile

from qwen3asr_train.data.audio import EXTENSIONS, SAMPLE_RATE, decode, encode, to_mono_16k
from qwen3asr_train.data.shards import ShardWriter, check_record, read_summary
from qwen3asr_train.errors import DataError, UserError

OVERSHOOT = 0.5
"""Seconds a segment may end behind its recording (it is cut there), or a word; Kaldi's
extract-segments allows the same."""

_CONTAINERS = {("WAV", None): "wav", ("WAVEX", None): "wav", ("FLAC", None): "flac",
               ("MP3", None): "mp3", ("OGG", "OPUS"): "opus", ("OGG", "VORBIS"): "ogg"}


@dataclass(frozen=True)
class FileSpan:
    """Audio that is a part of a larger file, such as a member of a tar: byte offset and size."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class Item:
    """A recording, or a segment of one, and what was said.

    ``audio`` is a path, encoded bytes, a span of a file, or ``(waveform, Hz)`` with a waveform
    ``(samples,)`` or ``(samples, channels)``, floating in -1..1 or of an integer type. ``start``
    and ``end`` (s) cut a segment out. ``text`` may hold the released fine-tuning format,
    ``language English<asr_text>the words``. ``language`` is a code or an English name in any case,
    or ``"None"`` for no speech. ``meta["speaker"]`` keeps a speaker in one split.
    """

    key: str
    audio: str | bytes | FileSpan | tuple[np.ndarray, int]
    text: str
    language: str | None = None
    start: float | None = None
    end: float | None = None
    name: str | None = None  # what the list of bad items calls the audio; the path, if not given
    context: str | None = None
    entities: list[str] | None = None
    words: list[list] | None = None  # [word, start s, end s]
    task: str = "asr"
    meta: dict = field(default_factory=dict)

    @property
    def audio_name(self) -> str:
        """The audio as a person can find it."""
        return self.name or (self.audio if isinstance(self.audio, str) else self.key)


@dataclass(frozen=True)
class Bad:
    """An item that is left out, and why."""

    key: str
    audio: str
    reason: str


@dataclass(frozen=True)
class Block:
    """What goes into one shard: consecutive items of the source, and those refused among them."""

    split: str  # "" when nothing is split
    number: int
    items: tuple[Item, ...]
    bad: tuple[Bad, ...]
    folder: Path  # of the shard
    receipt: Path  # written when the shard is whole
    source: str
    audio_format: str
    digest: str


@dataclass(frozen=True)
class Receipt:
    """What became of a block; kept on disk, it is what a resumed run goes by."""

    digest: str
    samples: int
    seconds: float
    bad: list[dict]  # Bad as dicts
    no_language: int = 0  # samples of speech with a transcript and no language

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), ensure_ascii=False))

    @classmethod
    def read(cls, path: Path) -> "Receipt | None":
        """The receipt at ``path``; None when there is none or it is no receipt."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None


class Cancelled(RuntimeError):
    """The run ends; the shard at hand is given up."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under another name first; no partial file stays behind."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        # Names of files need not be UTF-8; what cannot be written is shown escaped.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def holds(shard: Path, samples: int) -> bool:
    """Whether a shard that was to hold so many samples does; one of none is not written at all."""
    try:
        return not samples or read_summary(shard).samples == samples
    except DataError:
        return False


def make_key(text: str) -> str:
    """A key that is safe as the name of a tar member: word characters of any script, ``-``, ``_``.

    Anything else becomes ``_``; a long key keeps its end and a hash of the whole.
    """
    clean = re.sub(r"[^\w-]+", "_", text).strip("_") or "sample"
    if len(clean) > 100:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        clean = f"{clean[-80:]}-{digest[:12]}"
    return clean


def record_of(item: Item, source: str) -> dict:
    """The record of ``KEY.json``, without the duration. Raises DataError for what JSON cannot say
    and for fields of a wrong form."""
    record = {"text": item.text, "language": item.language, "task": item.task, "source": source}
    optional = {"context": item.context, "entities": item.entities, "words": item.words,
                "meta": item.meta}
    record |= {name: value for name, value in optional.items() if value}
    if not isinstance(item.context, str | None) or not isinstance(item.task, str):
        raise DataError("'context' (or 'prompt') and 'task' must be strings")
    if not _is_list(item.entities, lambda value: isinstance(value, str)):
        raise DataError("'entities' must be a list of strings")
    if not _is_list(item.words, _is_word):
        raise DataError("'words' must be a list of [word, start seconds, end seconds]")
    if wrong := next((word for word in item.words or [] if not 0 <= word[1] <= word[2]), None):
        raise DataError(f"'words': {wrong[0]!r} from {wrong[1]} to {wrong[2]} s")
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise DataError("the text is not valid UTF-8") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"the record cannot be written as JSON ({error})") from error
    return check_record(record, item.key)


def _is_list(value: object, is_element: Callable[[object], bool]) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_element, value)))


def _is_word(value: object) -> bool:
    return (isinstance(value, list) and len(value) == 3 and isinstance(value[0], str)
            and all(isinstance(time, int | float) for time in value[1:]))


def _check_ends(item: Item, duration: float) -> None:
    """DataError for a word that ends well after the audio."""
    if late := next((word for word in item.words or [] if word[2] > duration + OVERSHOOT), None):
        raise DataError(f"'words': {late[0]!r} ends at {late[2]} s, the audio at {duration:.2f} s")


def load_audio(item: Item, audio_format: str) -> tuple[bytes, str, float]:
    """Encoded audio, its extension and its duration (s).

    ``audio_format`` ``"keep"`` leaves the bytes of a whole wav, flac, mp3, ogg or opus file as they
    are; everything else becomes 16 kHz mono in FLAC, or in ``audio_format``. Raises DataError.
    """
    name, encoded = item.audio_name, None
    is_segment = item.start is not None or item.end is not None
    if isinstance(item.audio, tuple):
        waveform, rate = _as_float(*item.audio, name=name)
        waveform = to_mono_16k(waveform, rate, name=name)
    elif isinstance(item.audio, str) and is_segment:
        waveform, is_segment = _read_segment(item, name), False
    else:
        encoded = _read_bytes(item.audio, name)
        waveform = decode(encoded, name=name)
    if is_segment:
        first, last = _frames(item, len(waveform), SAMPLE_RATE, name)
        waveform, encoded = waveform[first:last], None
    extension = _container(encoded) if encoded and audio_format == "keep" else None
    if extension is None:
        extension = "flac" if audio_format == "keep" else audio_format
        encoded = encode(waveform, extension)
    return encoded, extension, len(waveform) / SAMPLE_RATE


def _as_float(waveform: np.ndarray, rate: int, *, name: str) -> tuple[np.ndarray, int]:
    waveform = np.asarray(waveform)
    if waveform.ndim not in (1, 2) or rate <= 0 or waveform.dtype.kind not in "fi":
        raise DataError(f"{name}: a waveform needs 1 or 2 axes, real values and a positive rate, "
                        f"not {waveform.ndim} axes of {waveform.dtype} at {rate} Hz")
    if waveform.dtype.kind == "i":
        waveform = waveform / (np.iinfo(waveform.dtype).max + 1.0)
    return waveform, rate


def _read_bytes(audio: str | bytes | FileSpan, name: str) -> bytes:
    if isinstance(audio, bytes):
        return audio
    path, offset, size = ((audio, 0, -1) if isinstance(audio, str)
                          else (audio.path, audio.offset, audio.size))
    if not os.path.isfile(path):  # a device or a pipe would never end
        raise DataError(f"{name}: no such audio file")
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from error


def _read_segment(item: Item, name: str) -> np.ndarray:
    """A segment of a file without reading the rest of it: hours of recording are common."""
    if not os.path.isfile(item.audio):
        raise DataError(f"{name}: no such audio file")
    try:
        with soundfile.SoundFile(item.audio) as file:
            first, last = _frames(item, file.frames, file.samplerate, name)
            file.seek(first)
            waveform = file.read(last - first, dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as error:
        reason = getattr(error, "error_string", error)
        raise DataError(f"{name}: not readable as {'/'.join(EXTENSIONS)} ({reason})") from error
    return to_mono_16k(waveform, rate, name=name)


def _frames(item: Item, frames: int, rate: int, name: str) -> tuple[int, int]:
    start = item.start or 0.0
    end = frames / rate if item.end is None else item.end
    if not 0 <= start < end < float("inf"):
        raise DataError(f"{name}: segment from {start} s to {end} s is empty or reversed")
    if end > frames / rate + OVERSHOOT or round(start * rate) >= frames:
        raise DataError(f"{name}: segment from {start} s to {end} s, but the recording has "
                        f"{frames / rate:.2f} s")
    return round(start * rate), min(round(end * rate), frames)


def _container(encoded: bytes) -> str | None:
    info = soundfile.info(io.BytesIO(encoded))
    return _CONTAINERS.get((info.format, None)) or _CONTAINERS.get((info.format, info.subtype))


_stop: Event | None = None


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells (macOS does not); else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_worker(stop: Event) -> None:
    """Initialise a worker process: Ctrl-C is the main process's to handle, ``stop`` its word."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_block(block: Block) -> Receipt:
    """Write the shard of a block, then its receipt. Whole or not at all.

    A block without one good item has a receipt and no shard. Raises UserError when the folder
    cannot be written (full disk, no permission), Cancelled when the run was stopped.
    """
    bad, samples, seconds, no_language = list(block.bad), 0, 0.0, 0
    try:
        with ShardWriter(block.folder, max_samples=len(block.items) + 1,
                         first=block.number) as writer:
            for item in block.items:
                if _stop is not None and _stop.is_set():
                    raise Cancelled(f"shard {block.number} given up")
                try:
                    audio, extension, duration = load_audio(item, block.audio_format)
                    _check_ends(item, duration)
                except DataError as error:
                    bad.append(bad_item(item, error))
                    continue
                record = record_of(item, block.source) | {"duration": duration}
                writer.write(item.key, record, audio, extension)
                samples, seconds = samples + 1, seconds + duration
                no_language += bool(item.text and not item.language and item.task == "asr")
        receipt = Receipt(block.digest, samples, round(seconds, 6),
                          [asdict(entry) for entry in bad], no_language)
        receipt.write(block.receipt)
    except OSError as error:
        raise UserError(f"cannot write shards to {block.folder}: {error.strerror}; whole shards "
                        "are kept, so mend this and run the same command again") from error
    return receipt


def bad_item(item: Item, error: Exception) -> Bad:
    """``item`` as an entry of the list of bad items."""
    reason = str(error).removeprefix(f"{item.audio_name}: ").removeprefix(f"{item.key}: ")
    return Bad(item.key, item.audio_name, reason)
