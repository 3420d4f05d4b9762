"""Digit strings from made-up takes."""

import hashlib
import importlib.util
import io
import itertools
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3asr_train.errors import UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "own_speech"
SPEAKERS = ("anna", "ben", "cora")
RATE = 8000


def load(name: str):
    """A script of the recipe as a module."""
    spec = importlib.util.spec_from_file_location(f"own_speech_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


digit_strings = load("digit_strings")
sys.modules["digit_strings"] = digit_strings  # as it is to a script beside it
synthetic_takes = load("synthetic_takes")


def tone(digit: int, speaker: int, index: int) -> np.ndarray:
    """A constant that tells digit, speaker and take: joins cannot hide where it came from."""
    level = (1 + digit + 10 * speaker + 30 * index) / 100
    return np.full(80 + 8 * index, level, dtype=np.float32)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Two takes of each digit by three speakers, and files that are no takes."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, speaker in enumerate(SPEAKERS):
        for digit in range(10):
            for index in range(2):
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav",
                                tone(digit, number, index), RATE, subtype="PCM_16")
    (folder / "README.md").write_text("not a recording")
    return folder


def make(recordings: Path, out: Path, seed: int = 0) -> Path:
    """The script with few strings."""
    assert digit_strings.main([str(recordings), "--out", str(out), "--held-out", "ben",
                               "--strings", "15", "--test-strings", "8",
                               "--seed", str(seed)]) == 0
    return out


def takes_in(wav: Path) -> list[tuple[int, int, int]]:
    """(digit, speaker, index) of every take heard in a string of constants."""
    waveform, rate = soundfile.read(wav)
    assert rate == RATE
    levels = np.round(waveform * 100).astype(int)
    edges = np.flatnonzero(np.diff(levels, prepend=0, append=0))
    runs = [(levels[a], b - a) for a, b in itertools.pairwise(edges)]
    assert runs[0][0] != 0 and runs[-1][0] != 0
    pauses = [length for level, length in runs if level == 0]
    assert all(0.05 * RATE - 1 <= length <= 0.25 * RATE for length in pauses)
    assert len(pauses) == len(runs) // 2  # one between any two takes
    return [((level - 1) % 10, (level - 1) % 30 // 10, (level - 1) // 30)
            for level, _ in runs if level]


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> hash of all files."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_strings_say_their_takes_and_keep_the_speaker_out(recordings, tmp_path, monkeypatch):
    # what varies training strings hides the constants
    monkeypatch.setattr(digit_strings, "change_tempo", lambda waveform, *_: waveform)
    monkeypatch.setattr(digit_strings, "equalise", lambda waveform, _: waveform)
    out = make(recordings, tmp_path / "strings")
    wavs = sorted(out.rglob("*.wav"))
    assert len(wavs) == 15 + 8
    for wav in wavs:
        split, speaker = wav.relative_to(out).parts[:2]
        takes = takes_in(wav)
        assert (3 if split == "test" else 1) <= len(takes) <= 7
        assert {SPEAKERS[s] for _, s, _ in takes} == {speaker}
        assert (split == "test") == (speaker == "ben")
        assert wav.with_suffix(".txt").read_text().split() == [
            digit_strings.WORDS[digit] for digit, _, _ in takes]


def test_every_take_serves_equally_often(recordings):
    takes = digit_strings.read_takes(recordings)["anna"]
    strings = list(digit_strings.make_strings(takes, 40, np.random.default_rng(0), training=True))
    used = [take.name for string in strings for take in string.takes]
    counts = [used.count(take.name) for take in takes]
    assert max(counts) - min(counts) <= 1
    assert {len(string.takes) for string in strings} >= {1, 2, 3}


def test_training_strings_vary_in_tempo_and_colour_and_test_strings_do_not(recordings):
    takes = digit_strings.read_takes(recordings)["anna"]

    def levels(training: bool) -> set[float]:
        strings = digit_strings.make_strings(takes, 10, np.random.default_rng(0), training)
        return {float(level) for string in strings for level in np.round(string.waveform, 3)}

    assert levels(training=False) <= {0.0, *np.round([take.waveform[0] for take in takes], 3)}
    assert len(levels(training=True)) > 100


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.3])
def test_tempo_changes_length_and_keeps_pitch_and_level(factor):
    sine = np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE).astype(np.float32)
    changed = digit_strings.change_tempo(sine, RATE, factor)
    assert len(changed) == pytest.approx(RATE / factor, rel=0.02)
    assert np.abs(np.fft.rfft(changed)).argmax() * RATE / len(changed) == pytest.approx(300, abs=2)
    assert changed.std() == pytest.approx(sine.std(), rel=0.05)


def test_equaliser_keeps_length_and_power_and_never_clips():
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 4001).astype(np.float32)
    changed = digit_strings.equalise(noise, np.random.default_rng(1))
    assert changed.shape == noise.shape and changed.dtype == np.float32
    assert changed.std() == pytest.approx(noise.std(), rel=1e-3)
    assert np.abs(digit_strings.equalise(noise * 10, np.random.default_rng(1))).max() <= 1.0


def test_same_seed_same_files(recordings, tmp_path):
    first, again = make(recordings, tmp_path / "a"), make(recordings, tmp_path / "b")
    other = make(recordings, tmp_path / "c", seed=1)
    assert digests(first) == digests(again) != digests(other)
    assert digests(make(recordings, first, seed=1)) == digests(other)  # nothing old stays


def test_tar_is_read_as_the_folder_and_never_extracted(recordings, tmp_path):
    archive = tmp_path / "takes.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(recordings.iterdir()):
            tar.add(path, f"../../{path.name}")
        link = tarfile.TarInfo("0_eve_0.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        odd = tarfile.TarInfo("notes.txt")
        odd.size = 2
        tar.addfile(odd, io.BytesIO(b"hi"))
    before = set(tmp_path.parent.parent.glob("*"))
    assert digests(make(archive, tmp_path / "a")) == digests(make(recordings, tmp_path / "b"))
    assert set(tmp_path.parent.parent.glob("*")) == before


def test_errors_are_one_line(recordings, tmp_path, capsys):
    def fails(source: Path, out: Path, held_out: str) -> str:
        assert digit_strings.main([str(source), "--out", str(out), "--held-out", held_out]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "anna, ben, cora" in fails(recordings, tmp_path / "x", "dora")
    assert "holds something else" in fails(recordings, recordings, "ben")
    assert "neither a folder nor a tar" in fails(tmp_path / "none", tmp_path / "x", "ben")
    (tmp_path / "empty").mkdir()
    assert "no files like" in fails(tmp_path / "empty", tmp_path / "x", "ben")
    (tmp_path / "empty" / "1_ben_0.wav").write_bytes(b"RIFF")
    assert "not readable" in fails(tmp_path / "empty", tmp_path / "x", "ben")


def test_takes_of_different_rates_are_refused(recordings, tmp_path):
    soundfile.write(tmp_path / "1_ben_0.wav", np.ones(9), 8000)
    soundfile.write(tmp_path / "2_ben_0.wav", np.ones(9), 16000)
    with pytest.raises(UserError, match="sampling rates"):
        digit_strings.read_takes(tmp_path)


def test_made_takes_become_strings_of_their_voices(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_takes, "INTELLIGIBLE_VARIANTS", ("f2", "linda"))
    monkeypatch.setattr(synthetic_takes, "ACCENTS", ("en-gb-scotland",))
    assert synthetic_takes.main(["--out", str(tmp_path / "takes"), "--takes", "2"]) == 0
    takes = digit_strings.read_takes(tmp_path / "takes")
    assert set(takes) == {"f2-en-gb-scotland", "linda-en-gb-scotland"}
    for spoken in takes.values():
        assert sorted(take.digit for take in spoken) == sorted([*range(10)] * 2)
        for take in spoken:
            assert take.rate == 8000 and 0.1 < len(take.waveform) / 8000 < 1.5
            # trimmed: the word begins and ends at once
            peak = np.abs(take.waveform).max()
            assert np.abs(take.waveform[:80]).max() > peak / 200
        same = [take.waveform for take in spoken if take.digit == 7]
        assert len(same[0]) != len(same[1])  # rates differ
    out = tmp_path / "strings"
    assert digit_strings.main([str(tmp_path / "takes"), "--out", str(out), "--strings", "5"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [".digit_strings", "train"]
    assert len(list(out.rglob("*.wav"))) == 5


def test_times_of_the_takes(recordings, tmp_path):
    takes = digit_strings.read_takes(recordings)["anna"]
    for string in digit_strings.make_strings(takes, 5, np.random.default_rng(0), training=False):
        for take, (first, after) in zip(string.takes, string.bounds, strict=True):
            np.testing.assert_array_equal(string.waveform[first:after], take.waveform)
    out = tmp_path / "strings"
    assert digit_strings.main([str(recordings), "--out", str(out), "--held-out", "ben", "--strings",
                               "3", "--test-strings", "2", "--times"]) == 0
    for path in (out / "test" / "ben").glob("*.wav"):
        words = json.loads((out / "times" / f"ben_{path.stem}.json").read_text())
        assert " ".join(word for word, *_ in words) == path.with_suffix(".txt").read_text().strip()
