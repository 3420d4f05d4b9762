"""Log-mel features against transformers' extractor."""

import numpy as np
import pytest
import torch
from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from qwen3asr_train.data import features


def reference(waveform):
    found = Qwen3ASRFeatureExtractor()(waveform, sampling_rate=16_000, padding=True,
                                       return_attention_mask=True)
    return found["input_features"][0, :, found["attention_mask"][0].bool()].T


@pytest.mark.parametrize("samples", [1, 399, 8000, 8001, 8159, 16_000, 31_987, 160_080])
def test_equal_to_transformers_for_a_clip_on_its_own(samples):
    rng = np.random.default_rng(samples)
    waveform = (rng.standard_normal(samples) * rng.uniform(0, 0.5, samples)).astype(np.float32)
    expected, found = reference(waveform), features.log_mel(waveform)
    assert found.shape == expected.shape == (features.mel_frames(samples), 128)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_silence_is_finite():
    assert torch.isfinite(features.log_mel(np.zeros(16_000, np.float32))).all()


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 99, 100, 101, 199, 200, 256, 1000])
def test_token_count_is_the_processors(frames):
    expected = Qwen3ASRProcessor._get_audio_token_length(None, torch.tensor([frames]))[0]
    # the released formula counts nothing for an empty rest, and so does ours
    assert features.audio_tokens(frames) == expected


def test_chunks_hold_the_features():
    mel = torch.randn(234, 128)
    chunks, lengths = features.chunk(mel)
    assert chunks.shape == (3, 128, 100) and lengths.tolist() == [100, 100, 34]
    torch.testing.assert_close(chunks.transpose(1, 2).reshape(300, 128)[:234], mel)
    assert not chunks[2, :, 34:].any()
