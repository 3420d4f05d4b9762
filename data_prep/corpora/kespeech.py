"""KeSpeech, Mandarin and its eight subdialects, to shards.

Download  https://github.com/KeSpeech/KeSpeech; its own licence: not commercial, no redistribution
Layout    ROOT holds Audio/ and Tasks/ASR/SPLIT/ with
              wav.scp                              "KEY PATH" a line, relative to ROOT
              text, utt2spk, utt2subdialect        "KEY VALUE" a line
The subdialect goes to meta.dialect of a record; <SPOKEN_NOISE> is dropped.
Example   python -m data_prep.corpora.kespeech KeSpeech --out shards/kespeech
"""
# Layout after https://github.com/lhotse-speech/lhotse, lhotse/recipes/kespeech.py.

import sys
from dataclasses import replace
from pathlib import Path

from data_prep import kaldi
from data_prep.convert import Item
from data_prep.corpora._common import Corpus, Rows, changed, convert_corpus, look_for, meta


def items(root: Path, split: str) -> Rows:
    """Items in the order of ``wav.scp``."""
    folder = root / "Tasks" / "ASR" / split
    look_for(folder, "wav.scp")
    transcripts = kaldi.table(look_for(folder, "text")[0])
    dialects = kaldi.table(look_for(folder, "utt2subdialect")[0])

    def labelled(item: Item) -> Item:
        return replace(item, text=item.text.replace("<SPOKEN_NOISE>", ""), language="Chinese",
                       meta=item.meta | meta(dialect=dialects.get(item.key)))
    return changed(kaldi.items(folder, transcripts, (root,)), labelled), len(transcripts)


CORPUS = Corpus(
    "kespeech", __doc__, items=items, default=("test",),
    splits=("test", "dev_phase1", "dev_phase2", "train_phase1", "train_phase2"))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
