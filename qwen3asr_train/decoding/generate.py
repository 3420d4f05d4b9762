"""Greedy decoding of a batch, by transformers' ``generate``."""

import torch
from torch import Tensor

from qwen3asr_train.models.asr import Recogniser


@torch.inference_mode()
def generate(model: Recogniser, inputs: dict[str, Tensor], max_new_tokens: int,
             synced: bool = False) -> list[list[int]]:
    """New token ids for each clip, without special ends.

    ``inputs`` as :func:`qwen3asr_train.data.collate.collate` makes them ``with_prompts``. The audio
    is embedded once here; ``generate`` would keep it as a model input. ``synced``: keep stepping
    until every rank has finished, as ZeRO-3 needs.
    """
    embeddings = model.embed(inputs["prompt_ids"], model.encode_audio(inputs))
    output = model.generate(
        inputs_embeds=embeddings, attention_mask=inputs["prompt_mask"],
        max_new_tokens=max_new_tokens, do_sample=False, synced_gpus=synced)
    ends = set(model.generation_config.eos_token_id) | {model.generation_config.pad_token_id}
    return [[token for token in row if token not in ends] for row in output.tolist()]
