"""Opencpop, Mandarin pop songs of one singer, to shards.

Download  https://wenet.org.cn/opencpop, on application; read its terms
Layout    ROOT holds
              segments/SPLIT.txt                   "KEY|WORDS|PHONEMES|NOTES|…" a line
              segments/wavs/KEY.wav                KEY begins with the four digits of its song
Example   python -m data_prep.corpora.opencpop opencpop --out shards/opencpop
"""
# Layout after https://github.com/espnet/espnet, egs2/opencpop (svs1/local, speechlm1/README.md).

import sys
from pathlib import Path

from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, table_items

_COLUMNS = ("key", "text", "phonemes", "notes", "note_seconds", "phoneme_seconds", "slurs")


def items(root: Path, split: str) -> Rows:
    """Items in the order of the table."""
    return table_items(look_for(root, f"segments/{split}.txt"), _item, _COLUMNS, separator="|")


def _item(row: dict[str, str], table: Path) -> Item:
    return Item(key=row["key"], audio=str(table.parent / "wavs" / f"{row['key']}.wav"),
                text=row["text"], language="Chinese", meta={"song": row["key"][:4]})


CORPUS = Corpus("opencpop", __doc__, items=items, splits=("test", "train"),
                default=("test",))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
