"""Config mappings as keyword arguments."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def as_arguments(options: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a mapping for a frozen dataclass: lists become tuples."""
    if isinstance(options, DictConfig):
        options = OmegaConf.to_container(options, resolve=True)
    return {name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()}
