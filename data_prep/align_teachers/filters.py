"""What of a teacher's times is believed. Word times that are not become null: a model trains on the
others; a sample with too few left is rejected. Everything is counted by its reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from data_prep.align_teachers.times import UNKNOWN, Words
from qwen3asr_train.data.slots import is_letter
from qwen3asr_train.errors import DataError, UserError

_DENSE = ("\u3040", "\u9fff")
"""Kana and hanzi: a syllable or two each, where a letter is a third of one."""
_DENSE_LETTERS = 3


@dataclass(frozen=True)
class TimeFilters:
    """``min_letter_seconds``, ``max_letter_seconds``: duration of a word over its letters (a kana
    or hanzi counts as three). ``max_overlap_seconds``: of a word with the one before.
    ``max_disagreement_seconds``: from a second teacher, at the start and at the end.
    ``max_doubted_share``: of a sample's words, beyond which it is rejected.
    """

    min_letter_seconds: float = 0.01
    max_letter_seconds: float = 0.5
    max_overlap_seconds: float = 0.02
    max_disagreement_seconds: float = 0.15
    max_doubted_share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.min_letter_seconds <= self.max_letter_seconds:
            raise UserError(f"--min-letter-seconds {self.min_letter_seconds} "
                            f"--max-letter-seconds {self.max_letter_seconds}: least and most")

    def believed(self, words: Words, seconds: float, second: Words | None = None
                 ) -> tuple[Words, Counter]:
        """Words with null for times that are in doubt, and how many for each reason."""
        kept, doubts, before = [], Counter(), 0.0
        others = None if second is None else _letter_times(second)
        places = [0, *accumulate(len(letters(word)) for word, *_ in words)]
        for (word, start, end), first, last in zip(words, places, places[1:], strict=False):
            reason = self._doubt(word, start, end, before, seconds)
            if reason is None and others is not None:
                reason = self._disagreement(start, end, others, first, last)
            if reason is not None:
                doubts[reason] += 1
            kept.append([word, None, None] if reason else [word, start, end])
            before = before if end is None else max(before, end)
        return kept, doubts

    def _doubt(self, word: str, start: float | None, end: float | None, before: float,
               seconds: float) -> str | None:
        if start is None or end is None:
            return "without a time"
        size = sum(_DENSE_LETTERS if _DENSE[0] <= c <= _DENSE[1] else 1 for c in letters(word))
        if end > seconds + self.max_overlap_seconds:
            return "beyond the audio"
        if size and (end - start) / size < self.min_letter_seconds:
            return "too short"
        if size and (end - start) / size > self.max_letter_seconds:
            return "too long"
        return "overlap" if before - start > self.max_overlap_seconds else None

    def _disagreement(self, start: float, end: float, others: tuple[dict, dict], first: int,
                      last: int) -> str | None:
        starts, ends = others
        pairs = ((start, starts.get(first)), (end, ends.get(last)))
        far = any(other is not None and abs(time - other) > self.max_disagreement_seconds
                  for time, other in pairs)
        return "disagreement" if far else None

    def rejects(self, words: Words) -> bool:
        """Whether too many times are in doubt."""
        doubted = sum(start is None for _, start, _ in words)
        return not words or doubted > self.max_doubted_share * len(words)


def letters(text: str) -> list[str]:
    """What of a text is compared, in lower case."""
    return [c.lower() for c in text if is_letter(c)]


def _letter_times(words: Words) -> tuple[dict[int, float], dict[int, float]]:
    """Times at which words start and end, by the number of letters before."""
    starts, ends, count = {}, {}, 0
    for word, start, end in words:
        starts[count] = start
        count += len(letters(word))
        ends[count] = end
    return starts, ends


def matched(words: Words, text: str) -> Words:
    """The teacher's words, if they are those of ``text``; what its dictionary lacked gets the word
    that stands there. Raises DataError."""
    if any(word.lower() in UNKNOWN for word, *_ in words):
        written = [word for word in text.split() if letters(word)]
        if len(written) != len(words):
            raise DataError("words that the dictionary lacks, and another number of words than the "
                            "text has")
        words = [[said if word.lower() in UNKNOWN else word, start, end]
                 for said, (word, start, end) in zip(written, words, strict=True)]
    found = [c for word, *_ in words for c in letters(word)]
    if found != letters(text):
        raise DataError("the times are of other words than the text's")
    return words


def counted(doubts: Sequence[Counter]) -> Counter:
    """All of them together."""
    return sum(doubts, Counter())
