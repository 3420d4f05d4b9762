"""Checkpoint folders: what ``init_from`` names, and models under the names of transformers'
classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3ASRProcessor,
)

from qwen3asr_train.errors import UserError
from qwen3asr_train.models import original


@contextmanager
def opening(folder: str, field: str = "init_from") -> Iterator[None]:
    """UserError for a folder that is none, and for what OSError or ValueError loading it inside
    raises; ``field`` of the config named it, or none did ("")."""
    local, named = Path(folder), f"{field}={folder}" if field else folder
    if not local.is_dir() and (folder.count("/") != 1 or folder.startswith((".", "/", "~"))):
        raise UserError(f"{named}: no such folder (a run's model is RUN/model)")
    if local.is_dir() and not (local / "config.json").is_file():
        hint = f"; did you mean {local / 'model'}?" if (local / "model").is_dir() else ""
        raise UserError(f"{named}: no config.json in it{hint}")
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if local.is_dir() else \
            "no such folder here, and the hub does not know it or cannot be reached"
        raise UserError(f"{named}: {reason}") from error


_NO_RECOGNISERS = {
    "Qwen3ASREncoder": "an AuT of stage=aut, no recogniser; init_from_encoder= takes its encoder",
    "Qwen3ASRForTokenClassification": "a forced aligner of stage=aligner, no recogniser"}
"""Architecture in config.json -> what to say where a recogniser is wanted."""


def read_config(folder: str) -> PreTrainedConfig:
    """transformers' config of a checkpoint folder or hub name, of either layout."""
    plain = _plain_config(folder)
    if original.is_original(plain):
        return original.to_transformers(plain, original.load_tokenizer(folder))
    return AutoConfig.from_pretrained(folder)


def load_processor(folder: str) -> Qwen3ASRProcessor:
    """The processor of a checkpoint folder or hub name, of either layout."""
    plain = _plain_config(folder)
    if original.is_original(plain):
        return original.load_processor(folder, plain)
    return Qwen3ASRProcessor.from_pretrained(folder)


def load_whole(kind: type[PreTrainedModel], folder: str, field: str = "init_from", **options
               ) -> PreTrainedModel:
    """``kind.from_pretrained(folder)`` in float32, of either layout. UserError for a checkpoint
    that lacks some of the weights: transformers would go on with random ones and a warning."""
    plain = _plain_config(folder)
    if other := original.is_original(plain):
        options |= {"config": original.to_transformers(plain, original.load_tokenizer(folder)),
                    "key_mapping": original.key_mapping(plain)}
    model, loaded = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                         **options)
    if other:
        model._weight_conversions = None  # else it would be saved under the names it had
        model.generation_config = greedy(model.config)
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"{field}={folder}: {len(missing)} weights are missing, first {missing[0]}")
    return model


def refuse_other_kinds(folder: str) -> None:
    """UserError for a folder of ours with a model that is no recogniser: one of them would be
    opened with the weights that both have."""
    for name in _plain_config(folder).get("architectures") or []:
        if name in _NO_RECOGNISERS:
            raise UserError(f"init_from={folder}: {_NO_RECOGNISERS[name]}")


def greedy(config: PreTrainedConfig) -> GenerationConfig:
    """How a model with this config answers where nothing else is said."""
    return GenerationConfig(do_sample=False, eos_token_id=config.eos_token_id,
                            pad_token_id=config.pad_token_id)


def _plain_config(folder: str) -> dict:
    """config.json as it is."""
    return PreTrainedConfig.get_config_dict(folder)[0]


def save_as(kind: type[PreTrainedModel], model: PreTrainedModel, folder: Path,
            state_dict: dict[str, Tensor] | None = None) -> None:
    """``save_pretrained`` of a subclass, as the ``kind`` that config.json shall name."""
    ours, model.__class__ = model.__class__, kind
    try:
        model.save_pretrained(folder, state_dict=state_dict)
    finally:
        model.__class__ = ours
