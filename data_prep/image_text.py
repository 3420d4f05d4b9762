"""``python -m data_prep.image_text``: pictures with text, or text alone, to shards."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.command import refuse_used
from qwen3asr_train.data.pictures import decode
from qwen3asr_train.data.shards import PICTURES, ShardWriter
from qwen3asr_train.errors import DataError, UserError

_DESCRIPTION = """\
Pictures with text, or text alone, to shards. SOURCE is a folder of pictures (.jpg .png .webp), each
with a caption in a .txt, or a record in a .json, of the same name; or a JSONL file whose lines have
`text` and perhaps `image` (a path, relative to the file), `question`, `task` and `language`; or a
.txt file, a text a line. What cannot be used is named, counted and left out."""

FIELDS = ("text", "question", "task", "language", "target_language")
"""What a record keeps of its source."""

Found = tuple[str, dict | None, Path | None, str]
"""Name for messages, record (None: unusable), picture or film, why it is unusable."""


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 0 done, 2 nothing could be used."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.image_text",
                                     description=_DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--task", metavar="NAME", help="of records that name none (default: "
                        "visual_question with a question, else image_caption; text without image)")
    parser.add_argument("--shard-samples", type=int, default=1000, metavar="N",
                        help="samples in a shard (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        written, bad = convert(args.source, args.out, args.task, args.shard_samples)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {written} samples to {args.out}, left out {bad}")
    return 0


def convert(source: Path, out: Path, task: str | None, shard_samples: int) -> tuple[int, int]:
    """Write the shards; how many samples they hold and how many were left out."""
    written = bad = 0
    refuse_used(out)
    with ShardWriter(out, max_samples=shard_samples) as writer:
        for number, (name, record, picture, reason) in enumerate(_found(source)):
            try:
                if record is None:
                    raise DataError(f"{name}: {reason}")
                payload = None if picture is None else _read(picture, name)
                record = {"task": task or _task(record, picture)} | record
                if not str(record.get("text") or "").strip():
                    raise DataError(f"{name}: no text")
                writer.write(f"{number:08d}", record | {"source": source.stem}, image=payload,
                             image_extension=picture.suffix[1:].lower() if picture else "png")
                written += 1
            except DataError as error:
                print(f"bad: {error}", file=sys.stderr)
                bad += 1
    if not written:
        raise UserError(f"{source}: nothing that can be used ({bad} left out)")
    return written, bad


def _task(record: dict, picture: Path | None) -> str:
    if picture is None:
        return "text"
    return "visual_question" if record.get("question") else "image_caption"


def _read(picture: Path, name: str) -> bytes:
    """The file's bytes, decoded once to know that it can be."""
    if picture.suffix[1:].lower() not in PICTURES:
        raise DataError(f"{name}: '{picture.name}' is none of {', '.join(PICTURES)}")
    try:
        payload = picture.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {picture}: {error.strerror}") from error
    decode(payload, name)
    return payload


def _found(source: Path) -> Iterator[Found]:
    if source.is_dir():
        yield from described(path for path in sorted(source.rglob("*"))
                             if path.suffix[1:].lower() in PICTURES)
    elif not source.is_file():
        raise UserError(f"{source}: no such file or folder")
    elif source.suffix == ".jsonl":
        yield from _jsonl(source)
    elif source.suffix != ".txt":
        raise UserError(f"{source}: a folder, a .jsonl or a .txt file")
    else:
        for number, line in enumerate(_text_of(source).splitlines(), 1):
            if line.strip():
                yield f"{source}:{number}", {"text": line.strip()}, None, ""


def described(paths: Iterable[Path]) -> Iterator[Found]:
    """Files with the record or text that lies beside each under the same name."""
    for path in paths:
        name = str(path)
        if (beside := path.with_suffix(".json")).is_file():
            yield _record(name, beside.read_bytes(), path)
        elif (beside := path.with_suffix(".txt")).is_file():
            try:
                yield name, {"text": _text_of(beside).strip()}, path, ""
            except UserError as error:
                yield name, None, None, str(error)
        else:
            yield name, None, None, "no .txt or .json of the same name"


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start})") from error


def _jsonl(file: Path) -> Iterator[Found]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                name, record, _, reason = _record(f"{file}:{number}", line, None)
                image = json.loads(line).get("image") if record is not None else None
                if image is not None and not (image and isinstance(image, str)):
                    record, reason = None, "'image' is not the name of one file"
                elif image is None and record is not None and record.get("question"):
                    record, reason = None, "a question without a picture"
                yield name, record, file.parent / image if record and image else None, reason


def _record(name: str, payload: bytes, picture: Path | None) -> Found:
    try:
        record = json.loads(payload)
    except ValueError as error:
        return name, None, picture, f"unreadable JSON ({error})"
    if not isinstance(record, dict):
        return name, None, picture, "the JSON is not an object"
    text = record.get("text", record.get("caption"))
    kept = {field: record[field] for field in FIELDS if record.get(field) is not None}
    return name, kept | {"text": text}, picture, ""


if __name__ == "__main__":
    sys.exit(main())
