"""Multilingual LibriSpeech (MLS), audiobooks in eight languages, to shards.

Download  https://www.openslr.org/94, an archive for each language, original or opus; CC BY 4.0
Layout    ROOT holds a folder for each language, such as mls_german (flac) or mls_german_opus, with
              SPLIT/transcripts.txt                "KEY<tab>WORDS" a line
              SPLIT/audio/SPEAKER/BOOK/KEY.flac    or .opus; KEY is SPEAKER_BOOK_NUMBER
Example   python -m data_prep.corpora.mls MLS --out shards/mls
"""
# Layout after https://github.com/lhotse-speech/lhotse, lhotse/recipes/mls.py.

import sys
from functools import partial
from pathlib import Path

from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, table_items


def items(folder: Path, split: str, language: str) -> Rows:
    """Items in the order of the transcripts."""
    extension = "opus" if folder.name.endswith("_opus") else "flac"
    return table_items(look_for(folder / split, "transcripts.txt"),
                       partial(_item, language, extension), ("key", "text"))


def _item(language: str, extension: str, row: dict[str, str], table: Path) -> Item:
    speaker, book, *_ = [*row["key"].split("_"), "", ""]
    return Item(key=row["key"], text=row["text"], language=language, meta={"speaker": speaker},
                audio=str(table.parent / "audio" / speaker / book / f"{row['key']}.{extension}"))


CORPUS = Corpus(
    "mls", __doc__, items=items, splits=("test", "dev", "train"), default=("test",),
    languages="mls_*/*/transcripts.txt",
    language_of=lambda folder: folder.removeprefix("mls_").removesuffix("_opus"))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
