"""Which pseudo-labels are kept."""

import zlib

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.pseudo_filters import Filters, agreement, compression, letters, repetition
from qwen3asr_train.decoding.transcriber import Transcript


def label(text: str, language: str | None = "English", confidence: float = 0.9) -> Transcript:
    return Transcript(language, text, confidence, 5)


@pytest.mark.parametrize(("text", "language", "seconds", "reason"), [
    ("turn on the light", "English", 1.5, None),
    ("very very very good", "English", 2, None),
    ("no no no no no", "English", 2, "repetition"),
    ("i see thank you thank you thank you thank you", "English", 4, "repetition"),
    ("打开客厅的灯", "Chinese", 2, None),
    ("哈哈哈哈哈哈对", "Chinese", 3, "repetition"),
    (" ".join(f"{word} and so on and so forth," for word in "abcdefghijkl" * 2), "English", 30,
     "compression"),
    ("turn on the light", "English", 0.4, "fast"),
    ("打开客厅的灯打开卧室的灯", "Chinese", 0.9, "fast"),
    ("yes", "English", 4, "slow"),
    ("是", "Chinese", 2.4, None),
    ("", None, 9, None),
    ("", "English", 9, "empty"),
    ("words", None, 1, "no language"),
    ("wor<unk>ds", "English", 1, "special token"),
    ("wor<|im_end|>ds", "English", 1, "special token"),
])
def test_filters(text, language, seconds, reason):
    assert Filters().reason(label(text, language), seconds, names_language=True) == reason
    assert Filters(min_confidence=0.95).reason(label(text, language), seconds, True) == "confidence"


@settings(deadline=None)
@given(st.text("ab ", max_size=24))
def test_repetition_is_the_longest_loop(text):
    units = text.split()
    longest = max((end - start for start in range(len(units)) for end in range(len(units) + 1)
                   for length in range(1, (end - start) // 4 + 1)
                   if all(units[i] == units[i + length] for i in range(start, end - length))),
                  default=0)
    assert repetition(text) == pytest.approx(longest / len(units) if units else 0)


def test_compression_and_letters():
    assert compression("ab" * 50) == pytest.approx(100 / len(zlib.compress(b"ab" * 50)))
    assert letters("Don't, 7 去年は") == 5 + 3 * 2.5
    assert letters("नमस्ते") == 6


@settings(deadline=None)
@given(st.lists(st.sampled_from(["one", "two", "red"]), max_size=6),
       st.lists(st.sampled_from(["one", "two", "red"]), max_size=6))
def test_agreement_is_one_less_edits_of_the_longer(left, right):
    found = agreement(label(" ".join(left), "German"), label(" ".join(right), "German"))
    if not left or not right:
        assert found == (left == right)
        return
    counts = jiwer.process_words(" ".join(left), " ".join(right))
    edits = counts.substitutions + counts.deletions + counts.insertions
    assert found == pytest.approx(1 - edits / max(len(left), len(right)))


def test_agreement_of_languages():
    same, strict = Filters(min_agreement=0.6), Filters(require_language_agreement=True)
    assert same.disagreement(label("打开客厅的灯", "Chinese"), label("打开课厅的灯", "X")) is None
    assert same.disagreement(label("turn on"), label("turn it off")) == "agreement"
    assert strict.disagreement(label("a"), label("a")) is None
    assert strict.disagreement(label("a"), label("a", "German")) == "language"
    assert strict.disagreement(label("", None), label("", None)) is None
