"""``python -m data_prep.webdataset``: webdataset tars made elsewhere to our shards."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_prep.command import converter_parser, run_converter
from data_prep.convert import Bad, FileSpan, Item
from qwen3asr_train.data.audio import EXTENSIONS
from qwen3asr_train.data.shards import find_shards
from qwen3asr_train.data.tars import scan_tar
from qwen3asr_train.errors import DataError

_DESCRIPTION = """\
Webdataset tars made elsewhere to shards of our record format. A sample is audio (.wav, .flac,
.mp3, .ogg, .opus) with its text in a .txt member or in a field of a .json member. Nothing is
unpickled or unpacked to disk. A tar that is truncated, whose members lead outside it, or that
holds formats which can carry code (.pyd, .pickle, .pth …) is refused whole; the others go on.
Tars that have our records already need no conversion: python -m data_prep.index."""


_TOGETHER = "those of a sample must follow each other in the tar (tar --sort=name)"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = converter_parser("webdataset", _DESCRIPTION,
                              "python -m data_prep.webdataset 'theirs/*.tar' --text-field sentence "
                              "--out shards/theirs")
    parser.add_argument("tars", nargs="+", metavar="TAR", help="tars, folders of tars, or globs")
    parser.add_argument("--text-field", default="text", metavar="NAME",
                        help="field of the .json member with the words (default: text)")
    parser.add_argument("--language-field", default="language", metavar="NAME",
                        help="field of the .json member with the language (default: language)")
    parser.add_argument("--speaker-field", default="speaker", metavar="NAME",
                        help="field of the .json member with the speaker (default: speaker)")
    return run_converter(parser, _source, lambda args: Path(args.tars[0]).stem.strip("*-_") or
                         "webdataset", argv)


def _source(args: Namespace) -> tuple[Iterator[Item | Bad], None]:
    fields = args.text_field, args.language_field, args.speaker_field
    return items(find_shards(args.tars), fields), None


def items(tars: list[str], fields: tuple[str, str, str]) -> Iterator[Item | Bad]:
    """Items tar by tar, in the order of the members; a tar that is refused is one Bad."""
    for tar in tars:
        try:
            # The whole tar is looked through before its first sample is used.
            samples = list(scan_tar(tar))
            file = open(tar, "rb")  # noqa: SIM115 - closed below
        except (DataError, OSError) as error:
            reason = str(error).removeprefix(f"{tar}: ")
            print(f"warning: {tar}: {reason}; the whole tar is left out", file=sys.stderr)
            yield Bad(Path(tar).stem, tar, f"{reason}; the whole tar is left out")
            continue
        with file:
            for key, members in samples:
                try:
                    yield _item(tar, file, key, members, fields)
                except DataError as error:
                    yield Bad(key, f"{tar}:{key}", str(error))


def _item(tar: str, file: BinaryIO, key: str, members: dict[str, tuple[int, int]],
          fields: tuple[str, str, str]) -> Item:
    extension = next((name for name in members if name in EXTENSIONS), None)
    if extension is None:
        raise DataError(f"no audio member, only {', '.join(sorted(members))}; {_TOGETHER}")
    text_field, language_field, speaker_field = fields
    row: dict = {}
    if "json" in members:
        try:
            row = json.loads(_payload(file, members["json"]))
        except (ValueError, RecursionError) as error:
            raise DataError(f"the .json member is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"the .json member is a {type(row).__name__}, not an object")
    text = row.get(text_field)
    if text is None and "txt" in members:
        text = _payload(file, members["txt"]).decode("utf-8", errors="surrogateescape")
    if text is None:
        raise DataError(f"no .txt member, and no field {text_field!r} in a .json member; "
                        f"{_TOGETHER}")
    speaker = row.get(speaker_field)
    offset, size = members[extension]
    return Item(key=key, audio=FileSpan(os.fspath(tar), offset, size),
                name=f"{tar}:{key}.{extension}", text=text, language=row.get(language_field),
                meta={} if speaker is None else {"speaker": str(speaker)})


def _payload(file: BinaryIO, at: tuple[int, int]) -> bytes:
    file.seek(at[0])
    return file.read(at[1])


if __name__ == "__main__":
    sys.exit(main())
