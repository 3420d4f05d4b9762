"""Keeps the libraries' own chatter off the terminal; warnings that a user can act on stay."""

import logging
import os
import warnings

import torch


def quieten() -> None:
    """Called once before a stage runs."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it guesses
    import lightning  # noqa: F401  sets its loggers' levels when imported
    import transformers

    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("deepspeed", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for module in ("lightning", "torch", "transformers", "deepspeed", "peft"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
