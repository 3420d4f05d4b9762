"""Films to shards. Where there is no ffmpeg, every test sees that this is said instead."""

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from data_prep.video import main
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.omni import SampleReader
from qwen3asr_train.data.pictures import PictureFormat
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.data.tasks import Task, TaskBuilder
from qwen3asr_train.models.tokenizer import add_vision_tokens, train_tokenizer

HAS_FFMPEG = shutil.which("ffmpeg") is not None
SECONDS = 3
BRIGHTENING = f"color=black:s=96x64:r=10:d={SECONDS},geq=lum=16+T*60:cb=128:cr=128"  # by the time
BEEP = f"sine=frequency=1000:sample_rate=44100:duration={SECONDS}"


def film(path, *inputs):
    """A film of ffmpeg's sources; without ffmpeg an empty file."""
    if not HAS_FFMPEG:
        path.touch()
        return
    given = [part for source in inputs for part in ("-f", "lavfi", "-i", source)]
    codecs = ["-c:v", "mpeg4", "-q:v", "2", "-g", "5", "-c:a", "aac"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *given, *codecs, path], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    film(folder / "loud.mp4", BRIGHTENING, BEEP)
    film(folder / "silent.mkv", BRIGHTENING)
    (folder / "loud.txt").write_text("it gets bright\n")
    (folder / "silent.json").write_text(json.dumps({"text": "light", "question": "what comes"}))
    return folder


def convert(capsys, *arguments):
    """What was printed; None where ffmpeg is missing, which must have been said."""
    status, printed = main([str(argument) for argument in arguments]), capsys.readouterr()
    if HAS_FFMPEG:
        return status, printed
    assert status == 2 and printed.err.startswith("error: ffmpeg is not on PATH")
    return None


def samples(folder):
    reader = ShardReader()
    for entry in (e for path in find_shards(str(folder)) for e in read_entries(path)):
        frames = [np.asarray(Image.open(io.BytesIO(f))) for f in reader.read_frames(entry)]
        yield entry, *reader.read(entry), frames


def test_frames_are_what_is_seen_at_their_times(source, tmp_path, capsys):
    if (done := convert(capsys, source, "--out", tmp_path)) is None:
        return
    assert done[0] == 0 and "wrote 2 films" in done[1].out
    (loud, record, sound, frames), (silent, question, _, same) = samples(tmp_path)
    assert record["frame_times"] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] == question["frame_times"]
    assert len(frames) == len(same) == 6 and frames[0].shape == (64, 96, 3)
    for shown in (frames, same):
        # luminance 16 to 235 is what a JPEG has as 0 to 255
        seconds = np.array([frame.mean() for frame in shown]) * (219 / 255) / 60
        assert seconds == pytest.approx(record["frame_times"], abs=0.05)
    heard = decode(sound)
    assert len(heard) / 16000 == pytest.approx(SECONDS, abs=0.1)
    assert loud.duration == record["duration"] == pytest.approx(len(heard) / 16000, abs=1e-3)
    loudest = np.abs(np.fft.rfft(heard)).argmax() / len(heard) * 16000
    assert loudest == pytest.approx(1000, abs=2)
    assert (record["text"], record["task"]) == ("it gets bright", "film_with_sound")
    assert (question["question"], question["task"]) == ("what comes", "film_question")
    assert silent.audio_at is None and silent.duration == 0


def test_what_it_writes_is_what_training_reads(source, tmp_path, capsys):
    if convert(capsys, source / "loud.mp4", "--out", tmp_path) is None:
        return
    tasks = {"film_with_sound": Task(("film", "audio"), ("What is it?",))}
    tokens = add_vision_tokens(train_tokenizer(["it gets bright"] * 3, 280))
    reader = SampleReader(TaskBuilder(tokens, tasks), PictureFormat(patch=8, film_tokens=24))
    entry, = read_entries(find_shards(str(tmp_path))[0])
    _, example = reader.example(entry, 0)
    assert reader.measure(entry) == [len(example.tokens.ids)]
    assert example.seen == (4, 6, (0.0, 1.0, 2.0))


def test_a_long_film_gets_fewer_frames_a_second(source, tmp_path, capsys):
    arguments = (source / "silent.mkv", "--out", tmp_path, "--fps", 8, "--max-frames", 6)
    if convert(capsys, *arguments, "--max-side", 48) is None:
        return
    (_, record, _, frames), = samples(tmp_path)
    assert record["frame_times"] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], abs=0.02)
    assert frames[0].shape == (32, 48, 3)


def test_films_that_cannot_be_used_are_named_and_counted(source, tmp_path, capsys):
    folder = tmp_path / "films"
    shutil.copytree(source, folder)
    film(folder / "blind.mp4", BEEP)
    (folder / "other.mp4").write_bytes(b"no film")
    (folder / "list.mkv").write_text("ffconcat version 1.0\nfile loud.mp4\n")
    for cut in ("loud.mp4", "silent.mkv"):
        whole = (folder / cut).read_bytes()
        (folder / f"cut_{cut}").write_bytes(whole[:len(whole) * 2 // 5])
    torn = bytearray((folder / "silent.mkv").read_bytes())
    torn[len(torn) // 2:len(torn) // 2 + 400] = bytes(400)
    (folder / "torn.mkv").write_bytes(torn)
    for name in ("blind", "other", "list", "cut_loud", "cut_silent", "torn"):
        (folder / f"{name}.txt").write_text("a film")
    shutil.copy(folder / "loud.mp4", folder / "wordless.mp4")
    (folder / "notes.doc").touch()
    if (done := convert(capsys, folder, folder / "notes.doc", "--out", tmp_path / "out")) is None:
        return
    assert done[0] == 0 and "wrote 2 films" in done[1].out and "left out 8" in done[1].out
    for message in ("blind.mp4: no picture in it", "other.mp4: ffmpeg: ", "list.mkv: ffmpeg: ",
                    "cut_loud.mp4: ffmpeg: ", "cut_silent.mkv: ", "torn.mkv: ffmpeg: ",
                    "wordless.mp4: no .txt or .json", "notes.doc: none of .mp4"):
        assert message in done[1].err
    status, printed = convert(capsys, folder, "--out", tmp_path / "few", "--max-bad", 2)
    assert status == 2 and "3 bad films, --max-bad 2" in printed.err


def test_without_ffmpeg_and_without_a_source(source, tmp_path, capsys, monkeypatch):
    found = convert(capsys, tmp_path / "none", "--out", tmp_path)
    assert found is None or (found[0] == 2 and "no such file or folder" in found[1].err)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(source), "--out", str(tmp_path / "out")]) == 2
    assert "ffmpeg is not on PATH: it decodes the films" in capsys.readouterr().err
