"""LibriSpeech, English audiobooks, to shards.

Download  https://www.openslr.org/12, e.g. test-clean.tar.gz and test-other.tar.gz; CC BY 4.0
Layout    ROOT (the folder LibriSpeech that the archives unpack to) holds
              SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt       "KEY WORDS" a line
              SPLIT/SPEAKER/CHAPTER/KEY.flac
Example   python -m data_prep.corpora.librispeech LibriSpeech --out shards/librispeech
"""
# Layout after https://github.com/lhotse-speech/lhotse, lhotse/recipes/librispeech.py.

import sys
from pathlib import Path

from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, table_items


def items(root: Path, split: str) -> Rows:
    """Items in the order of the transcripts."""
    return table_items(look_for(root / split, "*/*/*.trans.txt"), _item, ("key", "text"),
                       separator=" ")


def _item(row: dict[str, str], table: Path) -> Item:
    return Item(key=row["key"], audio=str(table.parent / f"{row['key']}.flac"), text=row["text"],
                language="English", meta={"speaker": row["key"].split("-")[0]})


CORPUS = Corpus(
    "librispeech", __doc__, items=items, default=("test-clean", "test-other"),
    splits=("test-clean", "test-other", "dev-clean", "dev-other", "train-clean-100",
            "train-clean-360", "train-other-500"))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
