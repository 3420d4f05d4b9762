"""Training of Qwen3-ASR models: AuT encoder, multimodal pretraining, SFT, GSPO, forced aligner."""

__version__ = "0.1.0"
