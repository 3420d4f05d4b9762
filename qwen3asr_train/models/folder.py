"""Checkpoint folders under the names of transformers' classes."""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel


def save_as(kind: type[PreTrainedModel], model: PreTrainedModel, folder: Path,
            state_dict: dict[str, Tensor] | None = None) -> None:
    """``save_pretrained`` of a subclass, as the ``kind`` that config.json shall name."""
    ours, model.__class__ = model.__class__, kind
    try:
        model.save_pretrained(folder, state_dict=state_dict)
    finally:
        model.__class__ = ours
