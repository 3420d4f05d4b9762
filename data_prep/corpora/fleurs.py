"""FLEURS, sentences of Wikipedia read in 102 languages, to shards.

Download  https://huggingface.co/datasets/google/fleurs, its folder data; CC BY 4.0
Layout    ROOT (the folder data) holds a folder for each language, such as en_us, with
              SPLIT.tsv                            id, file, raw transcription, transcription,
                                                   characters, samples, gender; no header
              audio/SPLIT.tar.gz                   or unpacked, audio/SPLIT/FILE
The text is the raw transcription, with capitals and punctuation. Nobody says who speaks.
Example   python -m data_prep.corpora.fleurs fleurs/data --out shards/fleurs
"""
# Layout after https://huggingface.co/datasets/google/fleurs, fleurs.py.

import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.command import reading
from data_prep.convert import Bad, Item
from data_prep.corpora._common import (
    Corpus,
    Rows,
    convert_corpus,
    look_for,
    meta,
    table_items,
)
from qwen3asr_train.errors import UserError

_COLUMNS = ("id", "file", "raw_transcription", "transcription", "characters", "samples", "gender")


def items(folder: Path, split: str, language: str) -> Rows:
    """Items in the order of the table, or of the archive when there is no folder."""
    found, total = table_items(look_for(folder, f"{split}.tsv"),
                               partial(_item, folder, language), _COLUMNS)
    if (folder / "audio" / split).is_dir():
        return found, total
    return _unpacked(look_for(folder, f"audio/{split}.tar.gz")[0], found), total


def _item(folder: Path, language: str, row: dict[str, str], table: Path) -> Item:
    return Item(key=f"{folder.name}-{Path(row['file']).stem}", language=language,
                audio=str(folder / "audio" / table.stem / row["file"]),
                text=row["raw_transcription"], meta=meta(gender=row["gender"].lower()))


def _unpacked(archive: Path, items: Iterable[Item | Bad]) -> Iterator[Item | Bad]:
    """Items with their audio from ``archive``: what is compressed can be read forwards only."""
    wanted: dict[str, Item] = {}
    for item in items:
        if isinstance(item, Bad):
            yield item
        else:
            wanted[Path(item.audio).name] = item
    try:
        with reading(archive), tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                item = wanted.pop(Path(member.name).name, None) if member.isfile() else None
                if item is not None:
                    yield replace(item, audio=tar.extractfile(member).read(), name=member.name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged ({error}): download it anew") from error
    for item in wanted.values():
        yield Bad(item.key, Path(item.audio).name, f"not in {archive}")


CORPUS = Corpus("fleurs", __doc__, items=items, splits=("test", "dev", "train"),
                default=("test",), languages="*/*.tsv")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
