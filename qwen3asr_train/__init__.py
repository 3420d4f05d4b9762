"""Training of Qwen3-ASR models: AuT encoder, multimodal pretraining, SFT, GSPO, forced aligner."""

import os

# on CPU torch then asks for huge pages for large tensors, not hundreds of page faults for each
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
