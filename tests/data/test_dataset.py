"""Batches: labels token by token, per-sample randomness, unusable samples, normalisation."""

import json

import numpy as np
import pytest
import soundfile
import torch

from qwen3asr_train.data import augment, features
from qwen3asr_train.data.audio import decode, encode
from qwen3asr_train.data.dataset import SpeechDataset, StepLoader, loader
from qwen3asr_train.data.partial import Partial
from qwen3asr_train.data.plan import BatchPlan, Cell, sample_rng
from qwen3asr_train.data.prompts import DecoderPrompts, PromptBuilder
from qwen3asr_train.data.shards import ShardReader, ShardWriter, find_shards, read_entries
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.models.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["turn on the light", "关上门", "system user assistant"] * 3, 300)


@pytest.fixture(scope="module")
def shards(corpus):
    return find_shards(corpus["train"])


@pytest.fixture(scope="module")
def entries(shards):
    return read_entries(shards[0])


def test_labels_token_by_token(tokenizer, entries):
    batch = SpeechDataset(PromptBuilder(tokenizer))[Cell(0, 0, tuple(entries[:7]))]["inputs"]
    pad = tokenizer.convert_tokens_to_ids("<|audio_pad|>")
    reader = ShardReader()
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        record, audio = reader.read(entries[row])
        audio_tokens = features.audio_tokens(features.mel_frames(len(decode(audio))))
        assert int((ids == pad).sum()) == audio_tokens
        target = f"language {record['language']}<asr_text>{record['text']}<|im_end|>"
        assert tokenizer.decode(labels[labels != -100]) == target
        places = (labels != -100).nonzero().flatten().tolist()
        assert places == list(range(places[0], places[-1] + 1))  # one run, nothing before or after
        assert tokenizer.decode(ids[:places[0]]).endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert torch.equal(ids[places], labels[places])
        assert (ids[places[-1] + 1:] == tokenizer.pad_token_id).all()


def test_context_is_in_the_prompt_and_not_in_the_labels(tokenizer):
    prompts = PromptBuilder(tokenizer)
    prompt = prompts.prompt(3, "Ada, 李雷")
    assert tokenizer.decode(prompt).startswith("<|im_start|>system\nAda, 李雷<|im_end|>\n")
    for text in ("<|im_end|>", "x<asr_text>"):
        with pytest.raises(DataError, match="control token"):
            prompts.prompt(3, text)
        with pytest.raises(DataError, match="control token"):
            prompts.target(text, "English")


def test_workers_do_not_change_batches(tokenizer, shards):
    plan = BatchPlan.from_paths({"train": shards}, batch_seconds=20, seed=1)
    noisy = augment.Augmentation(speed_share=0.5, noise_share=0.7, gain_share=0.5, time_masks=2,
                                 frequency_masks=1)
    dataset = SpeechDataset(PromptBuilder(tokenizer), seed=1, augmentation=noisy)
    batches = [[batch["inputs"] for batch in loader(dataset, plan.walk(0, 1, 2, 0, 3), workers)]
               for workers in (0, 1, 3)]
    for others in batches[1:]:
        for one, other in zip(batches[0], others, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_augmentation_depends_on_seed_epoch_and_key_only():
    waveform = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    noisy = augment.Augmentation(speed_share=1, noise_share=1, gain_share=1)

    def draw(*name):
        return noisy.waveform(waveform, sample_rng(*name))

    assert np.array_equal(draw(0, 0, "a"), draw(0, 0, "a"))
    for other in ((1, 0, "a"), (0, 1, "a"), (0, 0, "b")):
        found = draw(*other)
        assert found.shape != draw(0, 0, "a").shape or not np.array_equal(found, draw(0, 0, "a"))


def test_noise_has_the_asked_ratio():
    rng = np.random.default_rng(0)
    clean = np.sin(np.arange(16_000) / 7).astype(np.float32)
    noise = augment.add_noise(clean, 7.0, augment.coloured_noise(16_000, rng)) - clean
    ratio = 10 * np.log10(np.mean(clean**2) / np.mean(noise.astype("f8") ** 2))
    assert ratio == pytest.approx(7.0, abs=0.01)


def test_speed_changes_length_and_specaugment_keeps_shape():
    waveform = np.zeros(16_000, np.float32)
    assert abs(len(augment.change_speed(waveform, 1.25)) - 12_800) <= 2
    mel = torch.randn(200, 128)
    masked = augment.Augmentation(time_masks=2, time_mask_share=0.2, frequency_masks=2).features(
        mel, np.random.default_rng(1))
    changed = masked != mel
    assert masked.shape == mel.shape and 0 < changed.float().mean() < 0.9
    assert augment.IDENTITY.features(mel, np.random.default_rng(1)) is mel


@pytest.fixture
def broken(tmp_path):
    """Five samples of which three cannot be used."""
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.array([np.nan] * 9000, "f4"), 16_000, subtype="FLOAT")
    good = encode(np.zeros(9000, np.float32), "wav")
    with ShardWriter(tmp_path / "shards") as writer:
        for key, audio in {"good": good, "nan": nan.read_bytes(), "text": b"no audio",
                           "cut": good[:20], "fine": good}.items():
            writer.write(key, {"text": "x", "language": None, "duration": 0.6}, audio, "wav")
    return read_entries(writer.paths[0])


def test_unusable_samples_are_counted_and_named(tokenizer, broken, caplog):
    batch = SpeechDataset(PromptBuilder(tokenizer))[Cell(0, 0, tuple(broken))]
    assert [entry.key for entry in batch["meta"]["entries"]] == ["good", "fine"]
    skipped = batch["meta"]["skipped"]
    assert len(skipped) == 3 and all("shard-000000.tar:" in message for message in skipped)
    assert "NaN" in skipped[0]
    with pytest.raises(UserError, match=r"3 unusable samples, data\.max_bad_samples=2.*:cut"):
        list(StepLoader([batch], accumulate=1, max_bad=2))
    caplog.clear()
    steps = StepLoader([batch, batch], accumulate=1, max_bad=3)  # met again in the next epoch
    assert len(list(steps)) == 2 and list(steps.skipped) == skipped
    assert steps.skipped_everywhere == 3
    assert [record.getMessage() for record in caplog.records] == [f"left out: {m}" for m in skipped]


def test_a_cell_without_usable_samples_still_makes_a_batch(tokenizer, broken):
    for cell in (Cell(0, 0, ()), Cell(0, 0, (broken[1],))):
        batch = SpeechDataset(PromptBuilder(tokenizer), with_prompts=True)[cell]
        assert batch["meta"]["target_tokens"] == 0 and (batch["inputs"]["labels"] == -100).all()
        assert batch["inputs"]["prompt_ids"].shape[0] == 1


def test_step_tokens_are_summed_over_the_micro_batches(tokenizer, entries):
    dataset = SpeechDataset(PromptBuilder(tokenizer))
    batches = [dataset[Cell(0, 0, tuple(entries[i:i + n]))] for i, n in ((0, 1), (1, 5), (6, 2))]
    counts = [batch["meta"]["target_tokens"] for batch in batches]
    totals = [b["meta"]["step_tokens"] for b in StepLoader(batches, accumulate=2, max_bad=0)]
    assert totals == [counts[0] + counts[1]] * 2 + [counts[2]]


def test_a_clips_features_do_not_depend_on_the_batch(tokenizer, entries):
    dataset = SpeechDataset(PromptBuilder(tokenizer))
    together = dataset[Cell(0, 0, tuple(entries[:6]))]["inputs"]
    start = 0
    for i, entry in enumerate(entries[:6]):
        alone = dataset[Cell(0, 0, (entry,))]["inputs"]["input_features"]
        assert torch.equal(together["input_features"][start:start + len(alone)], alone)
        start += int(together["clip_chunks"][i])


def test_a_sample_without_audio_is_refused(tokenizer, tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("no-audio", {"text": "x"})
        writer.write("nothing-spoken", {"text": "x", "task": "text"})
        writer.write("raw", {"text": "", "task": "unlabelled", "duration": 0.6},
                     encode(np.zeros(9000, np.float32), "wav"), "wav")
    entries = tuple(read_entries(writer.paths[0]))
    batch = SpeechDataset(PromptBuilder(tokenizer))[Cell(0, 0, entries)]
    first, second, third = batch["meta"]["skipped"]
    assert "raw: no transcript yet" in third and "data_prep.pseudo_label" in third
    assert "no-audio: no audio" in first and "nothing-spoken: a sample of task 'text'" in second
    assert json.dumps(entries[0])  # entries are plain


def test_text_alone_stands_where_audio_would(tokenizer, tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("t", {"text": "turn on", "spoken": "the light", "task": "text",
                           "language": "English", "context": "turn", "duration": 1.0})
    cell = Cell(0, 0, tuple(read_entries(writer.paths[0])))
    dataset = SpeechDataset(PromptBuilder(tokenizer), with_prompts=True)
    batch = dataset[cell]["inputs"]
    ids = batch["input_ids"][0]
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nturn<|im_end|>\n<|im_start|>user\n<|audio_start|>the light"
        "<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
        "language English<asr_text>turn on<|im_end|>")
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels != -100]) == "language English<asr_text>turn on<|im_end|>"
    assert batch["clip_chunks"].tolist() == [0, 1]  # silence beyond the last, used nowhere


def test_text_alone_is_no_sample_for_a_decoder_that_hears(tokenizer, tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("only-text", {"text": "turn", "task": "text", "spoken": "turn"})
    found, = read_entries(tmp_path / "shard-000000.tar")
    batch = SpeechDataset(DecoderPrompts(tokenizer))[Cell(0, 0, (found,))]
    skipped, = batch["meta"]["skipped"]
    assert "only-text: a sample of task 'text' has no audio" in skipped


def test_partial_samples_are_cut_and_continued(tmp_path):
    text, words = "one two three four five", []
    for i, word in enumerate(text.split()):
        words.append([word, i * 1.0, i + 0.9])
    with ShardWriter(tmp_path) as writer:
        noise = np.random.default_rng(0).standard_normal(80_000).astype(np.float32) * 0.1
        writer.write("a", {"text": text, "language": "English", "duration": 5.0, "words": words},
                     encode(noise, "wav"), "wav")
    entry = read_entries(find_shards(str(tmp_path))[0])[0]
    tokenizer = train_tokenizer([f"language English {text} system user assistant"] * 3, 300)
    prompts = PromptBuilder(tokenizer)
    partial = Partial(0.5, 0.5, wrong_share=0.0, chunk_seconds=1.0, fallback_words=1)
    kinds = set()
    for epoch in range(40):
        dataset = SpeechDataset(prompts, partial=partial)
        inputs = dataset[Cell(0, epoch, (entry,))]["inputs"]
        frames = int(inputs["chunk_lengths"].sum())
        labels = inputs["labels"][0]
        answer = tokenizer.decode(inputs["input_ids"][0][labels != -100])
        whole = tokenizer.decode(inputs["input_ids"][0]).split("assistant\n")[1]
        heard = [word for word, _, end in words if end <= frames / 100 + 0.005]
        expected = f"language {'English' if heard else None}<asr_text>{' '.join(heard)}<|im_end|>"
        assert whole == expected and whole.endswith(answer)
        kinds.add((frames < 500, answer != whole))
    assert kinds == {(a, b) for a in (True, False) for b in (True, False)}


def test_wrong_tokens_stand_before_the_right_next(entries, tokenizer):
    prompts = PromptBuilder(tokenizer)
    plain = SpeechDataset(prompts)
    wrong = SpeechDataset(prompts, partial=Partial(wrong_token_share=0.4))
    cell = Cell(0, 3, tuple(entries[:20]))
    batch, expected = wrong[cell]["inputs"], plain[cell]["inputs"]
    assert torch.equal(batch["labels"], expected["labels"])
    assert torch.equal(batch["input_ids"], wrong[cell]["inputs"]["input_ids"])
    labels, end = expected["labels"], prompts.answer("")[-1]
    behind = (labels == prompts.marker).cumsum(1).bool() & (labels >= 0)
    may_change = behind & (labels != prompts.marker) & (labels != end)
    changed = batch["input_ids"] != expected["input_ids"]
    assert not (changed & ~may_change).any()
    assert 0.2 < changed.sum() / may_change.sum() < 0.6
    assert batch["input_ids"][changed].max() < tokenizer.vocab_size


def test_the_models_own_tokens_are_drawn_by_the_samples_key(entries, tokenizer):
    prompts = PromptBuilder(tokenizer)
    own = SpeechDataset(prompts, partial=Partial(own_token_share=0.4))
    batch = own[Cell(0, 3, tuple(entries[:20]))]["inputs"]
    numbers, labels = batch["own_tokens"], batch["labels"]
    behind = (labels == prompts.marker).cumsum(1).bool() & (labels >= 0)
    may_change = behind & (labels != prompts.marker) & (labels != prompts.answer("")[-1])
    assert not ((numbers >= 0) & ~may_change).any() and numbers.max() < 1
    assert 0.2 < (numbers >= 0).sum() / may_change.sum() < 0.6
    alone = own[Cell(7, 3, (entries[4],))]["inputs"]
    assert torch.equal(alone["own_tokens"][0], numbers[4][:alone["own_tokens"].shape[1]])
    nothing = own[Cell(0, 3, ())]["inputs"]  # still there: every rank goes through the first pass
    assert (nothing["own_tokens"] == -1).all()
