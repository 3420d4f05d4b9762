"""AISHELL-2, read Mandarin recorded with iPhones, to shards.

Download  https://www.aishelltech.com/aishell_2, on application, for academic use
Layout    ROOT (the folder iOS; Android and Mic, which have dev and test only, look the same) holds
              test, dev, data (that is the split train), each with
              trans.txt                                             "KEY WORDS" a line
              wav.scp                                               "KEY wav/SPEAKER/KEY.wav" a line
Example   python -m data_prep.corpora.aishell2 AISHELL-2/iOS --out shards/aishell2
"""
# Layout after https://github.com/wenet-e2e/wenet, examples/aishell2/s0/local/prepare_data.sh, and
# https://github.com/lhotse-speech/lhotse, lhotse/recipes/aishell2.py.

import sys
from dataclasses import replace
from pathlib import Path

from data_prep import kaldi
from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, changed, convert_corpus, look_for


def items(root: Path, split: str) -> Rows:
    """Items in the order of ``wav.scp``."""
    folder = root / ("data" if split == "train" else split)
    look_for(folder, "wav.scp")
    transcripts = kaldi.table(look_for(folder, "trans.txt")[0])
    return changed(kaldi.items(folder, transcripts, (folder,)), _labelled), len(transcripts)


def _labelled(item: Item) -> Item:
    return replace(item, language="Chinese", meta={"speaker": Path(item.audio).parent.name})


CORPUS = Corpus("aishell2", __doc__, items=items, splits=("test", "dev", "train"),
                default=("test",))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
