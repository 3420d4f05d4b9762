"""Noise from recordings and babble: ratio measured back, pieces, what is not readable."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from qwen3asr_train.data.augment import Augmentation
from qwen3asr_train.data.augment_noise import Recordings, add_noise, babble, fast_length
from qwen3asr_train.data.shards import ShardWriter
from qwen3asr_train.errors import DataError, UserError

RATE = 16_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def ramp(tmp_path):
    """A file in which a sample tells its place: i / 2^15 at 16 kHz."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(20_000, dtype=np.int16), RATE)
    return path


def places(piece: np.ndarray) -> np.ndarray:
    return np.round(piece * 32_768).astype(int)


def test_pieces_are_random_stretches(ramp):
    pool = Recordings([str(ramp)], "x")
    starts = set()
    for seed in range(30):
        found = places(pool.piece(5000, rng(seed)))
        assert found.shape == (5000,) and (np.diff(found) == 1).all()
        starts.add(int(found[0]))
    assert len(starts) > 20 and min(starts) < 3000 and max(starts) > 12_000


def test_short_recordings_are_repeated(ramp):
    found = places(Recordings(str(ramp), "x").piece(50_001, rng()))
    assert found.shape == (50_001,)
    steps = np.diff(found)
    assert set(steps.tolist()) == {1, -19_999} and (steps != 1).sum() in (2, 3)


@pytest.mark.parametrize("rate, channels", [(8000, 1), (44_100, 2), (16_000, 2)])
def test_rates_and_channels(tmp_path, rate, channels):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / "tone.flac", np.stack([tone] * channels, 1) * 0.5, rate)
    piece = Recordings(str(tmp_path), "x").piece(RATE, rng())
    assert piece.shape == (RATE,) and piece.dtype == np.float32
    assert np.abs(np.fft.rfft(piece * np.hanning(RATE))).argmax() == 440


def test_the_ratio_measured_back(tmp_path):
    clean = np.sin(np.arange(30_000) / 7).astype(np.float32)
    soundfile.write(tmp_path / "n.wav", 0.01 * rng().standard_normal(9000), RATE)
    for kind in ("noise_file", "babble"):
        options = Augmentation(**{f"{kind}_share": 1, f"{kind}_snr_db": (7.0, 7.0)},
                               noise_files=str(tmp_path), babble_files=str(tmp_path))
        noise = options.waveform(clean, rng()).astype(np.float64) - clean
        assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(7, abs=0.01)
    assert np.array_equal(add_noise(clean, 0.0, np.zeros(30_000)), clean)
    assert not add_noise(np.zeros(9, np.float32), 0.0, np.ones(9)).any()


def test_babble_sums_voices_of_equal_power(tmp_path):
    for i, level in enumerate((0.01, 0.5)):  # one voice is recorded far louder
        soundfile.write(tmp_path / f"{i}.wav", level * np.sin(
            2 * np.pi * (500 + 1000 * i) * np.arange(8 * RATE) / RATE), RATE)
    mixture = babble(4 * RATE, 40, Recordings(str(tmp_path), "x"), rng())
    spectrum = np.abs(np.fft.rfft(mixture))
    # as many sines of random phase each: their sums are alike in power, not 34 dB apart
    ratio = 20 * np.log10(spectrum[4 * 500] / spectrum[4 * 1500])
    assert abs(ratio) < 12


def test_unreadable_recordings_are_named(tmp_path):
    (tmp_path / "broken.mp3").write_bytes(b"\0" * 50)
    with pytest.raises(DataError, match=r"broken\.mp3: not readable"):
        Recordings(str(tmp_path), "x").piece(100, rng())
    with pytest.raises(DataError, match=r"broken\.mp3: not readable"):
        Recordings(str(tmp_path), "x").response(rng())
    (tmp_path / "broken.mp3").unlink()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(DataError, match=r"empty\.wav: no audio samples"):
        Recordings(str(tmp_path), "x").piece(100, rng())


def test_nothing_to_draw_from_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=f"noise_files: no audio .* at '{tmp_path}'"):
        Recordings(str(tmp_path), "noise_files")
    (tmp_path / "[a].wav").write_bytes(b"x")
    assert Recordings(str(tmp_path / "[a].wav"), "x")
    with ShardWriter(tmp_path / "text") as writer:
        writer.write("only-text", {"text": "x", "task": "text"})
    with pytest.raises(DataError, match=r"shard-000000\.tar: no audio in it"):
        Recordings(str(writer.paths[0]), "x").piece(100, rng())


def test_measured_responses_keep_one_channel(tmp_path):
    first, second = np.zeros(300), np.zeros(300)
    first[20], second[40] = 0.5, 0.25
    soundfile.write(tmp_path / "array.wav", np.stack([first, second], 1), RATE, subtype="FLOAT")
    pool = Recordings(str(tmp_path), "x")
    found = {tuple(np.flatnonzero(pool.response(rng(seed)))) for seed in range(10)}
    assert found == {(20,), (40,)}
    soundfile.write(tmp_path / "array.wav", np.zeros(300), RATE)
    with pytest.raises(DataError, match=r"array\.wav: .*nothing but zeros"):
        pool.response(rng())


@given(st.integers(1, 2_000_000))
def test_transforms_have_lengths_of_small_factors(samples):
    length = rest = fast_length(samples)
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    assert rest == 1 and samples <= length
    assert samples < 1000 or length <= 1.125 * samples
