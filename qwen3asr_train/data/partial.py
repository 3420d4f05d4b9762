"""Streaming enhancement: samples as a streaming recogniser meets them.

It hears the beginning of an utterance and must write no more than that (*prefix* samples), and it
goes on from text that it wrote before, whose last tokens it has taken back and whose last word may
be wrong (*continuation* samples). Word times say what has been said when.

Any word that it wrote may be wrong, and the next has to be found all the same: in training it only
meets right ones, unless tokens of what is written are exchanged.
"""

from dataclasses import dataclass

import numpy as np

from qwen3asr_train.errors import UserError


@dataclass(frozen=True)
class Partial:
    """Shares are probabilities per sample with word times; the rest stay whole.

    ``prefix_share``: audio cut at a drawn place, with the words until there. ``continuation_share``
    of all samples begin their answer with what was written before: the words until
    ``chunk_seconds`` before the end of the audio, without the last ``fallback_words``.
    ``wrong_share`` of these have their last word dropped, doubled or replaced.
    ``wrong_token_share``: of an answer's tokens, those that others, any, stand in place of when the
    next is to be told. ``own_token_share``: those that the model's own do (scheduled sampling).
    """

    prefix_share: float = 0.0
    continuation_share: float = 0.0
    wrong_share: float = 0.1
    chunk_seconds: float = 2.0
    fallback_words: int = 3
    wrong_token_share: float = 0.0
    own_token_share: float = 0.0

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if name.endswith("_share") and not 0 <= share <= 1:
                raise UserError(f"partial.{name}={share}: a share, from 0 to 1")

    @property
    def on(self) -> bool:
        """Whether any sample changes."""
        return self.prefix_share > 0 or self.continuation_share > 0

    def draw(self, record: dict, seconds: float, rng: np.random.Generator) -> "Part":
        """What is heard and written of a sample of ``seconds``."""
        spans = word_spans(record)
        heard = seconds
        if spans and rng.random() < self.prefix_share:
            heard = float(rng.uniform(0.0, seconds))
        ends = [end for _, end, said in spans if said <= heard]
        text = record["text"] if heard == seconds else record["text"][:ends[-1] if ends else 0]
        written = ""
        if spans and rng.random() < self.continuation_share:
            known = [end for _, end, said in spans if said <= heard - self.chunk_seconds]
            known = known[:max(0, len(known) - self.fallback_words)]
            if known:
                written = self._written(record["text"], spans[:len(known)], rng)
            if written:  # else the only word was dropped, and the answer begins at the beginning
                text = record["text"][known[-1]:len(text)]
        return Part(heard, written, text)

    def _written(self, text: str, spans: list[tuple[int, int, float]], rng: np.random.Generator
                 ) -> str:
        """The words of ``spans``, the last of them wrong now and then."""
        start, end, _ = spans[-1]
        if rng.random() >= self.wrong_share:
            return text[:end]
        kind = rng.integers(3)
        if kind == 0:
            return text[:start].rstrip()
        if kind == 1:
            return text[:end] + (" " if " " in text else "") + text[start:end]
        other_start, other_end, _ = spans[int(rng.integers(len(spans)))]
        return text[:start] + text[other_start:other_end]


def with_mistakes(ids: list[int], first: int, share: float, words: int, rng: np.random.Generator
                  ) -> list[int]:
    """Ids with ``share`` of those from ``first`` on, but the last, exchanged for any of the first
    ``words`` of the vocabulary."""
    is_wrong = _between(first, rng.random(len(ids)) < share)
    return np.where(is_wrong, rng.integers(words, size=len(ids)), ids).tolist()


def own_places(length: int, first: int, share: float, rng: np.random.Generator) -> list[float]:
    """For each of ``length`` tokens a number in [0, 1) where the model's own token is to stand, a
    ``share`` of those from ``first`` on, but the last; elsewhere -1."""
    chosen, numbers = rng.random((2, length), dtype=np.float32)
    return np.where(_between(first, chosen < share), numbers, -1.0).tolist()


def _between(first: int, chosen: np.ndarray) -> np.ndarray:
    """Those of ``chosen`` tokens from ``first`` on, but the last, with which an answer ends."""
    places = np.arange(len(chosen))
    return chosen & (places >= first) & (places < len(chosen) - 1)


@dataclass(frozen=True)
class Part:
    """``heard`` seconds of the audio; ``written``: how the answer begins, before ``text``, which is
    still to be written."""

    heard: float
    written: str
    text: str


def word_spans(record: dict) -> list[tuple[int, int, float]]:
    """``(first character, one after the last, end in seconds)`` of each word of ``words`` in the
    text; empty when there are no times or the words are not those of the text."""
    spans, place, text = [], 0, record["text"].casefold()
    if len(text) != len(record["text"]):
        return []  # characters that casefolding lengthens
    for word, _, end in record.get("words") or []:
        if end is None:
            return []  # a teacher's time that was not believed
        found = text.find(word.casefold(), place)
        if found < 0 or any(c.isalnum() for c in text[place:found]):
            return []
        place = found + len(word)
        while place < len(text) and not text[place].isalnum() and not text[place].isspace():
            place += 1  # punctuation belongs to the word before it
        spans.append((found, place, float(end)))
    return spans if not any(c.isalnum() for c in text[place:]) else []
