"""What the ``python -m data_prep.X`` converters share at the command line: options, progress, end.

Exit status: 0 when something was written, 2 for an error of the user's (one line, ``error: …``),
130 when interrupted.
"""

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from data_prep.convert import AUDIO_FORMATS, Bad, Item, Summary, convert
from data_prep.samples import Receipt, usable_cores
from qwen3asr_train.errors import UserError

_PLAIN_INTERVAL = 10.0  # seconds between progress lines when stderr is no terminal
_SHOWN = 10  # bad items in the final table; bad.jsonl has them all

Source = Callable[[argparse.Namespace], tuple[Iterable[Item | Bad], int | None]]
"""Arguments -> items, and how many there will be, if that is known without reading them all."""


def converter_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the options that all converters have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{module}", description=description,
        epilog=f"example:\n  {example}\n\nA stopped run goes on when the same command is given "
               "again. Items that cannot be used\nare left out and listed in OUT/bad.jsonl.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR",
                        help="folder for the shards, new or of an earlier run of this command")
    parser.add_argument("--language", metavar="L", help="language of items that name none: an "
                        "English name or a code, in any case (English, en, zh)")
    parser.add_argument("--any-language", action="store_true", help="let languages pass that the "
                        "released models do not know, as written; else such an item is bad")
    parser.add_argument("--source", metavar="NAME", help="'source' of every record; default: the "
                        "name of what is read")
    parser.add_argument("--audio-format", choices=AUDIO_FORMATS, default="flac",
                        help="flac (default) and wav: 16 kHz mono, 16 bit; keep: the file as it is")
    parser.add_argument("--split-by-hash", type=shares, default={}, metavar="NAME=SHARE,…",
                        help="e.g. validation=0.02,test=0.02: subfolders of OUT, the rest in "
                             "'train'; a speaker, where known, is in one of them only")
    parser.add_argument("--shard-size", type=_positive, default=1000, metavar="N",
                        help="samples a shard (default: 1000)")
    parser.add_argument("--workers", type=_positive, default=usable_cores(),
                        metavar="N", help="processes (default: one per usable core, %(default)s)")
    parser.add_argument("--max-bad", type=_count, metavar="N",
                        help="stop with an error at more than N bad items (default: never)")
    parser.add_argument("--overwrite", action="store_true",
                        help="remove what an earlier run wrote to OUT and write all anew")
    return parser


def _positive(text: str) -> int:
    return _count(text, least=1)


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def shares(text: str) -> dict[str, float]:
    """``"validation=0.02,test=0.02"`` -> ``{"validation": 0.02, "test": 0.02}``, for argparse."""
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*=\s*(\d*\.?\d+)\s*", part)
        if match is None or match[1] in ("train", "convert", *found):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not NAME=SHARE, e.g. validation=0.02 (each name once; 'train' is "
                "what remains)")
        found[match[1]] = float(match[2])
    if not 0 < sum(found.values()) < 1:
        raise argparse.ArgumentTypeError("the shares must be above 0 and below 1 in all")
    return found


def run_converter(parser: argparse.ArgumentParser, source: Source, default_source: Callable,
                  argv: list[str] | None = None) -> int:
    """Parse, convert, report. ``default_source(args)`` is what records call their source."""
    args = parser.parse_args(argv)

    def body() -> int:
        items, total = source(args)
        with reporter(total) as progress:
            summary = convert(
                items, args.out, source=args.source or default_source(args), workers=args.workers,
                shard_size=args.shard_size, audio_format=args.audio_format, max_bad=args.max_bad,
                resume=not args.overwrite, language=args.language, splits=args.split_by_hash,
                any_language=args.any_language, progress=progress)
        _report(summary)
        return 0

    return guarded(body, f"interrupted; whole shards are kept in {args.out}: give the same command "
                         "again to go on")


def guarded(body: Callable[[], int], interrupted: str) -> int:
    """Run ``body``; a UserError is one line and status 2, Ctrl-C and SIGTERM one line and 130."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what SLURM sends first
    try:
        return body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("error: a worker process died (out of memory?); what is whole is kept, so give the "
              "same command again, with fewer --workers", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def reporter(total: int | None) -> Iterator[Callable[[Receipt], None]]:
    """Progress on stderr: a bar in a terminal, else a line every ten seconds."""
    console = Console(stderr=True)
    tally = _Tally(total)
    if not console.is_terminal:
        yield tally.print_line
        return
    columns = (BarColumn(bar_width=10), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def update(receipt: Receipt) -> None:
            tally.add(receipt)
            bar.update(task, completed=tally.items, description=tally.text())

        yield update


class _Tally:
    """Items, rate and hours so far."""

    def __init__(self, total: int | None):
        self.total, self.items, self.bad, self.seconds = total, 0, 0, 0.0
        self._start = self._printed = time.monotonic()

    def add(self, receipt: Receipt) -> None:
        self.items += receipt.samples + len(receipt.bad)
        self.bad += len(receipt.bad)
        self.seconds += receipt.seconds

    def text(self) -> str:
        rate = self.items / max(time.monotonic() - self._start, 1e-3)
        of = left = ""
        if self.total and rate:
            # Over the whole run: blocks arrive in bursts, which mislead a short-term estimate.
            minutes = max(self.total - self.items, 0) / rate / 60
            of, left = f" of {self.total:,}", f", {minutes:.1f} min left"
        return (f"{self.items:,}{of} items, {rate:,.0f} items/s, {self.seconds / 3600:.2f} h of "
                f"audio, {self.bad:,} bad{left}")

    def print_line(self, receipt: Receipt) -> None:
        self.add(receipt)
        now = time.monotonic()
        if now - self._printed >= _PLAIN_INTERVAL:
            self._printed = now
            print(self.text(), file=sys.stderr, flush=True)


def _report(summary: Summary) -> None:
    if summary.bad_list is not None:
        table = Table(title=f"bad items (first {min(_SHOWN, summary.bad)} of {summary.bad})")
        for column in ("key", "audio", "reason"):
            table.add_column(column, overflow="fold")
        with open(summary.bad_list, encoding="utf-8") as file:
            for line in islice(file, _SHOWN):
                table.add_row(*(escape(value) for value in json.loads(line).values()))
        Console(stderr=True).print(table)
    bad = f"{summary.bad} bad, listed in {summary.bad_list}" if summary.bad else "none bad"
    kept = f" ({summary.resumed} shards were there)" if summary.resumed else ""
    print(f"wrote {summary.samples} samples ({summary.seconds / 3600:.2f} hours) in "
          f"{summary.shards} shards to {summary.out}{kept}; {bad}")
    if summary.splits:
        print("  " + ", ".join(f"{name} {count}" for name, count in summary.splits.items()))
    for name in (name for name, count in summary.splits.items() if not count):
        print(f"warning: no sample fell to '{name}': speakers (else recordings, else samples) are "
              "dealt out by a hash, and there are few; give it a larger share", file=sys.stderr)
    if summary.no_language:
        print(f"warning: {summary.no_language} transcripts have no language: a model would learn "
              "to answer 'language None' to speech; give --language, or a language in each item",
              file=sys.stderr)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns a failure to read a source file into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def refuse_used(out: Path) -> None:
    """UserError for a folder with shards, of which some would be replaced and others stay."""
    if any(out.glob("shard-*.tar")):
        raise UserError(f"{out} holds shards of an earlier run: remove them, or name another one")


def resolve(path: str, *folders: Path) -> str:
    """A relative ``path`` below the first folder that has it; below the first if none has."""
    found = next((folder / path for folder in folders if (folder / path).is_file()), None)
    return str(found or folders[0] / path)
