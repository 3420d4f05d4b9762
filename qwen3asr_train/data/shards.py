"""Shards: plain webdataset tars with an index beside each.

A sample is ``KEY.json``, at most one audio member ``KEY.flac|wav|mp3|ogg|opus`` and at most one
picture ``KEY.jpg|jpeg|png|webp``, which may have its caption in ``KEY.txt`` instead; or the frames
of a film, ``KEY.0000.jpg|…``, in order of their numbers, and perhaps its sound. The record in
``KEY.json`` has ``text`` (str), ``language`` (English name or null), and optionally ``context``,
``entities``, ``words``, ``task``, ``duration`` (of the audio), ``source`` and ``meta``; that of a
film has ``frame_times``, when each frame is shown, in seconds from where the film begins. The tar
is what ``webdataset.WebDataset`` reads; the index (``NAME.index.jsonl``) adds the byte ranges, so a
sample is one ``pread`` and a whole corpus can be planned without opening a tar. Nothing in a shard
is unpickled, executed or extracted to disk.
"""

import glob
import io
import json
import math
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qwen3asr_train.errors import DataError, UserError

INDEX_FORMAT = 2
PICTURES = ("jpg", "jpeg", "png", "webp")


class Entry(NamedTuple):
    """Where one sample lies: shard path, byte ranges, and what planning needs."""

    shard: str
    key: str
    json_at: tuple[int, int]  # byte offset, size
    audio_at: tuple[int, int] | None
    audio_extension: str | None
    duration: float  # seconds; 0 for a sample without audio
    language: str | None
    copy: int = 0  # which of its repetitions in an epoch
    image_at: tuple[int, int] | None = None
    plain: bool = False  # json_at is that of a caption without JSON around it
    frames_at: tuple[tuple[int, int], ...] = ()  # of a film, in order of time

    @property
    def name(self) -> str:
        """``shard:key``, what error messages call this sample."""
        return f"{self.shard}:{self.key}"

    @property
    def drawn_as(self) -> str:
        """What its random draws follow from: each of its repetitions has its own."""
        return f"{self.key}#{self.copy}" if self.copy else self.key


@dataclass(frozen=True)
class ShardSummary:
    """The header of an index: enough to plan steps without reading its entries."""

    path: str
    samples: int
    seconds: float
    max_seconds: float
    languages: dict[str, tuple[int, float]]  # samples and seconds; "" for those without a language

    @classmethod
    def of(cls, path: str, entries: Iterable[Entry]) -> "ShardSummary":
        """The summary of some entries."""
        samples, seconds, longest, languages = 0, 0.0, 0.0, {}
        for entry in entries:
            count, total = languages.get(entry.language or "", (0, 0.0))
            languages[entry.language or ""] = count + 1, total + entry.duration
            samples, seconds = samples + 1, seconds + entry.duration
            longest = max(longest, entry.duration)
        return cls(path, samples, seconds, longest, languages)


def index_path(shard: str | Path) -> Path:
    """``x/shard-000000.tar`` -> ``x/shard-000000.index.jsonl``."""
    return Path(shard).with_suffix(".index.jsonl")


class ShardWriter:
    """Writes samples into numbered shards; a shard appears on disk whole, with its index, or not.

    ``max_samples`` closes a shard; ``first`` is the number of the first one.
    """

    def __init__(self, folder: str | Path, *, prefix: str = "shard", max_samples: int = 1000,
                 first: int = 0):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix, self.max_samples, self.number = prefix, max_samples, first
        self.paths: list[Path] = []
        self._tar: tarfile.TarFile | None = None
        self._entries: list[Entry] = []

    def write(self, key: str, record: dict, audio: bytes | None = None,
              extension: str | None = None, *, image: bytes | None = None,
              frames: Sequence[bytes] = (), image_extension: str = "png") -> None:
        """Append one sample. ``record['duration']`` (s) is needed when there is audio,
        ``record['frame_times']`` when there are frames."""
        if "." in PurePosixPath(key).name or not is_safe_name(key):
            raise DataError(f"sample key {key!r}: must have no dot, '..' or leading '/'")
        check_record(record, key)
        if frames:
            frame_times(record, len(frames), key)
        if self._tar is None:
            self._open()
        json_at = self._add(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        audio_at = self._add(f"{key}.{extension}", audio) if audio is not None else None
        image_at = self._add(f"{key}.{image_extension}", image) if image is not None else None
        frames_at = tuple(self._add(f"{key}.{number:04d}.{image_extension}", frame)
                          for number, frame in enumerate(frames))
        self._entries.append(Entry(str(self._path), key, json_at, audio_at,
                                   extension if audio is not None else None,
                                   float(record.get("duration") or 0.0), record.get("language"),
                                   image_at=image_at, frames_at=frames_at))
        if len(self._entries) >= self.max_samples:
            self.close_shard()

    def _open(self) -> None:
        self._path = self.folder / f"{self.prefix}-{self.number:06d}.tar"
        self._partial = self._path.with_suffix(f".tar.partial-{os.getpid()}")
        self._tar = tarfile.open(self._partial, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def _add(self, name: str, payload: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        self._tar.addfile(info, io.BytesIO(payload))
        padded = -(-len(payload) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._tar.offset - padded, len(payload)

    def close_shard(self) -> None:
        """Finish the current shard, if one is open: index first, then the tar's final name."""
        if self._tar is None:
            return
        self._tar.close()
        write_index(self._path, self._entries, os.path.getsize(self._partial))
        os.replace(self._partial, self._path)
        self.paths.append(self._path)
        self.number += 1
        self._tar, self._entries = None, []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.close_shard()
        finally:
            self._discard()

    def _discard(self) -> None:
        """Remove what an unfinished shard left; on a full disk closing the tar fails as well."""
        if self._tar is None:
            return
        try:
            self._tar.close()
        except OSError:
            pass  # what is closed here is deleted in the next line
        finally:
            self._partial.unlink(missing_ok=True)
            self._tar, self._entries = None, []


def check_record(record: object, name: str) -> dict:
    """The record of ``KEY.json`` as a dict, or DataError saying which field is wrong."""
    if not isinstance(record, dict):
        raise DataError(f"{name}: the JSON is a {type(record).__name__}, not an object")
    text = record.get("text")
    if not isinstance(text, str):
        raise DataError(f"{name}: 'text' must be a string, not {type(text).__name__}")
    language = record.get("language")
    if language is not None and not isinstance(language, str):
        raise DataError(f"{name}: 'language' must be a string or null")
    if not text.strip() and record.get("task", "asr") == "asr":
        raise DataError(f"{name}: empty text (a sample without speech has task 'nonspeech')")
    return record


def frame_times(record: dict, count: int, name: str) -> tuple[float, ...]:
    """When each of a film's ``count`` frames is shown, in seconds; DataError unless the record says
    it of every one, each later than the one before."""
    times = record.get("frame_times")
    if not isinstance(times, list) or len(times) != count or not all(map(is_duration, times)) \
            or any(after <= before for before, after in pairwise(times)):
        raise DataError(f"{name}: 'frame_times' must be {count} rising numbers of seconds, one for "
                        "each frame")
    return tuple(float(time) for time in times)


def usual_task(entry: Entry) -> str | None:
    """What a record that names no task is, by what comes with it; None: speech."""
    if entry.frames_at:
        return "film_with_sound" if entry.audio_at else "film_caption"
    return "image_caption" if entry.image_at else None


ASKED = {"image_caption": "visual_question", "film_caption": "film_question",
         "film_with_sound": "film_with_sound_question"}
"""What :func:`usual_task` says, and what it is with a question."""


def is_text(record: dict) -> bool:
    """Whether a record has words (``spoken``) in place of audio."""
    return record.get("task") == "text"


def parse_record(payload: bytes, entry: Entry) -> dict:
    """The checked record in a member's bytes; of a picture it may be a caption alone."""
    name, plain, task = entry.name, entry.plain, usual_task(entry)
    try:
        record = {"text": payload.decode().strip()} if plain else json.loads(payload)
    except ValueError as error:  # also UnicodeDecodeError
        raise DataError(f"{name}: unreadable {'text' if plain else 'JSON'} ({error})") from error
    if task is not None and isinstance(record, dict):  # as found in the wild
        task = ASKED[task] if record.get("question") else task
        record = {"task": task, "text": record.get("caption")} | record
    return check_record(record, name)


def write_index(shard: Path, entries: Iterable[Entry], tar_bytes: int) -> None:
    """Write the index of ``shard`` atomically."""
    entries = list(entries)
    summary = ShardSummary.of(str(shard), entries)
    header = {"format": INDEX_FORMAT, "tar_bytes": tar_bytes, "samples": summary.samples,
              "seconds": round(summary.seconds, 6), "max_seconds": summary.max_seconds,
              "languages": {name: [count, round(seconds, 6)] for name, (count, seconds)
                            in sorted(summary.languages.items())}}
    path = index_path(shard)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
            for e in entries:
                row = [e.key, e.json_at, e.audio_at, e.audio_extension, e.duration, e.language]
                if e.image_at or e.frames_at:
                    row += [e.image_at, e.plain]
                if e.frames_at:
                    row.append(e.frames_at)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_summary(shard: str | Path) -> ShardSummary:
    """The header of a shard's index, checked against the tar's size on disk."""
    header = _read_header(shard)
    size = os.path.getsize(shard)
    if size != header["tar_bytes"]:
        raise DataError(
            f"{shard}: {size} bytes, its index says {header['tar_bytes']} (truncated or rewritten);"
            f" restore the file, or index it again: python -m data_prep.index {shard}")
    return ShardSummary(str(shard), header["samples"], header["seconds"], header["max_seconds"],
                        {name: tuple(part) for name, part in header["languages"].items()})


def read_entries(shard: str | Path) -> list[Entry]:
    """All entries of a shard's index, in file order."""
    _read_header(shard)
    entries = []
    with open(index_path(shard), encoding="utf-8") as file:
        next(file)
        for line in file:
            key, json_at, audio_at, extension, seconds, language, *seen = json.loads(line)
            image_at, plain, frames_at = seen + [None, False, ()][len(seen):]
            entries.append(Entry(str(shard), key, tuple(json_at),
                                 tuple(audio_at) if audio_at else None, extension, seconds,
                                 language, image_at=tuple(image_at) if image_at else None,
                                 plain=plain, frames_at=tuple(map(tuple, frames_at))))
    return entries


def _read_header(shard: str | Path) -> dict:
    path = index_path(shard)
    if not Path(shard).is_file():
        raise DataError(f"{shard}: no such shard")
    if not path.is_file():
        raise DataError(f"{shard}: no index beside it; make one: python -m data_prep.index {shard}")
    with open(path, encoding="utf-8") as file:
        try:
            header = json.loads(file.readline())
            if header["format"] != INDEX_FORMAT:
                raise ValueError(f"format {header['format']}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not an index of this version ({error}); make it again: "
                            f"python -m data_prep.index {shard}") from error
    return header


def find_shards(patterns: str | Iterable[str]) -> list[str]:
    """Folders, globs or tar paths -> sorted tar paths. UserError when one matches nothing."""
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if os.path.isdir(pattern):
            matches = glob.glob(os.path.join(glob.escape(pattern), "*.tar"))
        else:
            matches = glob.glob(pattern)
        if not matches:
            raise UserError(f"no shards at '{pattern}' (expected .tar files; "
                            "make some with python -m data_prep.jsonl, see the README)")
        if others := sorted(path for path in matches if not path.endswith(".tar")):
            raise UserError(f"{others[0]}: not a .tar of samples (of a JSONL, python -m "
                            "data_prep.jsonl makes some; see the README)")
        found += matches
    return sorted(set(found))


def is_duration(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def is_safe_name(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


class ShardReader:
    """Reads samples by entry; keeps at most ``max_open`` files open. One per process."""

    def __init__(self, max_open: int = 64):
        self.max_open = max_open
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, entry: Entry) -> tuple[dict, bytes | None]:
        """The record and the audio bytes of a sample; DataError names shard and key."""
        audio = self._pread(entry, *entry.audio_at) if entry.audio_at else None
        return self.read_record(entry), audio

    def read_record(self, entry: Entry) -> dict:
        """The record of a sample."""
        return parse_record(self._pread(entry, *entry.json_at), entry)

    def read_image(self, entry: Entry) -> bytes | None:
        """The picture's file of a sample."""
        return self._pread(entry, *entry.image_at) if entry.image_at else None

    def read_frames(self, entry: Entry) -> Iterator[bytes]:
        """The files of a film's frames, in order of time, one by one."""
        return (self._pread(entry, *at) for at in entry.frames_at)

    def _pread(self, entry: Entry, offset: int, size: int) -> bytes:
        descriptor = self._files.get(entry.shard)
        if descriptor is None:
            if len(self._files) >= self.max_open:
                os.close(self._files.popitem(last=False)[1])
            try:
                descriptor = os.open(entry.shard, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"{entry.name}: {error.strerror}") from error
            self._files[entry.shard] = descriptor
        else:
            self._files.move_to_end(entry.shard)
        payload = os.pread(descriptor, size, offset)
        if len(payload) != size:
            raise DataError(f"{entry.name}: truncated shard ({len(payload)} of {size} bytes)")
        return payload

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])
