"""Spoken digit strings, one speaker held out, from recordings of single digits.

    python recipes/own_speech/digit_strings.py RECORDINGS --out FOLDER [--held-out SPEAKER]

RECORDINGS is a folder or a tar with files ``{digit}_{speaker}_{index}.wav``, as the Free Spoken
Digit Dataset has them. Takes of one speaker are joined with short pauses, and the transcript is
the digits in words: ``FOLDER/{train,test}/SPEAKER/NAME.wav`` and ``NAME.txt``. Train holds no take
of the held-out speaker, test no other's; without one there is no test. Each training string is
given another tempo and equaliser, since four speakers with a microphone each are few; test strings
stay as they are. The same arguments give the same files.
"""

import argparse
import io
import json
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

from qwen3asr_train.data.augment_time import overlap_add
from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MARKER = ".digit_strings"
"""Stands in folders that this script made, so that it removes no others."""

_NAME = re.compile(r"([0-9])_([A-Za-z][A-Za-z0-9-]*)_(\d+)\.wav")
_MAX_BYTES = 10_000_000  # of one take: minutes of audio, where a digit lasts a second
_PAUSE_SECONDS = (0.05, 0.25)
_TEST_DIGITS = range(3, 8)
# Training draws length n with a weight of 1/n, so that all lengths have the same share of the
# audio: single digits show a new model what belongs to what, and it goes on to strings from there.
_TRAIN_DIGITS = range(1, 8)
_TEMPO = (0.75, 1.3)
_EQUALISER_DB = 8.0  # standard deviation of the gain at each knot
_EQUALISER_KNOTS = 6  # spread evenly from 0 Hz to half the sampling rate


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
    bounds: tuple[tuple[int, int], ...] = ()  # first sample of each take and one after its last

    @property
    def text(self) -> str:
        """The transcript, one word a take."""
        return " ".join(WORDS[take.digit] for take in self.takes)

    @property
    def words(self) -> list[list]:
        """``[word, start s, end s]`` of each take."""
        return [[WORDS[take.digit], round(first / self.rate, 4), round(after / self.rate, 4)]
                for take, (first, after) in zip(self.takes, self.bounds, strict=True)]


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
                 training: bool) -> Iterator[String]:
    """``count`` strings from takes of one speaker, varied and of all lengths for ``training``.

    Takes are dealt like cards, and the pack is shuffled anew when it is used up: every take serves
    equally often, each time between other neighbours.
    """
    pack: list[Take] = []
    lengths = _TRAIN_DIGITS if training else _TEST_DIGITS
    shares = 1 / np.array(lengths) if training else np.ones(len(lengths))
    for _ in range(count):
        wanted = int(rng.choice(lengths, p=shares / shares.sum()))
        while len(pack) < wanted:
            pack += [takes[i] for i in rng.permutation(len(takes))]
        chosen, pack = tuple(pack[:wanted]), pack[wanted:]
        waveforms = [take.waveform for take in chosen]
        rate = chosen[0].rate
        if training:
            tempo = rng.uniform(*_TEMPO)
            waveforms = [change_tempo(waveform, rate, tempo) for waveform in waveforms]
        waveform, bounds = join(waveforms, rate, rng)
        yield String(chosen, equalise(waveform, rng) if training else waveform, rate, bounds)


def join(takes: list[np.ndarray], rate: int, rng: np.random.Generator
         ) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Takes with a pause before, between and after them, float32 ``(samples,)``; and where each
    take begins and ends in it."""
    parts, bounds, length = [], [], 0
    for i in range(len(takes) + 1):
        parts.append(np.zeros(int(rng.uniform(*_PAUSE_SECONDS) * rate), np.float32))
        length += len(parts[-1])
        for take in takes[i:i + 1]:
            parts.append(take)
            bounds.append((length, length + len(take)))
            length += len(take)
    return np.concatenate(parts), tuple(bounds)


def change_tempo(waveform: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Speech at ``factor`` times its tempo with the pitch it had, half a frame (15 ms) later."""
    frames = max(1, int(len(waveform) / factor / round(0.015 * rate)))
    return overlap_add(waveform, rate, factor, frames)


def equalise(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another microphone and room: a smooth random gain over frequency, the same power."""
    spectrum = np.fft.rfft(waveform)
    knots = rng.normal(0.0, _EQUALISER_DB, _EQUALISER_KNOTS)
    gain = np.interp(np.linspace(0, _EQUALISER_KNOTS - 1, len(spectrum)), range(len(knots)), knots)
    changed = np.fft.irfft(spectrum * 10 ** (gain / 20), len(waveform))
    changed *= np.sqrt(np.mean(waveform**2) / max(np.mean(changed**2), 1e-12))
    return (changed / max(1.0, np.abs(changed).max())).astype(np.float32)


def write_strings(takes: dict[str, list[Take]], out: Path, held_out: str | None, strings: int,
                  test_strings: int, seed: int, times: bool = False) -> dict[str, float]:
    """Write ``out/train`` and ``out/test``, with ``times`` also ``out/times/SPEAKER_NAME.json``, as
    data_prep.import_times takes them; returns the seconds of audio in each split."""
    others = sorted(set(takes) - {held_out})
    if not others or (held_out is not None and held_out not in takes):
        raise UserError(f"no speaker '{held_out}' to hold out of others; speakers: "
                        f"{', '.join(sorted(takes))}")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"{out} holds something else; choose another folder")
    for split in ("train", "test", "times"):
        shutil.rmtree(out / split, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    seconds = dict.fromkeys(["train", "test"] if held_out else ["train"], 0.0)
    for speaker in [*others, held_out] if held_out else others:
        split, count = ("test", test_strings) if speaker == held_out else (
            "train", strings // len(others) + (others.index(speaker) < strings % len(others)))
        folder = out / split / speaker
        folder.mkdir(parents=True)
        for number, string in enumerate(make_strings(
                takes[speaker], count, sample_rng(seed, 0, speaker),
                training=split == "train")):
            path = folder / f"{speaker}-{number:05d}.wav"
            soundfile.write(path, string.waveform, string.rate, subtype="PCM_16")
            path.with_suffix(".txt").write_text(string.text + "\n", encoding="utf-8")
            seconds[split] += len(string.waveform) / string.rate
            if times:  # named as data_prep.folder names its samples
                place = out / "times" / f"{speaker}_{path.stem}.json"
                place.parent.mkdir(exist_ok=True)
                place.write_text(json.dumps(string.words), encoding="utf-8")
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, metavar="RECORDINGS",
                        help="folder or tar with {digit}_{speaker}_{index}.wav")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--held-out", metavar="SPEAKER",
                        help="all of test, nothing of train")
    parser.add_argument("--strings", type=int, default=6000, metavar="N",
                        help="training strings of all speakers together (default: %(default)s)")
    parser.add_argument("--test-strings", type=int, default=200, metavar="N",
                        help="default: %(default)s")
    parser.add_argument("--times", action="store_true", help="also write when each take begins and "
                        "ends, into FOLDER/times")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    if min(args.strings, args.test_strings) < 1:
        parser.error("--strings and --test-strings must be at least 1")
    try:
        takes = read_takes(args.recordings)
        seconds = write_strings(takes, args.out, args.held_out, args.strings, args.test_strings,
                                args.seed, args.times)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, held in seconds.items():
        print(f"{args.out / split}: {held / 60:.1f} minutes of "
              f"{', '.join(sorted(os.listdir(args.out / split)))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
