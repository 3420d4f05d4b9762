"""Tars that were made elsewhere: their samples by member names, and an index of those with records
of ours. Nothing in them is unpickled, executed or extracted to disk."""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qwen3asr_train.data.audio import EXTENSIONS
from qwen3asr_train.data.audio import duration as audio_duration
from qwen3asr_train.data.shards import (
    PICTURES,
    Entry,
    frame_times,
    is_duration,
    is_safe_name,
    parse_record,
)
from qwen3asr_train.errors import DataError

_FRAME = re.compile(rf"(\d+)\.({'|'.join(PICTURES)})")  # a member's extension
_FORBIDDEN = ("pyd", "pickle", "pkl", "pth", "pt", "npy")  # formats whose decoders may run code


def scan_tar(shard: str | Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Samples of any webdataset tar: ``(key, {extension: (offset, size)})``, in file order.

    Members with the same path up to the first dot of the file name are one sample, as webdataset
    groups them. Raises DataError for a truncated tar, a path that leads outside, and for members
    whose format can carry code (``.pyd``, ``.pickle`` …).
    """
    size = os.path.getsize(shard)
    current, members = None, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if not info.isfile():
                    continue
                if info.offset_data + info.size > size:
                    raise DataError(f"{shard}: truncated inside member {info.name!r}")
                key, extension = _split_member(shard, info.name)
                if key != current:
                    if members:
                        yield current, members
                    current, members = key, {}
                members[extension] = (info.offset_data, info.size)
            # tarfile takes a cut or damaged header behind the first for the end; the end is zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{shard}: truncated or damaged after {current!r}, at byte "
                                f"{tar.offset} (no end-of-archive)")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: not a whole tar file ({error})") from error
    if members:
        yield current, members


def _split_member(shard: str | Path, name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    if not is_safe_name(name):
        raise DataError(f"{shard}: member {name!r} leads outside the archive")
    stem, _, extension = path.name.partition(".")
    if extension.lower().split(".")[-1] in _FORBIDDEN:
        raise DataError(f"{shard}: member {name!r} has a format that can carry code; refused")
    return str(path.parent / stem) if str(path.parent) != "." else stem, extension.lower()


def entries_of_tar(shard: str | Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Entries of a tar that holds our records, and ``(key, reason)`` for samples left out."""
    entries, bad = [], []
    with open(shard, "rb") as file:
        def payload(at: tuple[int, int]) -> bytes:
            file.seek(at[0])
            return file.read(at[1])

        for key, members in scan_tar(shard):
            name = f"{shard}:{key}"
            extension = next((e for e in members if e in EXTENSIONS), None)
            image_at = next((members[e] for e in members if e in PICTURES), None)
            plain = image_at is not None and "json" not in members and "txt" in members
            frames = sorted((int(found[1]), at) for ending, at in members.items()
                            if (found := _FRAME.fullmatch(ending)))
            try:
                if "json" not in members and not plain:
                    raise DataError(f"{name}: no .json member")
                record_at = members["txt" if plain else "json"]
                entry = Entry(str(shard), key, record_at, members.get(extension), extension, 0.0,
                              None, image_at=image_at, plain=plain,
                              frames_at=tuple(at for _, at in frames))
                record = parse_record(payload(record_at), entry)
                if frames:
                    frame_times(record, len(frames), name)
                seconds = record.get("duration")
                if not is_duration(seconds):
                    seconds = audio_duration(payload(members[extension]), name=name) \
                        if extension else 0.0
            except DataError as error:
                bad.append((key, str(error)))
                continue
            entries.append(entry._replace(duration=float(seconds),
                                          language=record.get("language")))
    return entries, bad
