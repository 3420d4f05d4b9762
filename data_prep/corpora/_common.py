"""What the modules of ``data_prep.corpora`` share: the command line, and readers of transcripts."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.command import converter_parser, guarded, reading, run_converter
from data_prep.convert import Bad, Item
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.languages import language_name

Rows = tuple[Iterator[Item | Bad], int | None]
"""Items, and how many there will be if that is known."""


@dataclass(frozen=True)
class Corpus:
    """A corpus and its splits, by the corpus's own names.

    ``items(root, split)`` reads one split; it raises UserError when the layout is another. A corpus
    with a folder for each language has ``languages``, a glob below ROOT whose first part is such a
    folder, and ``items(root / folder, split, language)``.
    """

    name: str
    doc: str  # the module's docstring: the text of --help, an example command at its end
    splits: tuple[str, ...]
    default: tuple[str, ...]  # the splits that evaluations use
    items: Callable[..., Rows]
    languages: str = ""
    language_of: Callable[[str], str] = str  # folder -> code or name of its language


def convert_corpus(corpus: Corpus, argv: list[str] | None) -> int:
    """Command line of ``corpus``: each split to ``OUT/SPLIT`` or ``OUT/LANGUAGE/SPLIT``.

    Every split is a conversion of its own, as ``run_converter`` makes it. Returns the exit status.
    """
    description, _, example = corpus.doc.partition("\nExample ")
    parser = converter_parser(f"corpora.{corpus.name}", description, example.strip())
    parser.add_argument("root", type=Path, metavar="ROOT", help="the corpus, unpacked (see above)")
    parser.add_argument("--split", type=_splits(corpus.splits), default=corpus.default,
                        metavar="NAME,…", help=f"of {', '.join(corpus.splits)}; or all (default: "
                                               f"{','.join(corpus.default)}); each to OUT/NAME")
    if corpus.languages:
        parser.add_argument("--only", type=_names, metavar="FOLDER,…", help="language folders "
                            "of ROOT to convert, each to OUT/FOLDER/SPLIT (default: those in a "
                            "language that the released models know; with --any-language, all)")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)

    def body() -> int:
        for part, place in _parts(corpus, args):
            if status := run_converter(parser, lambda _, place=place: corpus.items(*place),
                                       lambda _: corpus.name,
                                       [*argv, "--out", str(args.out / part)]):
                return status
        return 0

    return guarded(body, "interrupted")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _splits(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = known if text == "all" else _names(text)
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return names
    return parse


def _parts(corpus: Corpus, args: argparse.Namespace) -> Iterator[tuple[str, tuple]]:
    """(folder below OUT, arguments of ``corpus.items``)"""
    if not args.root.is_dir():
        raise UserError(f"no such folder: {args.root}")
    if not corpus.languages:
        yield from ((split, (args.root, split)) for split in args.split)
        return
    for folder in args.only or _known_folders(corpus, args):
        for split in args.split:
            # MLS's opus archives hold the same as the others, and suites look in one place
            yield (f"{folder.removesuffix('_opus')}/{split}",
                   (args.root / folder, split, corpus.language_of(folder)))


def _known_folders(corpus: Corpus, args: argparse.Namespace) -> list[str]:
    folders = sorted({path.relative_to(args.root).parts[0]
                      for path in look_for(args.root, corpus.languages)})
    known = [folder for folder in folders
             if args.any_language or _is_known(corpus.language_of(folder))]
    if left_out := [folder for folder in folders if folder not in known]:
        print("left out, in languages that the released models do not know (--any-language takes "
              f"them): {', '.join(left_out)}", file=sys.stderr)
    if not known:
        raise UserError(f"{args.root} holds no folder of a language that the released models know")
    return known


def _is_known(language: str) -> bool:
    try:
        return language_name(language) is not None
    except ValueError:
        return False


def look_for(root: Path, pattern: str) -> list[Path]:
    """The paths that match ``pattern`` below ``root``, sorted. Raises UserError if none does."""
    if not (found := sorted(root.glob(pattern))):
        raise UserError(f"no {root / pattern}: --help says what the folder must hold")
    return found


def meta(**values: str | None) -> dict[str, str]:
    """``values`` without those that are unknown."""
    return {name: value for name, value in values.items() if value not in (None, "", "N/A", "None")}


def changed(items: Iterable[Item | Bad], change: Callable[[Item], Item]) -> Iterator[Item | Bad]:
    """``items`` with ``change`` made to the good ones."""
    return (item if isinstance(item, Bad) else change(item) for item in items)


def table_items(tables: list[Path], item_of: Callable[[dict[str, str], Path], Item],
                columns: tuple[str, ...], *, separator: str = "\t", header: bool = False) -> Rows:
    """Items of text tables, one a line.

    ``columns`` are the names of all columns, or with a ``header`` those that it must name; of two
    columns the second is the rest of the line. A line with more or fewer columns is Bad.
    """
    total = 0
    for table in tables:
        lines = _lines(table)
        if header and (missing := set(columns) - set(next(lines, "").split(separator))):
            raise UserError(f"{table} has no column {min(missing)!r} in its first line")
        total += sum(1 for line in lines if line)

    def items() -> Iterator[Item | Bad]:
        for table in tables:
            lines = _lines(table)
            names = next(lines).split(separator) if header else columns
            for number, line in enumerate(lines, 2 if header else 1):
                values = line.split(separator, 1 if len(names) == 2 else -1)
                if len(values) == len(names):
                    yield item_of(dict(zip(names, values, strict=True)), table)
                elif line:
                    yield Bad(f"{table.stem}-line-{number}", str(table), f"line {number} has "
                              f"{len(values)} columns, not {len(names)}")
    return items(), total


def _lines(path: Path) -> Iterator[str]:
    # Bytes that are no UTF-8 become surrogates, and the one item is refused for them. A line ends
    # at "\n" only: crowd-sourced sentences hold other characters that Python takes for line ends.
    with reading(path), open(path, encoding="utf-8-sig", errors="surrogateescape",
                             newline="\n") as file:
        yield from (line.rstrip("\r\n") for line in file)


def segment_items(manifest: Path, subset: str, language: str,
                  text_of: Callable[[dict], str | None]) -> Iterator[Item | Bad]:
    """Segments of ``subset`` in a manifest as GigaSpeech's and WenetSpeech's.

    That is ``{"audios": [{"path", "segments": [{"sid", "begin_time", "end_time", "subsets",
    "speaker"?, …}]}]}``. A segment for which ``text_of`` gives None is no speech and left out.
    """
    for audio in _json_list(manifest, "audios"):
        for segment in audio.get("segments", ()):
            if subset not in segment.get("subsets", ()):
                continue
            try:
                if (text := text_of(segment)) is not None:
                    yield Item(
                        key=segment["sid"], audio=str(manifest.parent / audio["path"]), text=text,
                        language=language, start=float(segment["begin_time"]),
                        end=float(segment["end_time"]), meta=meta(speaker=segment.get("speaker")))
            except (KeyError, TypeError, ValueError) as error:
                yield Bad(str(segment.get("sid")), str(audio.get("path")),
                          f"malformed segment ({error!r})")


def _json_list(path: Path, name: str) -> Iterator[dict]:
    """The objects of list ``name`` in a JSON file, one at a time: such files have many GB."""
    decoder, buffer, at = json.JSONDecoder(), "", None
    with reading(path), open(path, encoding="utf-8", errors="surrogateescape") as file:
        while chunk := file.read(max(1 << 20, len(buffer))):
            buffer += chunk
            if at is None and (start := re.search(rf'(?<!\\)"{name}"\s*:\s*\[', buffer)):
                at = start.end()
            while at is not None:
                at = re.compile(r"[\s,]*").match(buffer, at).end()
                if buffer.startswith("]", at):
                    return
                try:
                    value, at = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError:  # the rest of this object is still to be read
                    break
                yield value
            buffer, at = (buffer[at:], 0) if at is not None else (buffer, None)
    raise UserError(f"{path} has no list {name!r}" if at is None else
                    f"{path} ends, or is not JSON, within the list {name!r}")
