"""Prefix and continuation samples."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.partial import Part, Partial, word_spans
from qwen3asr_train.errors import UserError

ENGLISH = {"text": "Hello, my dear friend Ann!",
           "words": [["hello", 0.1, 0.5], ["my", 0.5, 0.7], ["dear", 0.8, 1.2],
                     ["friend", 1.2, 1.9], ["ann", 2.5, 3.0]]}
CHINESE = {"text": "你好吗", "words": [["你", 0.0, 0.3], ["好", 0.3, 0.6], ["吗", 0.6, 1.0]]}


def test_spans_are_the_words_with_their_punctuation():
    assert [ENGLISH["text"][a:b] for a, b, _ in word_spans(ENGLISH)] == [
        "Hello,", "my", "dear", "friend", "Ann!"]
    assert [CHINESE["text"][a:b] for a, b, _ in word_spans(CHINESE)] == ["你", "好", "吗"]


@pytest.mark.parametrize("record", [
    {"text": "no times"}, {"text": "no times", "words": []},
    {"text": "one two", "words": [["one", 0, 1]]},
    {"text": "one two three", "words": [["one", 0, 1], ["three", 1, 2]]},
    {"text": "one", "words": [["two", 0, 1]]},
    {"text": "", "words": []}])
def test_words_that_are_not_the_text_change_nothing(record):
    assert word_spans(record) == []
    part = Partial(1.0, 1.0).draw(record, 2.0, np.random.default_rng(0))
    assert part == Part(2.0, "", record["text"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([ENGLISH, CHINESE]), st.integers(0, 10_000))
def test_a_prefix_has_the_words_said_until_its_end(record, seed):
    part = Partial(prefix_share=1.0).draw(record, 3.2, np.random.default_rng(seed))
    said = [word for word, _, end in record["words"] if end <= part.heard]
    assert part.written == "" and 0 <= part.heard <= 3.2
    assert record["text"].startswith(part.text)
    letters = "".join(c for c in part.text.casefold() if c.isalnum())
    assert letters == "".join(said)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.integers(0, 6), st.integers(0, 10_000))
def test_a_continuation_is_the_rest_of_the_same_text(prefix, fallback, seed):
    options = Partial(prefix, 1.0, wrong_share=0.0, chunk_seconds=1.0, fallback_words=fallback)
    part = options.draw(ENGLISH, 3.2, np.random.default_rng(seed))
    assert ENGLISH["text"].startswith(part.written + part.text)
    words = [word for word, _, end in ENGLISH["words"] if end <= part.heard - 1.0]
    assert len(part.written.split()) == max(0, len(words) - fallback)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([ENGLISH, CHINESE]), st.integers(0, 6), st.integers(0, 10_000))
def test_an_answer_that_begins_with_nothing_begins_at_the_beginning(record, fallback, seed):
    options = Partial(0.0, 1.0, wrong_share=1.0, chunk_seconds=0.2, fallback_words=fallback)
    part = options.draw(record, 3.2, np.random.default_rng(seed))
    assert part.text == record["text"] if not part.written else \
        record["text"].endswith(part.text) and len(part.text) < len(record["text"])


def test_wrong_prefixes_keep_the_rest_right():
    options = Partial(0.0, 1.0, wrong_share=1.0, chunk_seconds=0.5, fallback_words=1)
    drawn = Counter(options.draw(ENGLISH, 3.2, np.random.default_rng(i)) for i in range(100))
    assert {part.text for part in drawn} == {" friend Ann!"} or \
        {part.text for part in drawn} == {" Ann!"}
    written = {part.written for part in drawn}
    assert len(written) >= 3 and any(len(w.split()) != 4 for w in written)


def test_off_leaves_everything_whole():
    assert not Partial().on
    assert Partial().draw(ENGLISH, 3.2, np.random.default_rng(0)) == Part(3.2, "", ENGLISH["text"])


def test_shares_that_cannot_be_are_refused():
    for name in ("prefix_share", "wrong_token_share"):
        with pytest.raises(UserError, match=rf"partial\.{name}=2: a share"):
            Partial(**{name: 2})
