"""M4Singer, Mandarin songs of twenty singers, to shards.

Download  https://github.com/M4Singer/M4Singer; CC BY-NC-SA 4.0
Layout    ROOT holds
              meta.json                            [{"item_name": "SINGER#SONG#NUMBER", "txt", …}]
              SINGER#SONG/NUMBER.wav               or with the name's hanzi as #U7f8e, as some
                                                   unpackers write them
The split test is the eight songs that the authors' own configuration holds out.
Example   python -m data_prep.corpora.m4singer m4singer --out shards/m4singer
"""
# Layout after https://github.com/espnet/espnet, egs2/m4singer/svs1/local/data_prep.py; the split
# after the corpus's repository, code/usr/configs/m4singer/base.yaml.

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.command import reading, resolve
from data_prep.convert import Bad, Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for
from qwen3asr_train.errors import UserError

_TEST = ("Alto-2#岁月神偷", "Alto-2#奇妙能力歌", "Tenor-1#一千年以后", "Tenor-1#童话",
         "Tenor-2#消愁", "Tenor-2#一荤一素", "Soprano-1#念奴娇赤壁怀古", "Soprano-1#问春")


def items(root: Path, split: str) -> Rows:
    """Items in the order of the table."""
    table = look_for(root, "meta.json")[0]
    try:
        with reading(table):
            rows = [(row["item_name"], row["txt"]) for row in json.loads(table.read_bytes())]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{table} is not a list of rows with item_name and txt ({error!r})"
                        ) from error
    chosen = [row for row in rows if row[0].startswith(_TEST) == (split == "test")]
    return _items(root, chosen), len(chosen)


def _items(root: Path, rows: list[tuple[str, str]]) -> Iterator[Item | Bad]:
    for name, text in rows:
        if name.count("#") < 2:
            yield Bad(name, name, "its name is not SINGER#SONG#NUMBER")
            continue
        song, number = name.rsplit("#", 1)
        escaped = song.encode("unicode_escape").decode().replace("\\u", "#U")
        yield Item(key=name, audio=resolve(f"{number}.wav", root / song, root / escaped), text=text,
                   language="Chinese", meta={"speaker": name.split("#")[0], "song": song})


CORPUS = Corpus("m4singer", __doc__, items=items, splits=("test", "train"),
                default=("test",))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
