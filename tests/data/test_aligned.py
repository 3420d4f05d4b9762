"""Batches of the aligner from the miniature corpus: determinism, joins, a noisy teacher."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3asr_train.data.aligned import AlignmentDataset, collate_slots
from qwen3asr_train.data.joins import Joiner, Joins
from qwen3asr_train.data.plan import Cell
from qwen3asr_train.data.shards import ShardWriter, find_shards, read_entries
from qwen3asr_train.data.slots import SlotOptions, SlotPrompts
from qwen3asr_train.data.teacher_noise import TeacherNoise, nearest_monotone
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer


@pytest.fixture(scope="module")
def prompts():
    texts = ["turn on the light please now", "关上客厅的门"] * 5
    return SlotPrompts(make_processor(train_tokenizer(texts, 400)), num_labels=3750)


@pytest.fixture(scope="module")
def entries(corpus):
    return read_entries(find_shards(corpus["train"])[0])[:6]


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one["inputs"][name], other["inputs"][name]) for name in one["inputs"])


def test_slots_follow_from_seed_epoch_and_key(prompts, entries):
    def batch(seed=0, epoch=0, order=1):
        dataset = AlignmentDataset(prompts, seed=seed, options=SlotOptions(all_share=0.0))
        return dataset[Cell(0, epoch, tuple(entries[::order]))]

    first = batch()
    assert same(first, batch()) and not same(first, batch(seed=1)) and not same(first, batch(0, 1))
    assert first["meta"]["target_tokens"] == int((first["inputs"]["labels"] >= 0).sum()) > 0
    backwards = batch(order=-1)["inputs"]["labels"]
    assert torch.equal(backwards.flip(0), first["inputs"]["labels"])


def test_every_word_of_the_corpus_has_its_class(prompts, entries):
    dataset = AlignmentDataset(prompts, with_units=True)
    batch = dataset[Cell(0, 0, tuple(entries))]
    slots = batch["inputs"]["input_ids"] == prompts.slot_id
    assert torch.equal(slots, batch["inputs"]["labels"] >= 0)
    for row, mask, times in zip(batch["inputs"]["labels"], slots, batch["meta"]["times"],
                                strict=True):
        expected = [int(time / 0.08 + 0.5) for pair in times for time in pair]
        assert row[mask].tolist() == expected


def test_joined_clips_keep_their_times(prompts, entries):
    joiner = Joiner(Joins(share=1.0, seconds=(20.0, 30.0)), entries)
    joined = AlignmentDataset(prompts, joiner=joiner)
    sample = joined.sample(entries[0])
    units, times = joined.units_of(sample.record)
    assert len(sample.waveform) > 4 * entries[0].duration * 16_000 / 2 and len(units) == len(times)
    flat = [time for pair in times for time in pair]
    assert flat == sorted(flat) and flat[-1] <= len(sample.waveform) / 16_000 + 1e-3


def test_samples_without_times_are_named(prompts, entries, tmp_path):
    from qwen3asr_train.data.shards import ShardReader

    record, audio = ShardReader().read(entries[0])
    with ShardWriter(tmp_path) as writer:
        writer.write("none", {k: v for k, v in record.items() if k != "words"}, audio, "wav")
        writer.write("other", record | {"text": "something else"}, audio, "wav")
    bad = read_entries(find_shards(str(tmp_path))[0])
    batch = AlignmentDataset(prompts)[Cell(0, 0, tuple(bad))]
    first, second = batch["meta"]["skipped"]
    assert "shard-000000.tar:none: no word times" in first
    assert "shard-000000.tar:other: 'words' are not those of the text" in second
    assert batch["meta"]["target_tokens"] == 0 and len(batch["inputs"]["input_ids"]) == 1


def test_collate_pads_labels_with_nothing(prompts, entries):
    dataset = AlignmentDataset(prompts)
    examples = [dataset.example(s := dataset.sample(e), *dataset.units_of(s.record),
                                np.random.default_rng(0)) for e in entries]
    batch = collate_slots(examples, prompts.pad_id)
    for row, example in zip(batch["labels"], examples, strict=True):
        assert row.tolist() == example.labels + [-100] * (len(row) - len(example.labels))


RECORD = {"words": [[f"w{i}", i * 0.5, i * 0.5 + 0.4] for i in range(400)]}


def moved(noise: TeacherNoise) -> np.ndarray:
    words = noise.of(RECORD, 200.0, 0, "key")["words"]
    return np.array([[b - a for a, b in zip(old[1:], new[1:], strict=True)]
                     for old, new in zip(RECORD["words"], words, strict=True)])


def test_a_noisy_teacher():
    jitter = moved(TeacherNoise(jitter_ms=20))
    assert np.std(jitter) == pytest.approx(0.02, rel=0.1) and abs(jitter.mean()) < 0.003
    shifted = moved(TeacherNoise(shift_share=0.25, shift_ms=30))
    assert set(np.round(shifted, 3).ravel()) == {0.0, 0.03}
    assert np.mean(shifted > 0) == pytest.approx(0.25, abs=0.07)
    gross = np.abs(moved(TeacherNoise(gross_share=0.1, gross_ms=800))).max(1)
    assert 0.3 < gross.max() <= 0.801 and np.mean(gross > 0.05) < 0.4
    noisy = TeacherNoise(jitter_ms=100, gross_share=0.1, gross_ms=2000)
    times = [t for _, *pair in noisy.of(RECORD, 200.0, 0, "key")["words"] for t in pair]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 200
    assert noisy.of(RECORD, 200.0, 0, "key") == noisy.of(RECORD, 200.0, 0, "key")
    assert noisy.of(RECORD, 200.0, 0, "key") != noisy.of(RECORD, 200.0, 0, "other")
    assert TeacherNoise().of(RECORD, 200.0, 0, "key") is RECORD


def test_words_that_touch_share_a_boundary_and_its_noise():
    record = {"words": [[f"w{i}", i * 0.5, (i + 1) * 0.5] for i in range(400)]}
    words = TeacherNoise(jitter_ms=60).of(record, 200.0, 0, "key")["words"]
    ends, starts = (np.array([word[i] for word in part]) for part, i in ((words[:-1], 2),
                                                                         (words[1:], 1)))
    assert np.array_equal(ends, starts)
    noise = ends - np.arange(1, 400) * 0.5
    assert np.std(noise) == pytest.approx(0.06, rel=0.1) and abs(noise.mean()) < 0.01


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_nearest_monotone(values):
    """Against the min-max formula of isotonic regression."""
    values, places = np.array(values), range(len(values))
    means = {(a, b): values[a:b + 1].mean() for a in places for b in places if a <= b}
    expected = [max(min(means[a, b] for b in places if b >= i) for a in places if a <= i)
                for i in places]
    np.testing.assert_allclose(nearest_monotone(values), expected, atol=1e-9)
