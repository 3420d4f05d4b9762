"""Decoding: formats, rates, channels, and what is refused."""

import io

import numpy as np
import pytest
import soundfile

from qwen3asr_train.data.audio import EXTENSIONS, SAMPLE_RATE, decode, duration, encode
from qwen3asr_train.errors import DataError


def tone(rate: int, seconds: float = 0.7) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype("f4")


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_any_format_and_rate_is_the_same_tone(extension, rate, tmp_path):
    path = tmp_path / f"x.{extension}"
    path.write_bytes(encode(tone(rate), extension, rate))
    for source in (path, path.read_bytes()):
        found = decode(source)
        assert found.dtype == np.float32 and abs(len(found) / SAMPLE_RATE - 0.7) < 0.1
        spectrum = np.abs(np.fft.rfft(found[1600:9600]))
        assert abs(np.argmax(spectrum) * SAMPLE_RATE / 8000 - 440) < 4
    assert abs(duration(path) - 0.7) < 0.1


def test_channels_are_averaged(tmp_path):
    left = tone(16_000)
    soundfile.write(tmp_path / "x.wav", np.stack([left, np.zeros_like(left)], 1), 16_000)
    np.testing.assert_allclose(decode(tmp_path / "x.wav"), left / 2, atol=1e-4)


@pytest.mark.parametrize(("samples", "message"), [
    (np.array([0.1, np.nan], "f4"), "NaN or infinite"), (np.array([np.inf], "f4"), "NaN"),
    (np.zeros(0, "f4"), "zero length")])
def test_unusable_audio_is_named(tmp_path, samples, message):
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=rf"clip\.wav.*{message}"):
        decode(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such audio file"):
        decode(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(DataError, match=r"text\.wav: not readable"):
        decode(tmp_path / "text.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_wav_that_is_cut_off_is_refused_and_one_of_a_stream_is_not(subtype, tmp_path):
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 8_001).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, 16_000, format="WAV", subtype=subtype)
    whole = buffer.getvalue()
    place = whole.index(b"data") + 4
    assert len(decode(whole)) == 8_001
    for cut in (whole[:len(whole) // 2], whole[:-5]):
        (tmp_path / "cut.wav").write_bytes(cut)
        for source in (cut, tmp_path / "cut.wav"):
            with pytest.raises(DataError, match="cut off"):
                decode(source)
    for length in (0, 0xFFFFFFFF, 0x7FFFFFFF):  # of a pipe: what there is counts
        streamed = whole[:place] + length.to_bytes(4, "little") + whole[place + 4:]
        assert length == 0 or len(decode(streamed)) >= 8_001
    assert len(decode(whole + b"LIST\x04\0\0\0more")) == 8_001
