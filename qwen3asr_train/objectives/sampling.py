"""Tokens drawn from a distribution over a large vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Tokens that are summed up at a time."""


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """A token of each row of ``logits`` ``(rows, vocabulary)`` by the inverse of its distribution
    function at ``uniforms`` ``(rows,)`` in [0, 1), and its log-probability.

    The function is summed up block by block, and token by token in one block only: 150,000 single
    terms would take float64 to sum to 1.
    """
    scaled = logits.float() / temperature
    greatest = scaled.amax(-1, keepdim=True)
    weights = (scaled - greatest).exp_()
    blocks = F.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(-1).double().cumsum(-1)  # (rows, blocks)
    place = uniforms.double() * ends[:, -1]
    block = torch.searchsorted(ends, place[:, None], right=True)[:, 0].clamp(max=ends.shape[1] - 1)
    rows = torch.arange(len(logits), device=logits.device)
    before = torch.where(block > 0, ends[rows, block - 1], 0)
    within = blocks[rows, block].double().cumsum(-1)
    inner = torch.searchsorted(within, (place - before)[:, None], right=True)[:, 0]
    # where rounding put the place behind a block's last weight, the last token that has any
    last = (within < within[:, -1:]).sum(-1)
    tokens = block * BLOCK + torch.minimum(inner, last)
    return tokens, scaled[rows, tokens] - greatest[:, 0] - ends[:, -1].log().float()


def chunked_draw(hidden: Tensor, weight: Tensor, uniforms: Tensor, chunk_size: int = 256) -> Tensor:
    """:func:`draw` from the logits ``hidden @ weight.T``, of which no more than ``chunk_size`` rows
    exist at a time: tokens ``(rows,)``."""
    parts = [draw(part @ weight.T, numbers)[0] for part, numbers in zip(
        hidden.split(chunk_size), uniforms.split(chunk_size), strict=True)]
    return torch.cat(parts)
