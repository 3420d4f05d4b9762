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


@pytest.fixture(scope="module")
def align():
    processor = make_processor(train_tokenizer(["turn on the light", "关上门"] * 9, 300))
    model = aut.build({"audio_config": dict(d_model=32, encoder_layers=1, encoder_attention_heads=2,
                                            encoder_ffn_dim=48, downsample_hidden_size=4),
                       "aut_decoder": dict(layers=1, d_model=32, heads=2, ffn_dim=48, dropout=0.0,
                                           tie_embeddings=True, initializer_range=0.1)},
                      processor, 0)
    return CtcAligner(model, processor)


def test_units_have_their_tokens(align):
    units = ["turn", "on", "关", "上", "light"]
    ids, owners = align._tokens(units)
    assert sorted(set(owners)) == [0, 1, 2, 3, 4] and owners == sorted(owners)
    assert align.processor.tokenizer.decode(ids) == "turn on 关上 light"
    rng = np.random.default_rng(0)
    waveforms = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (64_000, 8_000)]
    long, short = align.spans(waveforms, [units, units * 9])
    flat = [time for span in long for time in span]
    assert len(long) == 5 and flat == sorted(flat) and flat[-1] <= 4.0 and short is None


def test_long_recordings_are_encoded_between_pauses(align):
    """Each stretch of sound as if it came alone, and its tokens where it lies."""
    rng = np.random.default_rng(1)
    sounds = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (35_200, 48_000, 40_000)]
    silence = np.zeros(8_000, np.float32)
    long = np.concatenate([sounds[0], silence, sounds[1], silence, sounds[2]])
    emissions = list(align._emissions([sounds[0], long]))
    assert len(emissions[0].log_probs) == len(align._log_probs(sounds[:1])[0])
    cuts = [0, 39_200, 95_200, len(long)]
    pieces = [long[a:b] for a, b in pairwise(cuts)]
    expected = align._log_probs(pieces)
    starts = np.concatenate([[cut / 16_000 + token_time(i) for i in range(len(rows))]
                             for cut, rows in zip(cuts, expected, strict=False)])
    np.testing.assert_allclose(emissions[1].times[:, 0], starts, atol=0.011)
    sounding = np.zeros(len(starts), dtype=bool)
    for begin, end in ((0.0, 2.2), (2.7, 5.7), (6.2, 8.7)):
        sounding |= (starts < end) & (emissions[1].times[:, 1] > begin)
    assert sounding.sum() > 80
    np.testing.assert_allclose(emissions[1].log_probs[sounding],
                               np.concatenate(expected)[sounding], atol=1e-4)
    assert (emissions[1].times[1:, 0] >= emissions[1].times[:-1, 1] - 1e-9).all()
    assert emissions[1].times[-1, 1] == pytest.approx(len(long) / 16_000)


def test_nothing_is_said_in_pauses(align):
    """Tokens that are all in a pause keep the blank's probability alone; a word goes there only if
    there is no room elsewhere."""
    rng = np.random.default_rng(2)
    sound = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    waveform = np.concatenate([sound, np.zeros(8_000, np.float32), sound])
    raw = align._log_probs([waveform])[0]
    emissions, = align._emissions([waveform])
    changed = (emissions.log_probs - raw).round(3)
    blank = align.model.blank_id
    inside = (emissions.times[:, 0] >= 1.0) & (emissions.times[:, 1] <= 1.5)
    others = np.arange(raw.shape[1]) != blank
    assert inside.sum() >= 4 and not changed[~inside].any() and not changed[:, blank].any()
    assert (changed[inside][:, others] == -10).all()
    spans = align.spans([waveform], [["turn", "on", "the", "light"]])[0]
    assert not any(start >= 1.0 and end <= 1.5 for start, end in spans)
    crowded = align.spans([waveform[8_000:-8_000]], [["on"] * 9])[0]
    assert crowded is not None and any(start >= 0.5 and end <= 1.0 for start, end in crowded)
