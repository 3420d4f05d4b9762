"""Spoken digit strings, one speaker held out, from recordings of single digits.

    python recipes/own_speech/digit_strings.py RECORDINGS --out FOLDER --held-out SPEAKER

RECORDINGS is a folder or a tar with files ``{digit}_{speaker}_{index}.wav``, as the Free Spoken
Digit Dataset has them. Takes of one speaker are joined with short pauses, and the transcript is
the digits in words: ``FOLDER/{train,test}/SPEAKER/NAME.wav`` and ``NAME.txt``. Train holds no take
of the held-out speaker, test no other's. The same arguments give the same files.
"""

import argparse
import io
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile

from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MARKER = ".digit_strings"
"""Stands in folders that this script made, so that it removes no others."""

_NAME = re.compile(r"([0-9])_([A-Za-z][A-Za-z0-9-]*)_(\d+)\.wav")
_MAX_BYTES = 10_000_000  # of one take: minutes of audio, where a digit lasts a second
_PAUSE_SECONDS = (0.05, 0.25)
# Single digits in training show a new model what belongs to what; it finds its way into long
# strings from there.
_DIGITS = {"train": (1, 7), "test": (3, 7)}


@dataclass(frozen=True)
class Take:
    """One spoken digit; ``waveform`` float32 ``(samples,)``."""

    digit: int
    speaker: str
    name: str
    waveform: np.ndarray
    rate: int


@dataclass(frozen=True)
class String:
    """Takes of one speaker, joined; ``waveform`` float32 ``(samples,)``."""

    takes: tuple[Take, ...]
    waveform: np.ndarray
    rate: int

    @property
    def text(self) -> str:
        """The transcript, one word a take."""
        return " ".join(WORDS[take.digit] for take in self.takes)


def read_takes(recordings: Path) -> dict[str, list[Take]]:
    """Takes by speaker, in the order of their names. Raises UserError."""
    takes: dict[str, list[Take]] = {}
    for name, payload in sorted(_payloads(recordings)):
        digit, speaker, _ = _NAME.fullmatch(name).groups()
        try:
            waveform, rate = soundfile.read(io.BytesIO(payload), dtype="float32")
        except soundfile.SoundFileError as error:
            raise UserError(f"{recordings}: {name} is not readable ({error})") from error
        if waveform.ndim != 1 or not len(waveform):
            raise UserError(f"{recordings}: {name} is empty or not mono")
        takes.setdefault(speaker, []).append(Take(int(digit), speaker, name, waveform, rate))
    if not takes:
        raise UserError(f"{recordings}: no files like 7_jackson_32.wav in it")
    rates = {take.rate for group in takes.values() for take in group}
    if len(rates) > 1:
        raise UserError(f"{recordings}: takes have different sampling rates, {sorted(rates)}")
    return takes


def _payloads(recordings: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every take. A tar is read in memory: nothing of it is extracted."""
    if recordings.is_dir():
        for path in recordings.rglob("*.wav"):
            if _NAME.fullmatch(path.name):
                yield path.name, path.read_bytes()
        return
    try:
        with tarfile.open(recordings) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if not member.isreg() or not _NAME.fullmatch(name):
                    continue
                if member.size > _MAX_BYTES:
                    raise UserError(f"{recordings}: {name} is too large for one spoken digit")
                yield name, tar.extractfile(member).read()
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{recordings}: neither a folder nor a tar ({error})") from error


def make_strings(takes: list[Take], count: int, rng: np.random.Generator,
                 lengths: tuple[int, int]) -> Iterator[String]:
    """``count`` strings of ``lengths[0]`` to ``lengths[1]`` digits from takes of one speaker.

    Takes are dealt like cards, and the pack is shuffled anew when it is used up: every take serves
    equally often, each time between other neighbours.
    """
    pack: list[Take] = []
    for _ in range(count):
        wanted = int(rng.integers(lengths[0], lengths[1] + 1))
        while len(pack) < wanted:
            pack += [takes[i] for i in rng.permutation(len(takes))]
        chosen, pack = tuple(pack[:wanted]), pack[wanted:]
        yield String(chosen, join(chosen, rng), chosen[0].rate)


def join(takes: tuple[Take, ...], rng: np.random.Generator) -> np.ndarray:
    """Takes with a pause before, between and after them, float32 ``(samples,)``."""
    parts = []
    for i in range(len(takes) + 1):
        parts.append(np.zeros(int(rng.uniform(*_PAUSE_SECONDS) * takes[0].rate), np.float32))
        parts += [take.waveform for take in takes[i:i + 1]]
    return np.concatenate(parts)


def write_strings(takes: dict[str, list[Take]], out: Path, held_out: str, strings: int,
                  test_strings: int, seed: int) -> dict[str, float]:
    """Write ``out/train`` and ``out/test``; returns the seconds of audio in each."""
    others = sorted(set(takes) - {held_out})
    if held_out not in takes or not others:
        raise UserError(f"no speaker '{held_out}' to hold out of others; speakers: "
                        f"{', '.join(sorted(takes))}")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"{out} holds something else; choose another folder")
    for split in ("train", "test"):
        shutil.rmtree(out / split, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    seconds = {"train": 0.0, "test": 0.0}
    for speaker in (*others, held_out):
        split, count = ("test", test_strings) if speaker == held_out else (
            "train", strings // len(others) + (others.index(speaker) < strings % len(others)))
        folder = out / split / speaker
        folder.mkdir(parents=True)
        for number, string in enumerate(make_strings(
                takes[speaker], count, sample_rng(seed, 0, speaker), _DIGITS[split])):
            path = folder / f"{speaker}-{number:05d}.wav"
            soundfile.write(path, string.waveform, string.rate, subtype="PCM_16")
            path.with_suffix(".txt").write_text(string.text + "\n", encoding="utf-8")
            seconds[split] += len(string.waveform) / string.rate
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, metavar="RECORDINGS",
                        help="folder or tar with {digit}_{speaker}_{index}.wav")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--held-out", required=True, metavar="SPEAKER",
                        help="all of test, nothing of train")
    parser.add_argument("--strings", type=int, default=4000, metavar="N",
                        help="training strings of all speakers together (default: %(default)s)")
    parser.add_argument("--test-strings", type=int, default=200, metavar="N",
                        help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    if min(args.strings, args.test_strings) < 1:
        parser.error("--strings and --test-strings must be at least 1")
    try:
        takes = read_takes(args.recordings)
        seconds = write_strings(takes, args.out, args.held_out, args.strings, args.test_strings,
                                args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, held in seconds.items():
        print(f"{args.out / split}: {held / 60:.1f} minutes of "
              f"{', '.join(sorted(os.listdir(args.out / split)))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
