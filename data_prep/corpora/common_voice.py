"""Mozilla Common Voice, sentences read by volunteers in many languages, to shards.

Download  https://commonvoice.mozilla.org/datasets, an archive for each language; CC0
Layout    ROOT (a release: cv-corpus-VERSION) holds a folder for each language, such as en, with
              SPLIT.tsv                            a header, then a line for each clip
              clips/*.mp3
Example   python -m data_prep.corpora.common_voice cv-corpus --out shards/common_voice
"""
# Layout after https://github.com/lhotse-speech/lhotse, lhotse/recipes/commonvoice.py.

import sys
from functools import partial
from pathlib import Path

from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, meta, table_items


def items(folder: Path, split: str, language: str) -> Rows:
    """Items in the order of the table."""
    return table_items(look_for(folder, f"{split}.tsv"), partial(_item, language),
                       ("client_id", "path", "sentence"), header=True)


def _item(language: str, row: dict[str, str], table: Path) -> Item:
    return Item(key=Path(row["path"]).stem, audio=str(table.parent / "clips" / row["path"]),
                text=row["sentence"], language=language,
                meta=meta(speaker=row["client_id"], gender=row.get("gender")))


CORPUS = Corpus(
    "common_voice", __doc__, items=items, default=("test",),
    splits=("test", "dev", "train", "validated", "other"), languages="*/clips",
    # Its zh-HK is Cantonese as Hong Kong writes it; zh-CN and zh-TW are Mandarin.
    language_of=lambda folder: "yue" if folder == "zh-HK" else folder)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
