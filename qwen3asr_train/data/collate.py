"""Samples to one batch of tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qwen3asr_train.data.features import CHUNK_FRAMES, MEL_BINS, chunk

IGNORE = -100


class Example(NamedTuple):
    """One sample ready for a batch: features ``(frames, 128)``, prompt and target ids. Text alone
    has no frames.

    A tuple: Lightning's DeepSpeed strategy walks through batches and refuses frozen dataclasses.
    """

    features: Tensor
    prompt: list[int]
    target: list[int]


def collate(examples: list[Example], pad_id: int, *, with_prompts: bool = False
            ) -> dict[str, Tensor]:
    """Examples -> the dict of tensors that goes to the model.

    ``input_ids``, ``labels`` ``(clips, length)`` padded on the right, labels -100 outside the
    target; ``input_features`` ``(chunks, 128, 100)``, ``chunk_lengths`` ``(chunks,)`` and
    ``clip_chunks`` ``(clips,)`` as the encoder takes them. ``with_prompts`` adds what generation
    starts from: ``prompt_ids``, ``prompt_mask`` ``(clips, prompt length)``, padded on the left.
    Without any audio there is a silent clip beyond the last, whose tokens are nowhere: the encoder
    runs on every rank.
    """
    packed = [chunk(example.features) for example in examples]
    if not any(len(lengths) for _, lengths in packed):
        packed.append(chunk(torch.zeros(CHUNK_FRAMES, MEL_BINS)))
    ids, _ = _pad([example.prompt + example.target for example in examples], pad_id)
    labels = np.full_like(ids, IGNORE)
    for row, example in zip(labels, examples, strict=True):
        start = len(example.prompt)
        row[start:start + len(example.target)] = example.target
    batch = {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "input_features": torch.cat([chunks for chunks, _ in packed]),
        "chunk_lengths": torch.cat([lengths for _, lengths in packed]),
        "clip_chunks": torch.tensor([len(lengths) for _, lengths in packed]),
    }
    if with_prompts:
        ids, mask = _pad([example.prompt for example in examples], pad_id, left=True)
        batch |= {"prompt_ids": torch.from_numpy(ids), "prompt_mask": torch.from_numpy(mask)}
    return batch


def _pad(rows: list[list[int]], pad_id: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids and their mask, int64 ``(rows, longest)``."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def padding_share(examples: list[Example]) -> float:
    """Share of a training batch's token positions that are padding."""
    lengths = [len(example.prompt) + len(example.target) for example in examples]
    return 1.0 - sum(lengths) / (max(lengths) * len(lengths))

