"""Stops answers that have run away: loops, and more tokens than anybody can say.

The released client shortens what repeats in finished text (QwenLM/Qwen3-ASR,
``qwen_asr/inference/utils.py``). A stream cannot wait for that: the next chunk goes on from the
text of this one, and a loop would feed itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RepetitionGuard:
    """Limits of an answer, in tokens.

    ``max_repeats``: how often up to ``max_ngram`` tokens may follow on themselves; a number such as
    1000000000 repeats a token nine times. ``max_tokens_per_second`` of audio, beyond ``allowance``
    for the language tag and the like.
    """

    max_repeats: int = 10
    max_ngram: int = 16
    max_tokens_per_second: float = 30.0
    allowance: int = 16

    def cut(self, tokens: list[int], seconds: float) -> list[int]:
        """What of a whole answer to so much audio is believed: no more than :meth:`limit`, and a
        loop at the end of that once."""
        tokens = tokens[:self.limit(seconds)]
        return tokens[:self.loop(tokens)]

    def loop(self, tokens: list[int]) -> int | None:
        """Length of ``tokens`` with the loop at their end cut back to its first round; None if they
        do not end in a loop."""
        for n in range(1, self.max_ngram + 1):
            start = len(tokens) - n * (self.max_repeats + 1)
            if start < 0:
                break
            if tokens[start:-n] == tokens[start + n:]:
                while start > 0 and tokens[start - 1] == tokens[start - 1 + n]:
                    start -= 1
                return start + n
        return None

    def limit(self, seconds: float) -> int:
        """The most tokens that so much audio may have."""
        return self.allowance + int(self.max_tokens_per_second * seconds)
