"""``python -m data_prep.folder``: audio files beside their transcripts to shards."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from data_prep.command import converter_parser, reading, run_converter
from data_prep.convert import Bad, Item
from qwen3asr_train.data.audio import LOOKED_AT
from qwen3asr_train.errors import UserError

_DESCRIPTION = """\
A folder, with all below it, of audio files to shards. The transcript of a/b.wav is the whole of
a/b.txt or a/b.lab, or the line "b the words" of an a/*.trans.txt (as LibriSpeech has them)."""

_AUDIO = {f".{name}" for name in LOOKED_AT}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = converter_parser("folder", _DESCRIPTION,
                              "python -m data_prep.folder LibriSpeech/dev-clean --language en "
                              "--speaker-folder 1 --out shards/dev-clean")
    parser.add_argument("dir", type=Path, metavar="DIR")
    parser.add_argument("--speaker-folder", type=int, default=0, metavar="N", help="the N-th "
                        "folder below DIR on the way to a file is named after its speaker")
    parser.add_argument("--unlabelled", action="store_true", help="audio without a transcript is "
                        "taken, too, with task 'unlabelled': for data_prep.pseudo_label")
    return run_converter(parser, _source, lambda args: args.dir.resolve().name, argv)


def _source(args: Namespace) -> tuple[Iterator[Item | Bad], int]:
    if not args.dir.is_dir():
        raise UserError(f"no such folder: {args.dir}")
    total = sum(len(audio) for _, audio, _ in _walk(args.dir))
    return items(args.dir, args.speaker_folder, args.unlabelled), total


def items(root: Path, speaker_folder: int = 0, unlabelled: bool = False) -> Iterator[Item | Bad]:
    """Items in the order of their paths; audio without a transcript is Bad, or ``unlabelled``."""
    for folder, audio, names in _walk(root):
        lines = _trans_lines(folder, names)
        for name in audio:
            path = folder / name
            relative = path.relative_to(root)
            text = _transcript(path, names, lines)
            if text is None and not unlabelled:
                yield Bad(str(relative.with_suffix("")), str(path), "no transcript")
                continue
            parents = relative.parts[:-1]
            known = 0 < speaker_folder <= len(parents)
            yield Item(key=str(relative.with_suffix("")), audio=str(path), text=text or "",
                       task="unlabelled" if text is None else "asr",
                       meta={"speaker": parents[speaker_folder - 1]} if known else {})


def _walk(root: Path) -> Iterator[tuple[Path, list[str], set[str]]]:
    """(folder, names of its audio files in order, names of all its files)."""
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        audio = sorted(name for name in names if Path(name).suffix.lower() in _AUDIO)
        yield Path(folder), audio, set(names)


def _trans_lines(folder: Path, names: set[str]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name in sorted(name for name in names if name.endswith(".trans.txt")):
        for line in _read(folder / name).splitlines():
            key, _, text = line.strip().partition(" ")
            lines[key] = text
    return lines


def _transcript(path: Path, names: set[str], lines: dict[str, str]) -> str | None:
    for suffix in (".txt", ".lab"):
        if path.stem + suffix in names:
            return _read(path.with_suffix(suffix))
    return lines.get(path.stem)


def _read(path: Path) -> str:
    # Bytes that are no UTF-8 become surrogates, and the one item is refused for them.
    with reading(path):
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape").strip()


if __name__ == "__main__":
    sys.exit(main())
