"""CTC alignment against every path there is."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.decoding.ctc_alignment import CtcAligner, token_time, viterbi
from qwen3asr_train.errors import DataError
from qwen3asr_train.models import aut
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer


def said(path: tuple[int, ...]) -> list[int]:
    return [b for a, b in pairwise((0, *path)) if b != a and b != 0]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(1, 2), min_size=1, max_size=4), st.integers(0, 999))
def test_the_likeliest_of_all_paths(frames, targets, seed):
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), frames))
    paths = [p for p in product(range(3), repeat=frames) if said(p) == targets]
    if not paths:
        with pytest.raises(DataError, match="do not fit"):
            viterbi(log_probs, targets, blank=0)
        return
    best = max(paths, key=lambda p: sum(log_probs[i, c] for i, c in enumerate(p)))
    spans = viterbi(log_probs, targets, blank=0)
    path = [0] * frames
    for (first, after), target in zip(spans, targets, strict=True):
        path[first:after] = [target] * (after - first)
    assert tuple(path) == best


def test_times_of_tokens():
    assert [round(token_time(i), 2) for i in (0, 1, 12, 13, 14, 26)] == [
        0.0, 0.08, 0.96, 1.0, 1.08, 2.0]


def test_units_have_their_tokens():
    processor = make_processor(train_tokenizer(["turn on the light", "关上门"] * 9, 300))
    model = aut.build({"audio_config": dict(d_model=32, encoder_layers=1, encoder_attention_heads=2,
                                            encoder_ffn_dim=48, downsample_hidden_size=4),
                       "aut_decoder": dict(layers=1, d_model=32, heads=2, ffn_dim=48, dropout=0.0,
                                           tie_embeddings=True, initializer_range=0.1)},
                      processor, 0)
    align = CtcAligner(model, processor)
    units = ["turn", "on", "关", "上", "light"]
    ids, owners = align._tokens(units)
    assert sorted(set(owners)) == [0, 1, 2, 3, 4] and owners == sorted(owners)
    assert processor.tokenizer.decode(ids) == "turn on 关上 light"
    rng = np.random.default_rng(0)
    waveforms = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (64_000, 8_000)]
    long, short = align.spans(waveforms, [units, units * 9])
    flat = [time for span in long for time in span]
    assert len(long) == 5 and flat == sorted(flat) and flat[-1] <= 4.0 and short is None
