"""Long samples made of several."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.dataset import SpeechDataset
from qwen3asr_train.data.joins import Joiner, Joins
from qwen3asr_train.data.plan import Cell
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.errors import UserError
from qwen3asr_train.models.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def entries(corpus):
    return read_entries(find_shards(corpus["train"])[0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.floats(0, 20), more=st.floats(0, 20),
       pause=st.floats(0, 1))
def test_what_follows_fits_and_is_of_the_same_language(entries, seed, low, more, pause):
    options = Joins(1.0, (low, low + more), (0.0, pause))
    joiner, entry = Joiner(options, entries), entries[seed % len(entries)]
    found = joiner.following(entry, np.random.default_rng(seed))
    assert all(other.language == entry.language for other in found)
    if found:
        assert sum(e.duration + pause for e in found) + entry.duration <= low + more + 1e-6


def test_share_and_what_has_no_language(entries):
    joiner = Joiner(Joins(0.3), entries)
    drawn = [bool(joiner.following(entries[0], np.random.default_rng(i))) for i in range(300)]
    assert 60 <= sum(drawn) <= 120
    assert not Joiner(Joins(1.0), entries).following(entries[0]._replace(language=None),
                                                    np.random.default_rng(0))


def test_joined_samples_hold_all_words_and_audio(entries):
    prompts = PromptBuilder(train_tokenizer(["turn on the light", "system user"] * 3, 300))
    plain = SpeechDataset(prompts)
    joined = SpeechDataset(prompts, joiner=Joiner(Joins(1.0, (4, 8)), entries))
    reader, longer = ShardReader(), 0
    for entry in entries[:20]:
        before, after = plain.sample(entry), joined.sample(entry)
        audio = decode(reader.read(entry)[1])
        assert np.array_equal(after.waveform[:len(audio)], audio)
        assert after.record["text"].startswith(before.record["text"])
        assert after.record["words"][:len(before.record["words"])] == before.record["words"]
        assert len(after.waveform) <= 8.1 * 16_000
        longer += len(after.waveform) > len(audio)
        assert np.array_equal(after.waveform, joined.sample(entry).waveform)
    assert longer >= 15
    batch = joined[Cell(0, 0, tuple(entries[:4]))]
    assert [r["text"] for r in batch["meta"]["records"]] == [
        joined.sample(entry).record["text"] for entry in entries[:4]]


@pytest.mark.parametrize("wrong", [{"share": 2}, {"seconds": (5, 1)}, {"pause_seconds": (-1, 0)}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match=r"data\.joins"):
        Joins(**wrong)
