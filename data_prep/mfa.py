"""``python -m data_prep.mfa``: word times by the Montreal Forced Aligner where it is installed."""

import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from data_prep.align_teachers.options import filters_of, run_teacher, teacher_parser, to_stderr
from data_prep.align_teachers.relabel import Sample, Summary, Teacher, relabel
from data_prep.align_teachers.times import Words, times_or_reason
from data_prep.samples import make_key, usable_cores
from qwen3asr_train.data.audio import decode, encode
from qwen3asr_train.errors import DataError, UserError

_DESCRIPTION = """\
Give the samples of shards the word times of the Montreal Forced Aligner (conda: montreal-forced-
aligner; its command mfa must be on PATH). --dictionary and --acoustic are names that MFA knows
(english_mfa, mandarin_mfa …: `mfa model download acoustic english_mfa`) or paths; --train makes the
acoustic model from the shards first (`mfa train`), where there is none for the language.

Words that the dictionary lacks: with --g2p MODEL their pronunciations are guessed; without it MFA
aligns them as unknown words, and their times are those of the sound in their place."""

_ERROR_LINES = 3  # of what MFA says when it fails


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = teacher_parser("mfa", _DESCRIPTION, "python -m data_prep.mfa shards/mine --dictionary "
                            "english_mfa --acoustic english_mfa --out shards/timed")
    parser.add_argument("--dictionary", required=True, metavar="NAME")
    parser.add_argument("--acoustic", metavar="NAME", help="the acoustic model")
    parser.add_argument("--train", action="store_true", help="train the acoustic model on the "
                        "shards, into OUT/align/acoustic.zip")
    parser.add_argument("--g2p", metavar="NAME", help="pronounces words out of the dictionary")
    parser.add_argument("--jobs", type=int, default=usable_cores(), metavar="N",
                        help="processes of MFA (default: one per usable core, %(default)s)")
    args = parser.parse_args(argv)
    return run_teacher(args, lambda: _run(args))


def _run(args: Namespace) -> Summary:
    program = shutil.which("mfa")
    if program is None:
        raise UserError("mfa is not on PATH; install it (conda install -c conda-forge "
                        "montreal-forced-aligner), or align elsewhere and import the TextGrids: "
                        "python -m data_prep.import_times")
    if args.train == (args.acoustic is not None):
        raise UserError("say --acoustic NAME, or --train where there is no model")
    acoustic = args.acoustic or str(args.out / "align" / "acoustic.zip")
    settings = {"teacher": "mfa", "dictionary": args.dictionary, "acoustic": acoustic,
                "g2p": args.g2p}
    if args.train and not Path(acoustic).is_file():
        _train(program, args, Path(acoustic))
    return relabel(args.shards, args.out, mfa_teacher(program, acoustic, args), filters_of(args),
                   settings, group=10**6, overwrite=args.overwrite, progress=to_stderr)


def mfa_teacher(program: str, acoustic: str, args: Namespace) -> Teacher:
    """A shard at a time through ``mfa align``."""
    def teacher(samples: Sequence[Sample]) -> list[Words | str]:
        with tempfile.TemporaryDirectory(prefix="mfa-") as folder:
            corpus, aligned = Path(folder, "corpus"), Path(folder, "aligned")
            names = write_corpus(samples, corpus)
            g2p = ["--g2p_model_path", args.g2p] if args.g2p else []
            run_mfa([program, "align", str(corpus), args.dictionary, acoustic, str(aligned),
                     *g2p, "--num_jobs", str(args.jobs), "--temporary_directory",
                     str(Path(folder, "work")), "--clean", "--output_format", "long_textgrid"])
            found = {path.stem: path for path in aligned.rglob("*.TextGrid")}
            return [times_or_reason(found.get(name), "MFA found no alignment") if name else
                    "undecodable audio" for name in names]

    return teacher


def _train(program: str, args: Namespace, acoustic: Path) -> None:
    """``mfa train`` on all samples of the shards."""
    from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries

    acoustic.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mfa-") as folder:
        corpus, reader = Path(folder, "corpus"), ShardReader()
        for number, shard in enumerate(find_shards(args.shards)):
            samples = [Sample(entry, *reader.read(entry)) for entry in read_entries(shard)
                       if entry.audio_at]
            write_corpus(samples, corpus, prefix=f"{number:06d}-")
        run_mfa([program, "train", str(corpus), args.dictionary, str(acoustic), "--num_jobs",
                 str(args.jobs), "--temporary_directory", str(Path(folder, "work")), "--clean"])


def write_corpus(samples: Sequence[Sample], folder: Path, prefix: str = "") -> list[str | None]:
    """``SPEAKER/NAME.wav`` and ``.lab`` as MFA takes them; each sample's name, None for audio that
    cannot be decoded. Speakers are those of ``meta.speaker``; else each clip is one."""
    names: list[str | None] = []
    for number, sample in enumerate(samples):
        name = f"{prefix}{number:06d}"
        speaker = make_key(str((sample.record.get("meta") or {}).get("speaker") or name))
        try:
            waveform = decode(sample.audio, name=sample.entry.name)
        except DataError:
            names.append(None)
            continue
        place = folder / speaker
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.wav").write_bytes(encode(waveform, "wav"))
        (place / f"{name}.lab").write_text(" ".join(sample.record["text"].split()),
                                           encoding="utf-8")
        names.append(name)
    return names


def run_mfa(command: list[str]) -> None:
    """Run it to its end; UserError with the last lines of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(f"mfa {command[1]} failed ({done.returncode}): "
                        f"{' / '.join(said[-_ERROR_LINES:]) or 'without a word'}")


if __name__ == "__main__":
    sys.exit(main())
