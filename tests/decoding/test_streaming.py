"""A stream of audio against the whole of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3ASREncoder, Qwen3ASREncoderConfig, Qwen3ASRFeatureExtractor

from qwen3asr_train.data import features
from qwen3asr_train.decoding.streaming import EncoderSession
from qwen3asr_train.errors import DataError
from qwen3asr_train.models.encoder import batch_windows


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return batch_windows(Qwen3ASREncoder(Qwen3ASREncoderConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        downsample_hidden_size=4, initializer_range=0.3))).eval()


def speech_like(samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    level = np.repeat(10 ** rng.uniform(-4, 0, samples // 4000 + 1), 4000)[:samples]
    return (0.3 * level * rng.standard_normal(samples)).astype(np.float32)


def stream(session: EncoderSession, audio: np.ndarray, cuts: list[int]) -> torch.Tensor:
    pieces = np.split(audio, sorted(min(cut, len(audio)) for cut in cuts))
    return torch.cat([*map(session.accept, pieces), session.finish()])


def offline(encoder, audio: np.ndarray, window: int) -> torch.Tensor:
    chunks, lengths = features.chunk(features.log_mel(audio, 100 * window))
    with torch.inference_mode():
        return encoder(chunks, chunk_lengths=lengths, clip_chunks=torch.tensor([len(chunks)]),
                       window_chunks=window).last_hidden_state


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 150_000), st.integers(1, 8),
       st.lists(st.integers(0, 150_000), max_size=30), st.lists(st.integers(0, 150_000),
                                                                max_size=30))
def test_any_cut_gives_the_offline_tokens_and_the_same_bits(encoder, samples, window, cuts, others):
    audio = speech_like(samples, samples)
    found = stream(EncoderSession(encoder, window), audio, cuts)
    torch.testing.assert_close(found, offline(encoder, audio, window), atol=1e-5, rtol=1e-5)
    assert torch.equal(found, stream(EncoderSession(encoder, window), audio, others))


def test_tokens_come_as_soon_as_their_window_is_there(encoder):
    audio, session = speech_like(80_000, 3), EncoderSession(encoder, 2)
    arrived = np.cumsum([len(session.accept(piece)) for piece in np.split(audio, 500)])
    # the second window's last frame reaches half a frame beyond its 4 s less one hop
    last_sample = 4 * 16_000 - features.HOP + features.N_FFT // 2
    assert arrived[last_sample // 160] == 52 and arrived[last_sample // 160 - 1] == 26
    assert len(session.finish()) == 13


def test_what_it_keeps_does_not_grow(encoder):
    session = EncoderSession(encoder, 1)
    kept = []
    for second in range(40):
        session.accept(speech_like(16_000, second))
        kept.append(session._mel._pending.untyped_storage().nbytes())
    assert max(kept[1:]) == min(kept[1:]) < 4 * 17_000  # bytes of about a window


@settings(max_examples=30, deadline=None)
@given(st.integers(8000, 60_000), st.integers(1, 4))
def test_features_are_transformers_when_the_start_is_loudest(samples, window):
    audio = speech_like(samples, samples)
    audio[2000:3000] = 0.9 * np.sign(audio[2000:3000])
    theirs = Qwen3ASRFeatureExtractor()(audio, sampling_rate=16_000, padding=True,
                                        return_attention_mask=True)
    expected = theirs["input_features"][0, :, theirs["attention_mask"][0].bool()].T
    torch.testing.assert_close(features.log_mel(audio, 100 * window), expected, atol=1e-4, rtol=0)


def test_a_floor_knows_nothing_of_what_is_to_come():
    audio = speech_like(64_000, 1)
    quiet_start = np.concatenate([1e-4 * audio[:32_000], audio[32_000:]])
    before = features.log_mel(quiet_start[:32_000], 100)
    assert torch.equal(features.log_mel(quiet_start, 100)[:198], before[:198])
    assert not torch.allclose(features.log_mel(quiet_start)[:198], before[:198], atol=1e-3)


@pytest.mark.parametrize("piece", [np.array([0.0, np.nan]), np.zeros((2, 5))])
def test_bad_pieces_are_refused(encoder, piece):
    with pytest.raises(DataError, match="finite samples of one channel"):
        EncoderSession(encoder, 1).accept(piece)


def test_a_finished_session_takes_no_more(encoder):
    session = EncoderSession(encoder, 1)
    assert len(session.finish()) == features.audio_tokens(50)  # silence of the least length
    with pytest.raises(ValueError, match="finished"):
        session.accept(np.zeros(5))
