"""The windowed encoder against transformers' own."""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3ASREncoder, Qwen3ASREncoderConfig

from qwen3asr_train.models import encoder as encoder_module
from qwen3asr_train.models.encoder import batch_windows, plan_windows


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = Qwen3ASREncoderConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2,
                                   encoder_ffn_dim=24, downsample_hidden_size=4,
                                   initializer_range=0.3)
    reference = Qwen3ASREncoder(config)
    return reference, batch_windows(copy.deepcopy(reference))


def padded(frames: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features and mask in transformers' layout."""
    length = -(-max(frames) // 100) * 100
    mask = torch.arange(length) < torch.tensor(frames)[:, None]
    generator = torch.Generator().manual_seed(sum(frames))
    return torch.randn(len(frames), 128, length, generator=generator) * mask[:, None], mask.long()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 1700), min_size=1, max_size=5), st.integers(1, 8),
       st.sampled_from([None, 1, 3]), st.sampled_from(["sdpa", "eager"]),
       st.sampled_from([1, 10**6]))
def test_equal_to_transformers_for_every_window_and_ragged_batch(pair, frames, window, conv_chunks,
                                                                 attention, winograd_channels):
    with mock.patch.object(encoder_module, "WINOGRAD_CHANNELS", winograd_channels):
        check_equal_to_transformers(pair, frames, window, conv_chunks, attention)


def check_equal_to_transformers(pair, frames, window, conv_chunks, attention):
    reference, ours = pair
    ours.conv_chunks = conv_chunks
    reference.set_attn_implementation(attention)
    if max(frames) < 100:
        window = 8  # transformers derives the window from the longest chunk of the batch
    features, mask = padded(frames)
    reference.n_window_infer = 100 * window
    expected = reference(features, mask).last_hidden_state
    found = ours(features, mask, window_chunks=window).last_hidden_state
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    # the packed layout of our batches gives the same
    features, lengths, clips = ours._pack(features, mask)
    packed = ours(features, chunk_lengths=lengths, clip_chunks=clips, window_chunks=window)
    assert torch.equal(packed.last_hidden_state, found)


@pytest.fixture(params=[1, 10**6], ids=["fewer-multiplications", "convolutions"])
def fewer_multiplications(request, monkeypatch) -> bool:
    """Both ways of the convolutions on CPU."""
    monkeypatch.setattr(encoder_module, "WINOGRAD_CHANNELS", request.param)
    return request.param == 1


def test_gradients_equal_transformers(pair, fewer_multiplications):
    reference, ours = pair
    features, mask = padded([1234, 57, 800, 301])
    reference.n_window_infer = 300
    for model, options in ((reference, {}), (ours, {"window_chunks": 3})):
        model.zero_grad()
        model(features, mask, **options).last_hidden_state.square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-3, rtol=1e-3,
                                   msg=lambda text, name=name: f"{name}: {text}")


def results(encoder, features, lengths, clips) -> dict[str, torch.Tensor]:
    """Tokens and gradients."""
    encoder.zero_grad()
    tokens = encoder(features, chunk_lengths=lengths, clip_chunks=clips).last_hidden_state
    tokens.square().cos().sum().backward()
    return {"tokens": tokens.detach()} | {name: p.grad.clone()
                                          for name, p in encoder.named_parameters()}


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten.convolution.default
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("conv_kept", "checkpointing"), [(256, False), (7, False), (256, True)],
                         ids=["kept", "partly-kept", "checkpointing"])
def test_slices_change_nothing(pair, conv_kept, checkpointing, fewer_multiplications):
    encoder = copy.deepcopy(pair[1]).train()
    batch = encoder._pack(*padded([1234, 57, 301]))  # 18 chunks
    encoder.conv_chunks, encoder.conv_kept = 10**6, 10**6
    expected = results(encoder, *batch)
    encoder.conv_chunks, encoder.conv_kept = 3, conv_kept
    if checkpointing:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
    with Convolutions() as convolutions:
        found = results(encoder, *batch)
    # six slices; only the first convolution is made again
    assert convolutions.count == (0 if fewer_multiplications else 2 * 6)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4,
                                   msg=lambda text, name=name: f"{name}: {text}")


def test_recomputed_in_bfloat16(pair, fewer_multiplications):
    encoder = copy.deepcopy(pair[1])
    batch = encoder._pack(*padded([850, 120]))
    encoder.conv_chunks, encoder.conv_kept = 4, 4
    expected = results(encoder, *batch)["tokens"]
    with torch.autocast("cpu", torch.bfloat16):
        found = results(encoder, *batch)
    assert (found.pop("tokens").float() - expected).abs().mean() < 0.02
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_inference_equals_training(pair, fewer_multiplications):
    encoder = copy.deepcopy(pair[1])
    encoder.conv_chunks = 4
    batch = encoder._pack(*padded([850, 120]))
    with torch.no_grad():
        found = encoder(batch[0], chunk_lengths=batch[1], clip_chunks=batch[2]).last_hidden_state
    torch.testing.assert_close(found, results(encoder, *batch)["tokens"])


def test_a_clip_does_not_depend_on_its_neighbours(pair, fewer_multiplications):
    ours = pair[1]
    features, mask = padded([950, 400, 120])
    together = ours(features, mask).last_hidden_state.split([124, 52, 16])
    for i, frames in enumerate((950, 400, 120)):
        length = -(-frames // 100) * 100
        alone = ours(features[i:i + 1, :, :length], mask[i:i + 1, :length]).last_hidden_state
        torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=1e-5)


def test_windows_by_hand():
    # one clip of 2 full chunks and 8 frames, one of 1 chunk, windows of 2 chunks
    windows = plan_windows(torch.tensor([100, 100, 8, 100]), torch.tensor([3, 1]), 2)
    assert windows.cu_seqlens.tolist() == [0, 26, 27, 40]
    assert windows.mask.sum((1, 2, 3)).tolist() == [26, 1, 13]
    assert windows.gather[1, 0] == 26 and windows.gather[2, :13].tolist() == list(range(27, 40))
