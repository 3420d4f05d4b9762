"""Causal attention inside the samples of packed rows, one sample after the other.

transformers makes a mask of a packed row, and torch's kernels compute what it hides: most of the
time of a small model, where a row has many samples (recipes/benchmarks/packed.py). For CPU only: on
an accelerator flash-attention can be told of the samples, and many small products are slow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdpa_of_samples"


def split_samples(language_model: nn.Module) -> None:
    """Let a transformers language model with ``sdpa`` take what :func:`of_samples` makes."""
    if language_model.config._attn_implementation == "sdpa":
        language_model.config._attn_implementation = _NAME


def sample_lengths(places: Tensor) -> list[int]:
    """Tokens of each sample, row by row; ``places`` ``(rows, length)``: of each token within its
    sample. A row's padding counts as one, which no target sees."""
    begins = (places.flatten() == 0).nonzero().squeeze(1)
    return torch.diff(begins, append=begins.new_tensor([places.numel()])).tolist()


def of_samples(language_model: nn.Module, places: Tensor | None) -> dict:
    """Arguments of the language model's ``forward`` for rows of several samples.

    ``places`` as :func:`sample_lengths` takes them; None, or rows of a single sample, or another
    device or kind of attention than :func:`split_samples` is for: no arguments.
    """
    if places is None or places.device.type != "cpu" \
            or language_model.config._attn_implementation != _NAME:
        return {}
    lengths = sample_lengths(places)
    if len(lengths) == len(places):
        return {}
    # transformers takes a mask of four axes as it is; it is not looked at
    return {"sample_lengths": lengths,
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
            attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
            sample_lengths: list[int] | None = None, **kwargs) -> tuple[Tensor, None]:
    """``(rows, heads, length, d)`` -> ``(rows, length, heads, d)``, as transformers has it."""
    if sample_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout,
                                      scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    samples = [part.transpose(0, 1).flatten(1, 2).split(sample_lengths, 1)
               for part in (query, repeat_kv(key, groups), repeat_kv(value, groups))]
    attended = [F.scaled_dot_product_attention(*(part[None] for part in sample), is_causal=True,
                                               dropout_p=dropout, scale=scaling)[0]
                for sample in zip(*samples, strict=True)]
    return torch.cat(attended, 1).transpose(0, 1).unflatten(0, (query.shape[0], -1)), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
