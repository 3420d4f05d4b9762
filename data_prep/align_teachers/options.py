"""What the commands that write teachers' times share: options and the end of a run."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from data_prep.align_teachers.filters import TimeFilters
from data_prep.align_teachers.relabel import Summary
from data_prep.command import guarded


def teacher_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the shards, ``--out``, ``--overwrite`` and the filters."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{module}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {example}\n\nWords whose times are in doubt keep none (null); samples "
               "with too many of them are left out and\nlisted in OUT/rejected.jsonl. A stopped "
               "run goes on when the same command is given again.")
    parser.add_argument("shards", nargs="+", metavar="SHARD",
                        help="tars with an index, folders of them, or globs")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR",
                        help="folder for the shards with times")
    parser.add_argument("--overwrite", action="store_true", help="write all shards anew")
    for name, what in (("min_letter_seconds", "a word's least duration over its letters"),
                       ("max_letter_seconds", "its greatest"),
                       ("max_overlap_seconds", "of a word with the one before"),
                       ("max_disagreement_seconds", "from a second teacher, at either end"),
                       ("max_doubted_share", "of a sample's words, beyond which it is left out")):
        default = next(field.default for field in fields(TimeFilters) if field.name == name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default,
                            metavar="X", help=f"{what} (default: %(default)s)")
    return parser


def filters_of(args: argparse.Namespace) -> TimeFilters:
    """The filters that the options say."""
    return TimeFilters(**{field.name: getattr(args, field.name) for field in fields(TimeFilters)})


def run_teacher(args: argparse.Namespace, body: Callable[[], Summary]) -> int:
    """Run and print one line; the exit status."""
    def printing() -> int:
        print(body().text(args.out))
        return 0

    return guarded(printing, f"interrupted; whole shards are kept in {args.out}: give the same "
                             "command again to go on")


def to_stderr(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)
