"""GigaSpeech, English audiobooks, podcasts and YouTube, to shards.

Download  https://github.com/SpeechColab/GigaSpeech, on application, for research that is not
          commercial
Layout    ROOT holds
              GigaSpeech.json                      segments of all recordings, with their subsets
              audio/…/*.opus                       recordings, hours long
The corpus's punctuation tags (<COMMA> …) become punctuation marks. Segments that it tags as no
utterance (<SIL>, <MUSIC>, <NOISE>, <OTHER>) are left out, as it recommends.
Example   python -m data_prep.corpora.gigaspeech GigaSpeech --out shards/gigaspeech
"""
# Layout and tags after the repository's README.md and toolkits/wenet/.

import re
import sys
from pathlib import Path

from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, segment_items

_MARKS = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_PUNCTUATION = re.compile(rf"\s*<({'|'.join(_MARKS)})>")
_NO_UTTERANCE = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


def items(root: Path, split: str) -> Rows:
    """Segments in the order of the manifest."""
    manifest = look_for(root, "GigaSpeech.json")[0]
    look_for(root, "audio")
    return segment_items(manifest, f"{{{split.upper()}}}", "English", _text), None


def _text(segment: dict) -> str | None:
    text = segment["text_tn"]
    if _NO_UTTERANCE.search(text):
        return None
    return _PUNCTUATION.sub(lambda tag: _MARKS[tag[1]], text)


CORPUS = Corpus("gigaspeech", __doc__, items=items,
                splits=("test", "dev", "xs", "s", "m", "l", "xl"), default=("test",))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
