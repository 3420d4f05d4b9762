"""AISHELL-1, read Mandarin, to shards.

Download  https://www.openslr.org/33, data_aishell.tgz; Apache 2.0. It holds an archive for each
          speaker: unpack these too, in data_aishell/wav.
Layout    ROOT (the folder data_aishell) holds
              transcript/aishell_transcript_v0.8.txt                "KEY WORDS" a line, all splits
              wav/SPLIT/SPEAKER/KEY.wav
The spaces between words of the transcript are dropped.
Example   python -m data_prep.corpora.aishell1 data_aishell --out shards/aishell1
"""
# Layout after https://github.com/lhotse-speech/lhotse, lhotse/recipes/aishell.py.

import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.convert import Bad, Item
from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for
from data_prep.kaldi import table


def items(root: Path, split: str) -> Rows:
    """Items in the order of their paths; audio without a transcript is Bad."""
    transcripts = table(look_for(root, "transcript/aishell_transcript_v0.8.txt")[0])
    paths = look_for(root, f"wav/{split}/*/*.wav")

    def found() -> Iterator[Item | Bad]:
        for path in paths:
            if path.stem not in transcripts:
                yield Bad(path.stem, str(path), "no transcript")
                continue
            yield Item(key=path.stem, audio=str(path), language="Chinese",
                       text="".join(transcripts[path.stem].split()),
                       meta={"speaker": path.parent.name})
    return found(), len(paths)


CORPUS = Corpus("aishell1", __doc__, items=items, splits=("test", "dev", "train"),
                default=("test",))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
