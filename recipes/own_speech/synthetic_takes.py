"""Single digits by many made-up voices, in the form of the recordings.

    python recipes/own_speech/synthetic_takes.py --out FOLDER

Writes ``{digit}_{voice}_{index}.wav`` for every variant of espeak-ng's voices in several accents of
English, each take with a rate and a pitch of its own, trimmed and at 8 kHz as the Free Spoken Digit
Dataset is. Four human speakers tell a model little of how much voices differ; these help.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr
from digit_strings import WORDS
from rich.progress import track

from data_prep.espeak import INTELLIGIBLE_VARIANTS, Espeak, EspeakNotInstalled
from qwen3asr_train.data.plan import sample_rng

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan")
RATE = 8000
_QUIET = 0.01  # of the peak: what is cut off before and after a word
_PEAK = 0.7
_WORDS_PER_MINUTE, _PITCH, _PITCH_RANGE = (110, 240), (10, 90), (20, 80)


def synthesize(espeak: Espeak, digit: int, variant: str, accent: str, rng: np.random.Generator
               ) -> np.ndarray:
    """One spoken digit, float32 ``(samples,)`` at 8 kHz."""
    speech = espeak.synthesize(
        WORDS[digit], accent, variant=variant, rate=int(rng.integers(*_WORDS_PER_MINUTE)),
        pitch=int(rng.integers(*_PITCH)), pitch_range=int(rng.integers(*_PITCH_RANGE)))
    waveform = soxr.resample(speech.waveform.astype(np.float32) / 32768, speech.rate, RATE)
    loud = np.flatnonzero(np.abs(waveform) > _QUIET * np.abs(waveform).max())
    waveform = waveform[loud[0]:loud[-1] + 1]
    return waveform * (_PEAK / np.abs(waveform).max())


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--takes", type=int, default=4, metavar="N",
                        help="of each digit by each voice (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        espeak = Espeak()
    except EspeakNotInstalled as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    voices = [(variant, accent) for variant in INTELLIGIBLE_VARIANTS for accent in ACCENTS]
    for variant, accent in track(voices, "speaking", transient=True):
        rng = sample_rng(args.seed, 0, f"{variant}/{accent}")
        for digit in range(len(WORDS)):
            for index in range(args.takes):
                name = f"{digit}_{variant}-{accent}_{index}.wav"
                soundfile.write(args.out / name, synthesize(espeak, digit, variant, accent, rng),
                                RATE, subtype="PCM_16")
    print(f"{args.out}: {len(voices) * len(WORDS) * args.takes} takes of {len(voices)} voices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
