"""The chain of augmentations: what existing runs draw, own draws, bad settings, any input."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwen3asr_train.data import augment, augment_noise
from qwen3asr_train.data.audio import encode
from qwen3asr_train.data.augment import Augmentation
from qwen3asr_train.data.dataset import SpeechDataset
from qwen3asr_train.data.plan import Cell, sample_rng
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.data.shards import ShardWriter, read_entries
from qwen3asr_train.errors import UserError
from qwen3asr_train.models.tokenizer import train_tokenizer

CONFIG = Path(__file__).parents[2] / "configs/data/shards.yaml"
TIMELESS = ("pitch", "reverb", "noise", "noise_file", "babble", "gain", "clipping", "codec")


def signal(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.abs(np.sin(np.arange(samples) / 1600))
    return (0.1 * envelope * rng.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings: a long one, one shorter than most clips, and a shard of two."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "deep").mkdir()
    (folder / "long.wav").write_bytes(encode(signal(40_000, 1), "wav"))
    (folder / "deep" / "short.FLAC").write_bytes(encode(signal(900, 2), "flac"))
    with ShardWriter(folder) as writer:
        for seed in (3, 4):
            writer.write(f"s{seed}", {"text": "x", "language": None, "duration": 0.25},
                         encode(signal(4000, seed), "wav"), "wav")
    return folder


def everything(folder, *steps: str, **more) -> Augmentation:
    shares = {f"{step}_share": 1.0 for step in steps}
    return augment.build({"noise_files": str(folder), "babble_files": [str(folder)]}
                         | shares | more)


def test_the_config_file_says_the_defaults():
    assert augment.build(yaml.safe_load(CONFIG.read_text())["augmentation"]) == augment.IDENTITY
    waveform = signal(3000)
    record = {"words": [["a", 0.0, 0.1]]}
    assert augment.IDENTITY.clip(record, waveform, sample_rng(0, 0, "a")) == (record, waveform)


def before(options: Augmentation, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What runs did that knew speed, coloured noise and gain alone."""
    if rng.random() < options.speed_share:
        waveform = augment.change_speed(waveform, rng.uniform(*options.speed_range))
    if rng.random() < options.noise_share:
        waveform = augment.add_noise(waveform, rng.uniform(*options.noise_snr_db),
                                     augment.coloured_noise(len(waveform), rng))
    if rng.random() < options.gain_share:
        waveform = waveform * np.float32(10 ** (rng.uniform(*options.gain_db) / 20))
    return waveform


@pytest.mark.parametrize("new", [{}, {"codec_share": 0.5, "pitch_share": 0.5, "reverb_share": 0.5,
                                      "edges_share": 0.0}])
def test_old_steps_draw_what_they_drew(new):
    old = {"speed_share": 0.5, "noise_share": 0.5, "gain_share": 0.5, "time_masks": 2}
    same = 0
    for number in range(20):
        waveform, draws = signal(8000, number), sample_rng(3, 1, f"{number}")
        expected = before(Augmentation(**old), waveform, draws)
        rng = sample_rng(3, 1, f"{number}")
        found = Augmentation(**old, **new).waveform(waveform, rng)
        same += np.array_equal(found, expected)
        # what SpecAugment and the questions draw next
        assert rng.bit_generator.state == draws.bit_generator.state
    assert same == 20 if not new else 0 < same < 10


def test_one_step_does_not_change_the_draws_of_another(folder):
    waveform, key = signal(20_000), (0, 0, "a")
    clipping = {"clipping_share": 1.0, "clipping_db": (0.0, 0.0)}  # happens, changes nothing
    one = everything(folder, "noise_file", "codec", codecs=("alaw",))
    both = everything(folder, "noise_file", "codec", codecs=("alaw",), **clipping)
    np.testing.assert_array_equal(one.waveform(waveform, sample_rng(*key)),
                                  both.waveform(waveform, sample_rng(*key)))


@pytest.mark.parametrize("step", ["speed", "tempo", *TIMELESS])
def test_every_step_happens_at_its_share_and_depends_on_the_key_alone(folder, step):
    waveform = signal(4000)
    half = everything(folder, **{f"{step}_share": 0.5}, codecs=("alaw",))
    found = [half.waveform(waveform, sample_rng(0, 0, f"{i}")) for i in range(60)]
    changed = [len(w) != len(waveform) or not np.array_equal(w, waveform) for w in found]
    assert 15 < sum(changed) < 45
    for i in (0, 7):
        np.testing.assert_array_equal(half.waveform(waveform, sample_rng(0, 0, f"{i}")), found[i])
    kinds = {w.tobytes() for w, new in zip(found, changed, strict=True) if new}
    assert len(kinds) == sum(changed) or step == "codec"  # telephone draws nothing that matters


samples = st.one_of(
    arrays(np.float32, st.integers(1, 700), elements=st.floats(-1, 1, width=32)),
    st.integers(1, 3000).map(lambda n: np.zeros(n, np.float32)),
    st.tuples(st.integers(1, 4000), st.floats(-44, 3)).map(
        lambda pair: (signal(pair[0]) * 10 ** pair[1]).astype(np.float32)))


@settings(max_examples=60, deadline=None)
@given(waveform=samples, steps=st.sets(st.sampled_from(TIMELESS)), seed=st.integers(0, 99),
       codec=st.sampled_from(sorted(augment.CODECS)))
def test_any_clip_stays_finite_float32_of_its_length(folder, waveform, steps, seed, codec):
    options = everything(folder, *steps, codecs=(codec,))
    given_to_it = waveform.copy()
    found = options.waveform(waveform, np.random.default_rng(seed))
    assert found.dtype == np.float32 and found.shape == waveform.shape
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(waveform, given_to_it)  # not written to
    if not waveform.any():
        assert not found.any()


@settings(max_examples=25, deadline=None)
@given(waveform=samples, speed=st.floats(0.5, 3), tempo=st.floats(0.5, 3))
def test_only_speed_and_tempo_change_the_length(waveform, speed, tempo):
    options = Augmentation(speed_share=1, speed_range=(speed, speed), tempo_share=1,
                           tempo_range=(tempo, tempo))
    found = options.waveform(waveform, np.random.default_rng(0))
    assert found.dtype == np.float32 and np.isfinite(found).all() and len(found) >= 1
    assert len(found) == pytest.approx(len(waveform) / speed / tempo, abs=3)


def test_edges_are_silence_and_words_move_along():
    record = {"text": "a", "duration": 1.0, "words": [["a", 0.2, 0.6]]}
    options = Augmentation(edges_share=1, edges_seconds=(0.5, 0.5), speed_share=1,
                           speed_range=(2.0, 2.0))
    changed, waveform = options.clip(record, signal(16_000), np.random.default_rng(0))
    assert len(waveform) == 24_000 and not waveform[:8_000].any() and not waveform[16_000:].any()
    assert changed["words"] == [["a", 0.6, 0.8]] and changed["duration"] == 1.5


def test_words_follow_speed_and_tempo():
    record = {"text": "a b c", "duration": 1.0,
              "words": [["a", 0.0, 0.3], ["b", 0.4, 0.5], ["c", None, None]]}
    options = Augmentation(speed_share=1, speed_range=(1.25, 1.25), tempo_share=1,
                           tempo_range=(0.5, 0.5), gain_share=1)
    changed, waveform = options.clip(record, signal(16_000), np.random.default_rng(0))
    assert changed["words"] == [["a", 0.0, 0.48], ["b", 0.64, 0.8], ["c", None, None]]
    assert changed["duration"] == pytest.approx(len(waveform) / 16_000, abs=1e-4) == 1.6
    assert record["words"][1] == ["b", 0.4, 0.5] and record["duration"] == 1.0


@pytest.mark.parametrize("options, message", [
    ({"pitch_share": 1.5}, "pitch_share=1.5: a share"),
    ({"speed_range": [1.1, 0.9]}, r"speed_range=\(1.1, 0.9\): a range"),
    ({"tempo_range": [0, 1]}, "tempo_range"),
    ({"clipping_db": 3.0}, "clipping_db=3.0: a range"),
    ({"noise_snr_db": [float("nan"), 3]}, "noise_snr_db"),
    ({"babble_voices": [1.5, 2]}, "babble_voices=.*whole numbers"),
    ({"codecs": ["mp3", "aac"]}, r"codecs=.*'aac'.*there are mp3, opus"),
    ({"codecs": []}, "codecs"),
    ({"warp_range": [0.0, 1.0]}, "warp_range"),
    ({"warp_hz": []}, "warp_hz"),
    ({"warp_hz": [10.0]}, "warp_hz"),
    ({"warp_hz": [500, 700]}, r"warp_hz=\[500, 700\].*more than 1.56 times"),
    ({"noise_file_share": 0.1}, "noise_files is not set"),
    ({"babble_share": 0.1}, "babble_files is not set"),
    ({"noise_file_share": 0.1, "noise_files": "/nowhere"}, "noise_files: no audio .*'/nowhere'"),
    ({"reverb_share": 0.1, "reverb_files": ["/nowhere/*.wav"]}, "reverb_files: no audio"),
])
def test_bad_settings_are_named(options, message):
    with pytest.raises(UserError, match=rf"data\.augmentation\.{message}"):
        augment.build(options)


def test_a_codec_may_be_given_by_its_name_alone():
    assert augment.build({"codecs": "gsm"}).codecs == ("gsm",)


def test_batches_are_of_augmented_clips_and_name_what_fails(folder, tmp_path):
    tokenizer = train_tokenizer(["turn on the light"] * 3, 300)
    with ShardWriter(tmp_path) as writer:
        for key, words in (("good", [["x", 0.1, 0.2]]), ("bad", "x")):
            writer.write(key, {"text": "x", "language": "English", "duration": 1.0,
                               "words": words}, encode(signal(16_000), "wav"), "wav")
    entries = tuple(read_entries(writer.paths[0]))
    slow = everything(folder, "tempo", "noise_file", "reverb", tempo_range=(0.5, 0.5))
    batch = SpeechDataset(PromptBuilder(tokenizer), augmentation=slow)[Cell(0, 0, entries)]
    assert [entry.key for entry in batch["meta"]["entries"]] == ["good"]
    assert "bad: 'words' must be" in batch["meta"]["skipped"][0]
    assert torch.isfinite(batch["inputs"]["input_features"]).all()
    assert int(batch["inputs"]["clip_chunks"][0]) == 2  # twice as long

    broken = tmp_path / "noises"
    broken.mkdir()
    (broken / "hum.wav").write_bytes(b"not audio")
    noisy = Augmentation(noise_file_share=1, noise_files=str(broken))
    batch = SpeechDataset(PromptBuilder(tokenizer), augmentation=noisy)[Cell(0, 0, entries[:1])]
    assert "good: " in batch["meta"]["skipped"][0] and "hum.wav: not" in batch["meta"]["skipped"][0]


def test_shards_are_opened_lazily_and_plain_files_stay_on_disk(folder, monkeypatch):
    read = []
    monkeypatch.setattr(augment_noise, "_audio_entries",
                        lambda shard: read.append(shard) or read_entries(shard))
    pool = augment_noise.Recordings(str(folder), "x")
    assert not read
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert pool.piece(1000, rng).any()
    assert read and {os.path.basename(path) for path in read} == {"shard-000000.tar"}
