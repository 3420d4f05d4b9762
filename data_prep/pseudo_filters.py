"""Which pseudo-labels are kept: confidence, repetition, speech rate, agreement of two models.

Every figure is a pure function of the text (and the clip's length), so a threshold can be tried on
labels that are there already.
"""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # loads torch
    from qwen3asr_train.decoding.transcriber import Transcript

COPIES = 4
"""So many copies in a row are a loop; two or three ("very, very good", "no no no") are speech."""

DENSE_LETTERS = 2.5
"""Letters that a hanzi, kana or hangul counts for. Mandarin has 5.2 syllables a second, one hanzi
each, English 6.2 of about two letters: Pellegrino, Coupé and Marsico, "A cross-language perspective
on speech information rate", Language 87 (2011)."""

_DENSE = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
                    r"\uf900-\ufaff\U00020000-\U000323af]")
# Hanzi, kana, and the scripts of Thai, Lao, Khmer and Burmese: no spaces between words.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff" \
            r"\U00020000-\U000323af"
_SPECIAL = re.compile(r"<\|[^<>]*\|>|</?[a-z_]+>|\ufffd")  # of any vocabulary; broken UTF-8
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Filters:
    """Thresholds; what lies on one passes. The agreements count where there is a second model.

    ``max_repetition``: :func:`repetition`. ``max_compression``: :func:`compression`; 2.4 is
    Whisper's (Radford et al. 2022, section 4.5). ``min_rate``, ``max_rate``: :func:`letters` a
    second of audio; fluent English has about 12, and a clip may hold silence.
    """

    min_confidence: float = 0.0
    max_repetition: float = 0.5
    max_compression: float = 2.4
    min_rate: float = 1.0
    max_rate: float = 30.0
    min_agreement: float = 0.0
    require_language_agreement: bool = False

    def reason(self, label: "Transcript", seconds: float, names_language: bool) -> str | None:
        """Why the label of a clip of ``seconds`` is rejected by itself; None if it is not.

        No words in no language is a label: no speech. No words in some language is ``empty``,
        words in no language, by a model that names languages, ``no language``.
        """
        if label.confidence < self.min_confidence:
            return "confidence"
        if not label.text:
            return "empty" if label.language else None
        if names_language and not label.language:
            return "no language"
        if _SPECIAL.search(label.text):
            return "special token"
        if repetition(label.text) > self.max_repetition:
            return "repetition"
        if compression(label.text) > self.max_compression:
            return "compression"
        rate = letters(label.text) / seconds
        if rate < self.min_rate:
            return "slow"
        return "fast" if rate > self.max_rate else None

    def disagreement(self, label: "Transcript", second: "Transcript") -> str | None:
        """Why a label is rejected beside that of the second model; None if it is not."""
        if self.require_language_agreement and label.language != second.language:
            return "language"
        return "agreement" if agreement(label, second) < self.min_agreement else None


def repetition(text: str) -> float:
    """Share of the text's units (words; characters where words have no spaces) in its longest
    loop: a stretch of one pattern, however long, :data:`COPIES` times in a row or more."""
    numbers: dict[str, int] = {}
    units = np.array([numbers.setdefault(unit, len(numbers))
                      for unit in _UNIT.findall(text.lower())])
    longest = 0
    for length in range(1, len(units) // COPIES + 1):
        # A stretch that equals itself ``length`` units later is that pattern over and over.
        equal = np.concatenate(([False], units[length:] == units[:-length], [False]))
        ends = np.flatnonzero(~equal)
        stretch = int(np.diff(ends).max()) - 1 + length
        if stretch >= COPIES * length:
            longest = max(longest, stretch)
    return longest / len(units) if len(units) else 0.0


def compression(text: str) -> float:
    """Bytes of the text over bytes of its zlib compression, as ``whisper/utils.py`` has it."""
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data))


def letters(text: str) -> float:
    """Letters, digits and marks of a text; a hanzi, kana or hangul is :data:`DENSE_LETTERS`."""
    return sum(DENSE_LETTERS if _DENSE.match(character) else 1.0 for character in text
               if unicodedata.category(character)[0] in "LNM")


def agreement(label: "Transcript", second: "Transcript") -> float:
    """1 for the same text, 0 for nothing in common: 1 - edits / units of the longer text, after
    the normalisation of the label's language; words or, e.g. in Chinese, characters."""
    # Here and not at the top: they load transformers, and the filters of one model need neither.
    from rapidfuzz.distance import Levenshtein

    from qwen3asr_train.evaluation.text import units
    return Levenshtein.normalized_similarity(units(label.text, label.language),
                                             units(second.text, label.language))

