"""A recogniser's own tokens in what it goes on from: scheduled sampling in two passes.

In training the next token is told behind right ones, when answering behind its own. A first pass,
without gradients, draws tokens behind right ones; these stand in place of some of them in the
second pass, whose targets stay the right ones (Bengio et al. 2015; for Transformers, Mihaylova and
Martins 2019, Duckworth et al. 2019).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwen3asr_train.models.asr import Recogniser


def with_own_tokens(model: "Recogniser", batch: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """``batch["input_ids"]`` ``(rows, length)`` with drawn tokens in place of some targets.

    ``batch["own_tokens"]`` ``(rows, length)``: at these targets a number in [0, 1) that chooses a
    token of the model's distribution, elsewhere one below 0. A drawn control token is not taken.
    ``embeddings`` ``(rows, length, d)``: those of what is there now.
    """
    config, ids = model.config, batch["input_ids"]
    control = min(*config.eos_token_id, config.pad_token_id, config.audio_token_id,
                  config.asr_text_token_id)
    uniforms = batch["own_tokens"][:, 1:]
    is_own = uniforms >= 0
    with torch.no_grad():
        hidden = model.hidden(batch, embeddings)
        drawn = model.lm_head(hidden[:, :-1][is_own], uniforms=uniforms[is_own])
    written = ids[:, 1:].clone()
    written[is_own] = torch.where(drawn < control, drawn, written[is_own])
    return torch.cat([ids[:, :1], written], 1)
