"""Presets, the windowed encoder, the chunked language-model head, checkpoint folders."""
