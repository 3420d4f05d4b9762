"""Greedy decoding of a batch with any of our recognisers."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase, Qwen3ASRProcessor

from qwen3asr_train.data.prompts import DecoderPrompts, PromptBuilder
from qwen3asr_train.models import asr, aut

Model = asr.Recogniser | aut.AuT


@dataclass(frozen=True)
class Generated:
    """New token ids of one clip without its end; ``confidence``: the geometric mean of their
    probabilities, the end included."""

    tokens: list[int]
    confidence: float


def load(folder: str, attn_implementation: str = "sdpa") -> tuple[Model, Qwen3ASRProcessor]:
    """A recogniser of any kind that the stages write, and its processor."""
    if (Path(folder) / "config.json").is_file() and \
            AutoConfig.from_pretrained(folder).model_type == "qwen3_asr_encoder":
        return aut.load(folder, attn_implementation)
    return asr.load(folder, attn_implementation)


def autocast(device: str) -> torch.autocast:
    """bfloat16 where a GPU has it."""
    return torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device))


def has_bfloat16(device: str) -> bool:
    """Whether answers are computed in bfloat16 there, and not in float32."""
    return device == "cuda" and torch.cuda.is_bf16_supported()


def prompts_for(model: Model, tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    """How a sample's ids look to ``model``."""
    return (DecoderPrompts if isinstance(model, aut.AuT) else PromptBuilder)(tokenizer)


@torch.inference_mode()
def generate(model: Model, inputs: dict[str, Tensor], max_new_tokens: int,
             synced: bool = False) -> list[Generated]:
    """What ``model`` answers for each clip.

    ``inputs`` as :func:`qwen3asr_train.data.collate.collate` makes them ``with_prompts``.
    ``synced``: keep stepping until every rank has finished, as ZeRO-3 needs.
    """
    tokens, scores = model.greedy(inputs, max_new_tokens, synced)
    return trim(tokens, scores, ends_of(model))


def ends_of(model: Model) -> set[int]:
    """Ids after which nothing more is said, and padding."""
    if isinstance(model, aut.AuT):
        return set(model.end_ids)
    return {*model.generation_config.eos_token_id, model.generation_config.pad_token_id}


def trim(tokens: Tensor, scores: Tensor, ends: set[int]) -> list[Generated]:
    """Ids and log-probabilities ``(clips, new)`` -> each clip's up to its end."""
    found = []
    for row, logs in zip(tokens.tolist(), scores.tolist(), strict=True):
        length = next((i for i, token in enumerate(row) if token in ends), len(row))
        spoken = logs[:length + 1]
        found.append(Generated(row[:length], math.exp(sum(spoken) / len(spoken))))
    return found
