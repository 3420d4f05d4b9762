"""Samples to one batch of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qwen3asr_train.data.features import CHUNK_FRAMES, MEL_BINS, chunk

IGNORE = -100


class Example(NamedTuple):
    """One sample ready for a batch: features ``(frames, 128)``, prompt and target ids. Text alone
    has no frames. ``written``: what stands before the next token in place of the target, as long.
    ``own``: for each token of the target, a number that chooses the model's own to stand there, or
    one below 0.

    A tuple: Lightning's DeepSpeed strategy walks through batches and refuses frozen dataclasses.
    """

    features: Tensor
    prompt: list[int]
    target: list[int]
    written: list[int] | None = None
    own: list[float] | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and target."""
        return len(self.prompt) + len(self.target)


def collate(examples: list[Example], pad_id: int, rows: list[list[int]] | None = None, *,
            with_prompts: bool = False) -> dict[str, Tensor]:
    """Examples -> the dict of tensors that goes to the model.

    ``input_ids``, ``labels`` ``(rows, length)`` padded on the right, labels -100 outside the
    target; ``input_features`` ``(chunks, 128, 100)``, ``chunk_lengths`` ``(chunks,)`` and
    ``clip_chunks`` ``(clips,)`` as the encoder takes them. ``rows``: which examples share a row;
    ``position_ids`` ``(rows, length)`` then begin at 0 for each of them, and for the padding. By
    default each has its own row, in order. ``own_tokens`` ``(rows, length)``, where any example has
    ``own``: -1 wherever there is none. ``with_prompts`` adds what generation starts from:
    ``prompt_ids``, ``prompt_mask`` ``(clips, prompt length)``, padded on the left. Without any
    audio there is a silent clip beyond the last, whose tokens are nowhere: the encoder runs on
    every rank.
    """
    lines = [[examples[i] for i in row] for row in rows] if rows else [[e] for e in examples]
    packed = [chunk(example.features) for line in lines for example in line]
    if not any(len(lengths) for _, lengths in packed):
        packed.append(chunk(torch.zeros(CHUNK_FRAMES, MEL_BINS)))
    ids, is_token = _pad([[i for e in line for i in e.prompt + (e.written or e.target)]
                           for line in lines], pad_id)
    labels, own = np.full_like(ids, IGNORE), np.full(ids.shape, -1.0, np.float32)
    positions = np.cumsum(is_token == 0, axis=1) - 1
    for row, line in enumerate(lines):
        begin = 0
        for example in line:
            answer = begin + len(example.prompt)
            end = answer + len(example.target)
            labels[row, answer:end] = example.target
            own[row, answer:end] = -1.0 if example.own is None else example.own
            positions[row, begin:end] = np.arange(end - begin)
            begin = end
    batch = {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "input_features": torch.cat([chunks for chunks, _ in packed]),
        "chunk_lengths": torch.cat([lengths for _, lengths in packed]),
        "clip_chunks": torch.tensor([len(lengths) for _, lengths in packed]),
    }
    if any(example.own is not None for example in examples):
        batch["own_tokens"] = torch.from_numpy(own)
    if rows:
        batch["position_ids"] = torch.from_numpy(positions)
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


def padding_share(sizes: Sequence[int], rows: Sequence[Sequence[int]]) -> float:
    """Share of the positions of a batch that are padding: ``sizes`` of its examples in ``rows``."""
    longest = max(sum(sizes[i] for i in row) for row in rows)
    return 1.0 - sum(sizes) / (longest * len(rows))
