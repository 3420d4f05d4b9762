"""``stage=transcribe`` with a stream: files, stdin, and what can be wrong with them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from qwen3asr_train import command_line as library_command_line
from qwen3asr_train.decoding.live import Event
from qwen3asr_train.decoding.live_pcm import pcm_pieces
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.models import asr, aut
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer
from qwen3asr_train.stages import transcribe
from qwen3asr_train.stages.transcribe import EventPrinter

ROOT = Path(__file__).parent.parent.parent
STREAM = ["stage=transcribe", "stage.streaming=true", "stage.live.chunk_seconds=1",
          "stage.live.max_new_tokens_per_chunk=4"]
AUDIO = dict(num_mel_bins=128, d_model=16, encoder_layers=1, encoder_attention_heads=2,
             encoder_ffn_dim=24, downsample_hidden_size=4, initializer_range=0.3)


def pcm(seconds: float) -> bytes:
    rng = np.random.default_rng(0)
    return (3000 * rng.standard_normal(int(16_000 * seconds))).astype("<i2").tobytes()


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def processor():
    return make_processor(train_tokenizer(["turn on the light", "language English"] * 5, 300))


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    """A random model."""
    text = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, initializer_range=0.4)
    path = tmp_path_factory.mktemp("run") / "model"
    asr.save(asr.build({"audio_config": AUDIO, "text_config": text}, processor, seed=0), processor,
             path)
    return path


@pytest.fixture
def run(folder, monkeypatch):
    """The stage in this process, with bytes on stdin."""
    def run_stage(*overrides: str, stdin: bytes = b""):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(library_command_line.CONFIGS), version_base="1.3"):
            config = compose("config", [*STREAM, f"stage.init_from={folder}", *overrides])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return transcribe.run(config, Path("."))
    return run_stage


def test_stdin_is_transcribed_while_it_arrives(finished_run, tmp_path):
    command = [sys.executable, "-m", "qwen3asr_train", *STREAM, "format=jsonl", "language=en",
               f"init_from={finished_run / 'model'}", "audio=-"]
    audio = pcm(2.5)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                          ) as process:
        process.stdin.write(audio[:32_001])  # ends in the middle of a sample
        process.stdin.flush()
        first = json.loads(process.stdout.readline())  # comes before the rest is sent
        process.stdin.write(audio[32_001:])
        rest, _ = process.communicate(timeout=200)
    found = [first, *rows(rest.decode())]
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []
    assert [row["kind"] for row in found] == ["partial", "partial", "final"]
    assert [row["end"] for row in found] == [1.0, 2.0, 2.5]
    assert set(first) == {"kind", "text", "language", "start", "end", "stable", "audio"}
    assert first["language"] == "English" and first["audio"] == "-"


def test_files_give_what_their_samples_give(run, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.frombuffer(pcm(2.5), "<i2"), 16_000)
    (tmp_path / "bad.flac").write_bytes(b"fLaC nothing")
    assert run(f"audio={tmp_path}", "stage.format=jsonl") == {"files": 2, "failed": 1}
    output = capsys.readouterr()
    run("audio=-", "stage.format=jsonl", stdin=pcm(2.5))
    piped = rows(capsys.readouterr().out)
    found = rows(output.out)
    assert "bad.flac: not readable" in output.err
    assert {row.pop("audio") for row in found} == {str(tmp_path / "a.wav")}
    assert {row.pop("audio") for row in piped} == {"-"}
    assert found == piped and len(found) == 3


def test_text_has_final_lines_on_stdout(run, capsys):
    run("audio=-", "stage.language=zh", stdin=pcm(2.2))
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("-\t")]
    assert len(lines) == 2 and all(line.startswith("-\tChinese\t") for line in lines)
    assert len(output.out.splitlines()) <= 1


def test_a_terminal_shows_one_line_that_is_written_over(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "9")
    show = EventPrinter("x.wav", "text")
    show(Event("partial", "please 关上门", "English", 0.0, 2.0, 0))
    show(Event("final", "", None, 0.0, 2.0, 0))
    show(Event("final", "please", "English", 2.0, 4.0, 6))
    output = capsys.readouterr()
    assert output.err.split("\x1b[K")[:2] == ["\re 关上门", "\r"]
    assert output.out == "x.wav\tEnglish\tplease\n"


def test_an_odd_byte_is_told_after_all_is_printed(run, capsys):
    with pytest.raises(DataError, match="odd number of bytes"):
        run("audio=-", "stage.format=jsonl", stdin=pcm(1.5) + b"x")
    assert rows(capsys.readouterr().out)[-1]["end"] == 1.5


@pytest.mark.parametrize(("stdin", "message"), [
    (b"", "no audio samples"), (b"x", "no audio samples"), (b"RIFF1234WAVE", "a WAV file")])
def test_no_raw_audio_on_stdin_is_refused(run, stdin, message):
    with pytest.raises(DataError, match=message):
        run("audio=-", stdin=stdin)


def test_what_cannot_stream_says_so(run, processor, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"say stage\.streaming=true"):
        run("audio=-", "stage.streaming=false")
    with pytest.raises(UserError, match="chunk_seconds=0 makes no sense"):
        run("audio=-", "stage.live.chunk_seconds=0")
    preset = {"audio_config": AUDIO, "aut_decoder": dict(
        d_model=24, layers=1, heads=2, ffn_dim=32)}
    aut.save(aut.build(preset, processor, seed=0), processor, tmp_path)
    with pytest.raises(UserError, match="this is an AuT"):
        run("audio=-", f"stage.init_from={tmp_path}")


class Slow:
    """A pipe that hands out given pieces."""

    def __init__(self, *pieces: bytes):
        self.pieces = list(pieces)

    def read1(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def test_bytes_of_a_sample_that_arrive_apart():
    data = np.array([1, -2, 300, -32768, 32767], "<i2")
    raw = data.tobytes()
    for cuts in ([1], [2, 3, 4], [1, 2, 3, 5, 9], [4], []):
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        found = np.concatenate(list(pcm_pieces(Slow(*pieces))))
        assert np.array_equal(found, data.astype(np.float32) / 32768)


def test_ctrl_c_ends_the_stream_with_its_last_words():
    def pieces():
        yield np.zeros(5)
        raise KeyboardInterrupt

    assert len(list(transcribe._until_interrupt(pieces()))) == 1
