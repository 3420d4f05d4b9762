"""``python -m data_prep.jsonl``: rows of a JSONL file to shards."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from data_prep.command import converter_parser, reading, resolve, run_converter
from data_prep.convert import Bad, Item
from qwen3asr_train.errors import DataError

_DESCRIPTION = """\
Rows of a JSONL file to shards. A row is an object:
  audio     path; a relative one is looked up below --audio-root, or else below the
            folder of the JSONL file, then below the working directory
            (NeMo's name, audio_filepath, is understood too)
  text      the words, or the released fine-tuning format:
            "language English<asr_text>the words"; "language None<asr_text>" is no speech
and, where wanted:
  language  English name or code          prompt (or context)  free context for the model
  id        key of the sample             speaker              keeps a speaker in one split
  start, end (or offset, duration)        a segment of the audio, in seconds
  entities  list of strings               words                list of [word, start s, end s]
  task      asr (default), nonspeech …    meta                 object, kept as it is"""

_LONGEST = 1e9  # seconds; more than any recording


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = converter_parser("jsonl", _DESCRIPTION,
                              "python -m data_prep.jsonl train.jsonl --out shards/mine")
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--audio-root", type=Path, metavar="DIR", help="where audio paths start")
    return run_converter(parser, _source, lambda args: args.file.stem, argv)


def _source(args: Namespace) -> tuple[Iterator[Item | Bad], int]:
    with reading(args.file), open(args.file, "rb") as file:
        total = sum(1 for line in file if line.strip())
    roots = (args.audio_root,) if args.audio_root else (args.file.parent, Path.cwd())
    return items(args.file, roots), total


def items(path: Path, roots: tuple[Path, ...]) -> Iterator[Item | Bad]:
    """Items of a JSONL file; a row that cannot be read is Bad, with its line number."""
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                yield _item(line, place, roots)
            except DataError as error:
                yield Bad(f"line-{number}", place, str(error))


def _item(line: bytes, place: str, roots: tuple[Path, ...]) -> Item:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"a JSON {type(row).__name__}, not an object")
    audio = _first(row, "audio", "audio_filepath")
    if not isinstance(audio, str) or not audio:
        raise DataError("no 'audio' path")
    if "text" not in row:
        raise DataError("no 'text'")
    meta = {} if row.get("meta") is None else row["meta"]
    if not isinstance(meta, dict):
        raise DataError("'meta' must be an object")
    if row.get("speaker") is not None:
        meta = meta | {"speaker": str(row["speaker"])}
    start, end = _segment(row)
    key = str(row.get("id") or os.path.splitext(audio)[0])
    if start is not None and not row.get("id"):
        key += f"-{round(start * 1000)}"
    path = resolve(audio, *roots)
    return Item(key=key, audio=path, name=f"{path} ({place})", text=row["text"],
                language=row.get("language"), start=start, end=end,
                context=_first(row, "prompt", "context"), entities=row.get("entities"),
                words=row.get("words"), task=row.get("task") or "asr", meta=meta)


def _first(row: dict, *names: str) -> object:
    """The first of these fields that is there and not null."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _segment(row: dict) -> tuple[float | None, float | None]:
    """``start`` and ``end``, or NeMo's ``offset`` and ``duration``; a duration alone is only news.
    """
    for name in ("start", "end", "offset", "duration"):
        value = row.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and abs(value) < _LONGEST):  # NaN is not either
            raise DataError(f"'{name}' must be a number of seconds")
    if row.get("offset") is None:
        return row.get("start"), row.get("end")
    length = row.get("duration")
    return row["offset"], None if length is None else row["offset"] + length


if __name__ == "__main__":
    sys.exit(main())
