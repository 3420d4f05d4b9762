"""Joined samples: words point at their audio, texts and languages, what cannot be joined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.augment_join import concatenate, join_texts
from qwen3asr_train.data.shards import check_record
from qwen3asr_train.errors import DataError

RATE = 16_000


def sample(*marks: int, samples: int = 8000, **fields) -> tuple[dict, np.ndarray]:
    """A clip whose words are clicks at some samples, as loud as the word says."""
    waveform = np.zeros(samples, np.float32)
    words = []
    for mark in marks:
        waveform[mark] = 0.5 + mark / 100_000
        words.append([f"w{mark}", mark / RATE, (mark + 160) / RATE])
    record = {"text": " ".join(word for word, *_ in words), "language": "English", "task": "asr",
              "duration": samples / RATE, "source": "here", "words": words}
    return record | fields, waveform


@settings(max_examples=50, deadline=None)
@given(clips=st.lists(st.tuples(st.integers(200, 5000), st.integers(0, 10_000)), min_size=1,
                      max_size=5), seed=st.integers(0, 9))
def test_words_point_at_their_audio(clips, seed):
    samples = [sample(mark % length, mark % 100, samples=length) for length, mark in clips]
    record, waveform = concatenate(samples, np.random.default_rng(seed), (0.0, 0.3))
    assert waveform.dtype == np.float32 and check_record(record, "x")
    assert record["duration"] == pytest.approx(len(waveform) / RATE, abs=1e-4)
    pauses = len(waveform) - sum(length for length, _ in clips)
    assert 0 <= pauses <= 0.3 * RATE * (len(clips) - 1)
    for word, start, end in record["words"]:
        place = round(start * RATE)
        nearby = waveform[max(0, place - 2):place + 3]  # times have 0.1 ms
        assert np.float32(0.5 + int(word[1:]) / 100_000) in nearby
        assert end - start == pytest.approx(0.01, abs=2e-4)
    assert record["text"] == " ".join(word for word, *_ in record["words"])


def test_what_the_whole_record_says():
    silence = ({"text": "", "language": None, "task": "nonspeech"}, np.zeros(1600, np.float32))
    first = sample(100, context="names: Ada", entities=["Ada"], meta={"speakers": 1})
    second = sample(200, context="names: Ada", entities=["Bo", "Ada"], source="there")
    record, waveform = concatenate([first, silence, second], np.random.default_rng(0), (0.5, 0.5))
    assert record == {
        "text": "w100 w200", "language": "English", "task": "asr", "duration": 2.1,
        "context": "names: Ada", "entities": ["Ada", "Bo"],
        "words": [["w100", 0.0063, 0.0163], ["w200", 1.6125, 1.6225]]}
    assert len(waveform) == 2.1 * RATE
    alone, _ = concatenate([silence, silence], np.random.default_rng(0))
    assert alone["text"] == "" and alone["language"] is None and alone["task"] == "nonspeech"


def test_words_are_left_out_where_some_have_none():
    record, _ = concatenate([sample(100), sample(200, words=None)], np.random.default_rng(0))
    assert "words" not in record and record["text"] == "w100 w200" and record["source"] == "here"


def test_the_same_draws_give_the_same_pauses():
    lengths = {len(concatenate([sample(1)] * 4, np.random.default_rng(seed))[1])
               for seed in (0, 0, 1, 2)}
    assert len(lengths) == 3


def test_texts_of_scripts_without_spaces():
    assert join_texts(["打开灯", "关上门。", "好"]) == "打开灯关上门。好"
    assert join_texts(["open it", "", " now "]) == "open it now"
    assert join_texts(["说", "OK", "吗"]) == "说 OK 吗"
    assert join_texts(["그래", "좋아"]) == "그래 좋아"


@pytest.mark.parametrize("samples, message", [
    ([], "no samples"),
    ([sample(1), sample(2, language="Chinese")], "English and Chinese"),
    ([sample(1), sample(2, task="question")], "'question'"),
    ([sample(1, words=["x"])], "words"),
])
def test_what_cannot_be_joined(samples, message):
    with pytest.raises(DataError, match=message):
        concatenate(samples, np.random.default_rng(0))
