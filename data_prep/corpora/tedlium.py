"""TED-LIUM 3, English talks, to shards.

Download  https://www.openslr.org/51, TEDLIUM_release-3.tgz; CC BY-NC-ND 3.0
Layout    ROOT (the folder TEDLIUM_release-3) holds, of the distribution "legacy",
              legacy/SPLIT/stm/TALK.stm            "TALK 1 SPEAKER START END <LABEL> WORDS" a line
              legacy/SPLIT/sph/TALK.sph            NIST SPHERE; a TALK.wav or .flac there goes first
Segments that are not to be scored are left out. Marks (<unk>, {NOISE}, {UM}, [NOISE]) and numbers
of pronunciations, as in "for(2)", are dropped; "it 's" becomes "it's".
Example   python -m data_prep.corpora.tedlium TEDLIUM_release-3 --out shards/tedlium
"""
# Layout after https://github.com/lhotse-speech/lhotse, lhotse/recipes/tedlium.py, the marks after
# https://github.com/wenet-e2e/wenet, examples/tedlium3/s0/local/prepare_data.sh.

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile

from data_prep.command import reading
from data_prep.convert import Bad, Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for

# <sil>, {NOISE}, for(2), and the name of the segment at the end of its line.
_MARKS = re.compile(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]|\(\d+\)|\([^ )]*\)$")
_UNREADABLE = ("libsndfile cannot read this SPHERE file ({}), perhaps since it is compressed; "
               "convert it beside it to .wav, with sph2pipe -f wav or sox, and run again")


def items(root: Path, split: str) -> Rows:
    """Segments in the order of the talks."""
    return _segments(look_for(root, f"legacy/{split}/stm/*.stm")), None


def _segments(transcripts: list[Path]) -> Iterator[Item | Bad]:
    for path in transcripts:
        with reading(path):
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        audio, problem = _audio(path)
        for number, line in enumerate(lines, 1):
            scored = "ignore_time_segment_in_scoring" not in line
            if scored and line.strip() and not line.startswith(";;"):
                yield _segment(path.stem, number, line, audio, problem)


def _audio(transcript: Path) -> tuple[str, str | None]:
    """The recording, and what is wrong with it."""
    folder = transcript.parent.parent / "sph"
    names = [f"{transcript.stem}.{extension}" for extension in ("wav", "flac", "sph")]
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])
    if path.is_file() and path.suffix == ".sph":
        try:
            soundfile.info(path)
        except soundfile.SoundFileError as error:
            return str(path), _UNREADABLE.format(getattr(error, "error_string", error))
    return str(path), None


def _segment(talk: str, number: int, line: str, audio: str, problem: str | None) -> Item | Bad:
    _, _, speaker, start, end, _, text, *_ = [*line.split(maxsplit=6), *[""] * 7]
    try:
        begins, ends = float(start), float(end)
    except ValueError:
        problem = f"line {number} of the .stm has no start and end in its fourth and fifth column"
    if problem:
        return Bad(f"{talk}-line-{number}", audio, problem)
    text = " ".join(_MARKS.sub(" ", text).split()).replace(" '", "'")
    return Item(key=f"{talk}-{round(100 * begins):07d}-{round(100 * ends):07d}", audio=audio,
                text=text, language="English", start=begins, end=ends, meta={"speaker": speaker})


CORPUS = Corpus("tedlium", __doc__, items=items, splits=("test", "dev", "train"),
                default=("test",))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
