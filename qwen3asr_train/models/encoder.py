"""The released audio encoder with its attention windows batched.

transformers' ``Qwen3ASREncoder`` pads every clip to the longest before its convolutions and,
outside flash-attention, attends window by window in a Python loop. :class:`WindowedEncoder` keeps
its modules and weights and replaces the two: it takes the one-second chunks of all clips packed one
after the other, a few at a time through the convolutions, and attends to all windows of a batch at
once. Results are the same numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_asr.modeling_qwen3_asr import (
    Qwen3ASRAudioAttention,
    Qwen3ASREncoder,
)

from qwen3asr_train.models.strided_winograd import three_convolutions

SLICE_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""Size of a slice's largest activation. On CPU, glibc maps blocks above 32 MiB anew each time, and
their page faults took a quarter of the convolutions' time."""

WINOGRAD_CHANNELS = 256
"""Channels from which on :func:`three_convolutions` is faster on CPU (192 take as long)."""


@dataclass
class Windows:
    """How packed tokens ``(tokens,)`` lie in attention windows.

    ``gather`` ``(windows, longest)``: index of the token at each place of each window (0 at padded
    places). ``mask`` ``(windows, 1, 1, longest)``: True at real places; None when all are.
    ``scatter`` ``(tokens,)``: flat place of each token. ``cu_seqlens``, ``longest``: the same for
    variable-length kernels.
    """

    gather: Tensor
    mask: Tensor | None
    scatter: Tensor
    cu_seqlens: Tensor
    longest: int


def tokens_of_chunks(chunk_lengths: Tensor) -> Tensor:
    """Mel frames per chunk ``(chunks,)`` -> tokens after three stride-2 convolutions."""
    return (chunk_lengths + 7) // 8


def plan_windows(chunk_lengths: Tensor, clip_chunks: Tensor, window_chunks: int) -> Windows:
    """Windows of at most ``window_chunks`` consecutive chunks of one clip.

    ``chunk_lengths`` ``(chunks,)`` mel frames; ``clip_chunks`` ``(clips,)`` chunks of each clip.
    """
    device = chunk_lengths.device
    tokens = tokens_of_chunks(chunk_lengths)
    chunk_clip = torch.repeat_interleave(torch.arange(len(clip_chunks), device=device), clip_chunks)
    first_chunk = torch.cumsum(clip_chunks, 0) - clip_chunks
    place = torch.arange(len(tokens), device=device) - first_chunk[chunk_clip]
    clip_windows = (clip_chunks + window_chunks - 1) // window_chunks
    first_window = torch.cumsum(clip_windows, 0) - clip_windows
    window = first_window[chunk_clip] + place // window_chunks
    lengths = torch.zeros(int(clip_windows.sum()), dtype=torch.long, device=device)
    lengths.index_add_(0, window, tokens)
    longest = int(lengths.max())
    ends = torch.cumsum(lengths, 0)
    place = torch.arange(longest, device=device)
    mask = place < lengths[:, None]
    gather = torch.where(mask, (ends - lengths)[:, None] + place, 0)
    return Windows(gather, None if bool(mask.all()) else mask[:, None, None, :],
                   mask.flatten().nonzero().squeeze(-1), F.pad(ends, (1, 0)).to(torch.int32),
                   longest)


class WindowedAttention(Qwen3ASRAudioAttention):
    """Self-attention inside windows, all windows of the batch in one call."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, *, windows: Windows | None = None,
                **kwargs) -> Tensor:
        """``(tokens, d_model)`` -> the same shape. Flash-attention takes the parent's way."""
        if windows is None or "flash" in (self.config._attn_implementation or ""):
            return super().forward(hidden_states, cu_seqlens, **kwargs)

        def split(projected: Tensor) -> Tensor:  # -> (windows, heads, longest, head_dim)
            # index_select: its backward is much faster on CPU than that of indexing
            places = projected.index_select(0, windows.gather.flatten())
            return places.view(*windows.gather.shape, self.num_heads, -1).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(self.q_proj(hidden_states)), split(self.k_proj(hidden_states)),
            split(self.v_proj(hidden_states)), attn_mask=windows.mask, scale=self.scaling,
            dropout_p=self.attention_dropout if self.training else 0.0)
        packed = attended.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, windows.scatter)
        return self.out_proj(packed)


class SharedConv2d(nn.Conv2d):
    """A convolution that hands out its weights, for all slices of a batch.

    Copies of them: ZeRO-3 has parameters in memory only while their module runs.
    """

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weight, channels last, and bias."""
        return self.weight.clone(memory_format=torch.channels_last), self.bias.clone()


class ConvolutionStem(nn.Conv2d):
    """The encoder's first convolution, which runs all three, slice by slice.

    All slices in one call, since ranks have different numbers of them and under ZeRO-3 must all run
    the same modules.
    """

    def forward(self, chunks: Tensor, second: tuple[Tensor, Tensor], third: tuple[Tensor, Tensor],
                size: int, kept: int) -> Tensor:
        """``(chunks, mel, frames)`` -> ``(chunks, tokens, channels * mel / 8)``.

        ``second``, ``third``: weight and bias; ``size``: chunks in a slice; ``kept``: chunks
        after which a slice's first activations are computed again in the backward pass.
        """
        chunks = chunks.to(self.weight.dtype)
        if _fewer_multiplications_pay(chunks, second[0]):
            hidden = three_convolutions(chunks, (self.weight.clone(), self.bias.clone()), second,
                                        third, size, kept)
            return F.gelu(hidden).permute(0, 2, 3, 1).flatten(2)
        slices = self._slices(chunks.split(size), second, third, kept)
        if torch.is_grad_enabled():
            return torch.cat(list(slices))
        first = next(slices)  # written to their place at once: no second copy, no holes in the heap
        tokens = first.new_empty(len(chunks), *first.shape[1:])
        for place, part in zip(tokens.split(size), chain([first], slices), strict=True):
            place.copy_(part)
        return tokens

    def _slices(self, chunks: tuple[Tensor, ...], second: tuple[Tensor, Tensor],
                third: tuple[Tensor, Tensor], kept: int) -> Iterator[Tensor]:
        """Tokens of each slice."""
        first, done = (self.weight.flatten(1).clone(), self.bias.clone()), 0
        for mel in chunks:
            done += len(mel)
            if done <= kept:
                hidden = _first_two(mel, *first, *second)
            else:  # stops at the second convolution's input: that one is not computed again
                hidden = checkpoint(_first_two, mel, *first, *second, use_reentrant=False,
                                    preserve_rng_state=False)
            hidden = F.gelu(F.conv2d(F.gelu(hidden), *third, stride=2, padding=1))
            yield hidden.permute(0, 3, 1, 2).flatten(2)


def _fewer_multiplications_pay(chunks: Tensor, weight: Tensor) -> bool:
    """Whether :func:`three_convolutions` is faster: on CPU, in float32, for many channels."""
    return (chunks.device.type == "cpu" and chunks.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu") and not chunks.requires_grad
            and min(weight.shape[:2]) >= WINOGRAD_CHANNELS)


def _first_two(mel: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
               ) -> Tensor:
    """Two convolutions: ``(chunks, mel, frames)`` -> ``(chunks, channels, mel / 4, frames / 4)``.

    The first one has a single input channel: as a matrix product over its patches it is faster on
    CPU, and comes out channels last, as suits the others.
    """
    patches = F.pad(mel, (1, 1, 1, 1)).unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)
    # (9, channels) row by row: torch then takes the gradient as patches.T @ g, here ten times as
    # fast as g.T @ patches
    hidden = torch.addmm(bias1, patches.flatten(0, 2), weight1.T.contiguous())
    hidden = hidden.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)
    return F.conv2d(F.gelu(hidden), weight2, bias2, stride=2, padding=1)


class WindowedEncoder(Qwen3ASREncoder):
    """``Qwen3ASREncoder`` over packed chunks; made from one by :func:`batch_windows`.

    ``conv_chunks``: chunks that go through the convolutions at a time; None: as many as keep the
    largest activation (6 MB a chunk for 480 channels in float32) within ``SLICE_BYTES``.
    ``conv_kept``: chunks of a batch whose activations are all kept for the backward pass. Of
    further ones, and of all under activation checkpointing, what the first convolution makes (two
    thirds of the memory or more, a twentieth of the time) is computed again.
    """

    conv_chunks: int | None = None
    conv_kept: int = 256

    def forward(self, input_features: Tensor, input_features_mask: Tensor | None = None, *,
                chunk_lengths: Tensor | None = None, clip_chunks: Tensor | None = None,
                window_chunks: int | None = None, **kwargs) -> BaseModelOutputWithPooling:
        """Packed tokens ``(tokens, d_model)`` of all clips, one after the other.

        Either packed: ``input_features`` ``(chunks, mel_bins, 2 * n_window)`` with
        ``chunk_lengths`` ``(chunks,)`` and ``clip_chunks`` ``(clips,)``; or as transformers has it:
        ``(clips, mel_bins, frames)`` with ``input_features_mask`` ``(clips, frames)``.
        ``window_chunks``: attention window in chunks, by default ``n_window_infer`` of the config.
        """
        if chunk_lengths is None:
            input_features, chunk_lengths, clip_chunks = self._pack(input_features,
                                                                    input_features_mask)
        if window_chunks is None:
            window_chunks = self.n_window_infer // (2 * self.n_window)
        windows = plan_windows(chunk_lengths, clip_chunks, window_chunks)
        hidden_states = self._embed(input_features, chunk_lengths)
        for layer in self.layers:
            hidden_states = layer(hidden_states, windows.cu_seqlens, windows=windows,
                                  max_seqlen=windows.longest)[0]
        return BaseModelOutputWithPooling(last_hidden_state=self.ln_post(hidden_states))

    def _embed(self, chunks: Tensor, chunk_lengths: Tensor) -> Tensor:
        """Convolutions and positions: ``(chunks, mel, frames)`` -> packed ``(tokens, d_model)``."""
        kept = 0 if self.gradient_checkpointing and self.training else self.conv_kept
        hidden = self.conv_out(self.conv2d1(chunks, self.conv2d2(), self.conv2d3(),
                                            self.conv_chunks or self._slice_size(chunks), kept))
        steps = hidden.shape[1]
        hidden = hidden + self.positional_embedding(steps).to(hidden.dtype)
        valid = torch.arange(steps, device=hidden.device) < tokens_of_chunks(chunk_lengths)[:, None]
        return hidden.flatten(0, 1).index_select(0, valid.flatten().nonzero().squeeze(-1))

    def _slice_size(self, chunks: Tensor) -> int:
        """Chunks whose first convolution's output is within ``SLICE_BYTES``."""
        output = chunks[0].numel() // 4 * self.conv2d1.out_channels * chunks.element_size()
        return max(1, SLICE_BYTES.get(chunks.device.type, SLICE_BYTES["cuda"]) // output)

    def _pack(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """transformers' padded batch -> packed chunks without the empty ones."""
        frames = 2 * self.n_window
        lengths = mask.long().unflatten(1, (-1, frames)).sum(-1)  # (clips, chunks)
        chunks = features.unflatten(2, (-1, frames)).transpose(1, 2)  # (clips, chunks, mel, frames)
        return chunks[lengths > 0], lengths[lengths > 0], (lengths > 0).sum(1)


def batch_windows(encoder: Qwen3ASREncoder) -> WindowedEncoder:
    """Turn an encoder into a :class:`WindowedEncoder` in place; weights and names stay."""
    encoder.__class__ = WindowedEncoder
    encoder.conv2d1.__class__ = ConvolutionStem
    encoder.conv2d2.__class__ = encoder.conv2d3.__class__ = SharedConv2d
    for layer in encoder.layers:
        layer.self_attn.__class__ = WindowedAttention
    return encoder
