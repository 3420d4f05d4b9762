"""The whole demonstration: digit recordings to a recogniser, scored on a speaker it never heard.

    python recipes/own_speech/run.py RECORDINGS [SPEAKER] [key=value ...]

makes strings, shards and a run below ``--work`` (default runs/own_speech/SPEAKER); ``key=value``
goes to the training command. The last line is the word error rate on SPEAKER.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from qwen3asr_train.evaluation.metrics import edit_counts

ROOT = Path(__file__).resolve().parents[2]


def word_error_rate(results: Path) -> tuple[float, float]:
    """Word error rate and share of wrong strings of a run's ``results.jsonl``.

    Words are compared as they are. ``test/wer`` of a run uses Whisper's English normaliser, which
    writes "seven three nine" as "739", one word: on digits it is the share of wrong strings.
    """
    errors = words = wrong = strings = 0
    for line in results.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        reference, hypothesis = row["reference"].split(), row["hypothesis"].split()
        counts = edit_counts(reference, hypothesis)
        errors += counts.substitutions + counts.deletions + counts.insertions
        words, strings = words + len(reference), strings + 1
        wrong += reference != hypothesis
    return errors / max(1, words), wrong / max(1, strings)


def commands(recordings: Path, speaker: str, work: Path, seed: int, overrides: list[str]
             ) -> list[list[str]]:
    """The steps that the README lists, as argument lists."""
    python = [sys.executable]
    prepare = [[*python, "-m", "data_prep.folder", f"{work}/strings/{split}", "--out",
                f"{work}/shards/{split}", "--language", "English", "--speaker-folder", "1",
                "--overwrite"] for split in ("train", "test")]
    return [
        [*python, str(Path(__file__).with_name("digit_strings.py")), str(recordings), "--out",
         f"{work}/strings", "--held-out", speaker, "--seed", str(seed)],
        *prepare,
        [*python, "-m", "qwen3asr_train", "stage=sft", "experiment=own_speech",
         f"data.train={work}/shards/train", f"data.test={work}/shards/test", f"seed={seed}",
         f"run_dir={work}/run", *overrides],
    ]


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status of the first step that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, metavar="RECORDINGS",
                        help="folder or tar with {digit}_{speaker}_{index}.wav")
    parser.add_argument("speaker", nargs="?", default="jackson", metavar="SPEAKER",
                        help="held out of training (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="for the training command, e.g. trainer.max_steps=500")
    parser.add_argument("--work", type=Path, metavar="FOLDER",
                        help="default: runs/own_speech/SPEAKER")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    if "=" in args.speaker:
        parser.error("name the held-out SPEAKER before key=value settings")
    work = args.work or Path("runs", "own_speech", args.speaker)
    # the checkout may not be installed
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    for command in commands(args.recordings, args.speaker, work, args.seed, args.overrides):
        print("$", " ".join(command[1:]), flush=True)
        status = subprocess.run(command, env=environment).returncode
        if status:
            return status
    rate, wrong = word_error_rate(work / "run" / "results.jsonl")
    print(f"{work / 'run' / 'report.html'} held out {args.speaker}: word error rate {rate:.3f}, "
          f"wrong strings {wrong:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
