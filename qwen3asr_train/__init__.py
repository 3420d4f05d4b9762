"""Training of Qwen3-ASR models: AuT encoder, multimodal pretraining, SFT, GSPO, forced aligner."""

import os

# torch then asks for huge pages for tensors above 2 MiB on CPU, instead of hundreds of page faults for each
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
