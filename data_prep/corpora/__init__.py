"""Public corpora, as they are distributed, to shards: one module and one command each.

``python -m data_prep.corpora.librispeech LibriSpeech --out shards/librispeech`` writes
``shards/librispeech/test-clean`` and ``…/test-other``; ``configs/suite`` scores what is there.
"""
