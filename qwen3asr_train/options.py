"""What is read of config mappings."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def as_arguments(options: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a mapping for a frozen dataclass: lists become tuples."""
    if isinstance(options, DictConfig):
        options = OmegaConf.to_container(options, resolve=True)
    return {name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()}


def headline_of(suite: Mapping[str, Any] | None) -> dict[str, str]:
    """Names of a suite's headline figures and what each is; YAML reads some names, as no and 10, as
    other than text."""
    return {str(name): formula for name, formula in ((suite or {}).get("headline") or {}).items()}
