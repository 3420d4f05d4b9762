"""VoxPopuli, speeches in the European Parliament, its transcribed part, to shards.

Download  https://github.com/facebookresearch/voxpopuli, with its own scripts download_audios and
          get_asr_data; CC0
Layout    ROOT (the folder transcribed_data that they write) holds a folder for each language, such
          as en (en_accented is a test set only), with
              asr_SPLIT.tsv                        a header, then a line for each utterance
              YEAR/ID.ogg                          ID begins with the year
The text is the normalised transcript: the raw one is missing for many utterances.
Example   python -m data_prep.corpora.voxpopuli transcribed_data --out shards/voxpopuli
"""
# Layout after the repository's voxpopuli/get_asr_data.py.

import sys
from functools import partial
from pathlib import Path

from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, meta, table_items


def items(folder: Path, split: str, language: str) -> Rows:
    """Items in the order of the table."""
    return table_items(look_for(folder, f"asr_{split}.tsv"), partial(_item, language),
                       ("id", "normalized_text", "speaker_id"), header=True)


def _item(language: str, row: dict[str, str], table: Path) -> Item:
    return Item(key=row["id"], audio=str(table.parent / row["id"][:4] / f"{row['id']}.ogg"),
                text=row["normalized_text"], language=language,
                meta=meta(speaker=row["speaker_id"], gender=row.get("gender"),
                          accent=row.get("accent")))


CORPUS = Corpus("voxpopuli", __doc__, items=items, splits=("test", "dev", "train"),
                default=("test",), languages="*/asr_*.tsv")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
