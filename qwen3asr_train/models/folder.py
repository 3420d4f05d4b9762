"""Checkpoint folders: what ``init_from`` names, and models under the names of transformers'
classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from qwen3asr_train.errors import UserError


@contextmanager
def opening(folder: str, *errors: type[Exception], field: str = "init_from") -> Iterator[None]:
    """UserError for a folder that is none, and for ``errors`` raised by loading it inside;
    ``field`` of the config named it."""
    local = Path(folder)
    if not local.is_dir() and (folder.count("/") != 1 or folder.startswith((".", "/"))):
        raise UserError(f"{field}={folder}: no such folder (a run's model is RUN/model)")
    if local.is_dir() and not (local / "config.json").is_file():
        hint = f"; did you mean {local / 'model'}?" if (local / "model").is_dir() else ""
        raise UserError(f"{field}={folder}: no config.json in it{hint}")
    try:
        yield
    except errors as error:
        reason = str(error).splitlines()[0] if local.is_dir() else \
            "no such folder here, and the hub does not know it or cannot be reached"
        raise UserError(f"{field}={folder}: {reason}") from error


def save_as(kind: type[PreTrainedModel], model: PreTrainedModel, folder: Path,
            state_dict: dict[str, Tensor] | None = None) -> None:
    """``save_pretrained`` of a subclass, as the ``kind`` that config.json shall name."""
    ours, model.__class__ = model.__class__, kind
    try:
        model.save_pretrained(folder, state_dict=state_dict)
    finally:
        model.__class__ = ours
