"""WenetSpeech, Mandarin from YouTube and podcasts, and meetings, to shards.

Download  https://wenet.org.cn/WenetSpeech, on application, for research that is not commercial
Layout    ROOT (UNTAR_DIR of its download script) holds
              WenetSpeech.json                     segments of all recordings, with their subsets
              audio/…/*.opus                       recordings, hours long
L holds M and S, too. The segments are cut out of the recordings; nobody says who speaks.
Example   python -m data_prep.corpora.wenetspeech WenetSpeech --out shards/wenetspeech
"""
# Layout after https://github.com/wenet-e2e/WenetSpeech, toolkits/wenet/local/extract_meta.py.

import sys
from pathlib import Path

from data_prep.corpora._common import Corpus, Rows, convert_corpus, look_for, segment_items


def items(root: Path, split: str) -> Rows:
    """Segments in the order of the manifest."""
    manifest = look_for(root, "WenetSpeech.json")[0]
    look_for(root, "audio")
    return segment_items(manifest, split.upper(), "Chinese", lambda row: row["text"]), None


CORPUS = Corpus("wenetspeech", __doc__, items=items,
                splits=("test_net", "test_meeting", "dev", "s", "m", "l"),
                default=("test_net", "test_meeting"))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return convert_corpus(CORPUS, argv)


if __name__ == "__main__":
    sys.exit(main())
