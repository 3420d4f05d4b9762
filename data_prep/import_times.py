"""``python -m data_prep.import_times``: word times from TextGrid, CTM, Audacity or JSON files."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data_prep.align_teachers.options import filters_of, run_teacher, teacher_parser, to_stderr
from data_prep.align_teachers.relabel import Sample, Summary, Teacher, relabel
from data_prep.align_teachers.times import EXTENSIONS, Words, ctm_words, read_text, times_or_reason
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.errors import UserError

_DESCRIPTION = """\
Give the samples of shards the word times of an aligner, or of a person. --times is a folder, with
all below it, of one file a sample, named as its key: KEY.TextGrid (long or short; the tier 'words',
as the Montreal Forced Aligner writes it), KEY.ctm, KEY.txt (Audacity labels) or KEY.json; or a
folder of shards whose records have `words`; or one .ctm file whose recordings are the keys.
--second is another teacher's, for comparison."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = teacher_parser("import_times", _DESCRIPTION, "python -m data_prep.import_times "
                            "shards/mine --times aligned/ --out shards/timed")
    parser.add_argument("--times", required=True, type=Path, metavar="PATH")
    parser.add_argument("--second", type=Path, metavar="PATH")
    args = parser.parse_args(argv)
    return run_teacher(args, lambda: _run(args))


def _run(args: Namespace) -> Summary:
    settings = {"teacher": str(args.times), "second": args.second and str(args.second)}
    second = teacher_of_files(args.second) if args.second else None
    return relabel(args.shards, args.out, teacher_of_files(args.times), filters_of(args), settings,
                   second=second, overwrite=args.overwrite, progress=to_stderr)


def teacher_of_files(path: Path) -> Teacher:
    """Words by key from a folder of files or of shards, or from one CTM file. UserError for none
    of them."""
    if path.is_file() and path.suffix.lower() == ".ctm":
        recordings = ctm_words(read_text(path), str(path))
        return lambda samples: [_by_key(recordings, s.entry.key) or "no times" for s in samples]
    if not path.is_dir():
        raise UserError(f"{path}: neither a folder of times nor a .ctm file")
    if next(path.glob("*.tar"), None):
        return teacher_of_shards(path)
    files = {}
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in EXTENSIONS:
            relative = file.relative_to(path)
            files.setdefault(str(relative.with_suffix("")), file)
    if not files:
        raise UserError(f"{path}: no {', '.join(EXTENSIONS)} file in it")
    for file in list(files.values()):  # MFA puts files into folders of speakers
        files.setdefault(file.stem, file)

    def teacher(samples: Sequence[Sample]) -> list[Words | str]:
        return [times_or_reason(_by_key(files, sample.entry.key), "no times")
                for sample in samples]

    return teacher


def teacher_of_shards(folder: Path) -> Teacher:
    """The ``words`` of the records of shards, by key."""
    reader = ShardReader()
    entries = {entry.key: entry for shard in find_shards([str(folder)])
               for entry in read_entries(shard)}

    def teacher(samples: Sequence[Sample]) -> list[Words | str]:
        found = [entries.get(sample.entry.key) for sample in samples]
        return [(reader.read(entry)[0].get("words") if entry else None) or "no times"
                for entry in found]

    return teacher


def _by_key(table: dict, key: str):
    return table.get(key, table.get(PurePosixPath(key).name))


if __name__ == "__main__":
    sys.exit(main())
