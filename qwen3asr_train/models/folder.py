"""Checkpoint folders: what ``init_from`` names, and models under the names of transformers'
classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from qwen3asr_train.errors import UserError

ORIGINAL = "thinker_config"
"""In config.json of the layout that Qwen3-ASR was published in first. transformers reads it as one
without sizes, and would begin with random weights of its default ones."""


@contextmanager
def opening(folder: str, field: str = "init_from") -> Iterator[None]:
    """UserError for a folder that is none or has another layout, and for what OSError or ValueError
    loading it inside raises; ``field`` of the config named it, or none did ("")."""
    local, named = Path(folder), f"{field}={folder}" if field else folder
    if not local.is_dir() and (folder.count("/") != 1 or folder.startswith((".", "/", "~"))):
        raise UserError(f"{named}: no such folder (a run's model is RUN/model)")
    if local.is_dir() and not (local / "config.json").is_file():
        hint = f"; did you mean {local / 'model'}?" if (local / "model").is_dir() else ""
        raise UserError(f"{named}: no config.json in it{hint}")
    try:
        config = PreTrainedConfig.get_config_dict(folder)[0]
        if config.get("model_type") == "qwen3_asr" and ORIGINAL in config:
            raise UserError(f"{named}: weights for PyPI's qwen-asr, in another layout; "
                            "take the repository whose name ends in -hf")
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if local.is_dir() else \
            "no such folder here, and the hub does not know it or cannot be reached"
        raise UserError(f"{named}: {reason}") from error


def load_whole(kind: type[PreTrainedModel], folder: str, field: str = "init_from", **options
               ) -> PreTrainedModel:
    """``kind.from_pretrained(folder)`` in float32. UserError for a checkpoint that lacks some of
    the weights: transformers would go on with random ones and a warning."""
    model, loaded = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                         **options)
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"{field}={folder}: {len(missing)} weights are missing, first {missing[0]}")
    return model


def save_as(kind: type[PreTrainedModel], model: PreTrainedModel, folder: Path,
            state_dict: dict[str, Tensor] | None = None) -> None:
    """``save_pretrained`` of a subclass, as the ``kind`` that config.json shall name."""
    ours, model.__class__ = model.__class__, kind
    try:
        model.save_pretrained(folder, state_dict=state_dict)
    finally:
        model.__class__ = ours
