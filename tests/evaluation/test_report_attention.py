"""Pictures of the cross-attention, and the figure that says how diagonal they are."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.evaluation.report_attention import (
    AttentionMap,
    attention_section,
    diagonality,
)


def one_hot(columns, audio_tokens):
    return np.eye(audio_tokens)[list(columns)]


def test_diagonality_of_known_attention():
    assert diagonality(one_hot([0, 1, 5, 9], 10)) == pytest.approx(1)
    assert diagonality(np.full((4, 10), 0.1)) == pytest.approx(1 / 4)
    assert diagonality(one_hot([3, 3, 3, 3], 10)) == pytest.approx(1 / 4)
    assert diagonality(one_hot([9, 6, 3, 0], 10)) == pytest.approx(1 / 4)
    assert diagonality(one_hot([0, 3, 6, 2], 10)) == pytest.approx(3 / 4)
    assert diagonality(np.full((30, 7), 1 / 7)) == pytest.approx(1 / 30)
    assert diagonality(np.ones((1, 5)) / 5) == pytest.approx(1)


@pytest.mark.parametrize("weights", [np.zeros((0, 4)), np.zeros((4, 0)), np.zeros((2, 3))])
def test_diagonality_of_nothing(weights):
    assert math.isnan(diagonality(weights))
    assert math.isnan(diagonality(np.full((2, 3), math.nan)))


def by_trying_all(weights):
    """Best alignment among all, each token from its start to the start of the next."""
    tokens, audio_tokens = weights.shape

    def best(token, start):
        if token == tokens - 1:
            return weights[token, start:].sum()
        last = audio_tokens - (tokens - token - 1)
        return max(
            weights[token, start:end].sum() + best(token + 1, end)
            for end in range(start + 1, last + 1)
        )

    return best(0, 0) / weights.sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(4, 8), st.integers(0, 10**6))
def test_diagonality_is_that_of_the_best_alignment(tokens, audio_tokens, seed):
    weights = np.random.default_rng(seed).dirichlet(np.ones(audio_tokens), tokens)
    assert diagonality(weights) == pytest.approx(by_trying_all(weights))


def test_weights_need_a_row_per_token():
    with pytest.raises(ValueError, match="2 tokens"):
        AttentionMap(("a", "b"), np.zeros((3, 4)), 1.0)
    with pytest.raises(ValueError):
        AttentionMap(("a",), np.zeros(4), 1.0)


def test_picture_shows_tokens_time_windows_and_figure():
    weights = one_hot([0, 1, 3], 4)
    html = attention_section(
        {"key": AttentionMap(("please", " o\n", ""), weights, 2.0, (1.0, 2.0, math.nan))}
    )
    labels = re.findall(r'<g class="row"><text[^>]*>(.*?)</text>', html)
    assert labels == ["please", "▁o⏎", "∅"]
    assert [f">{t} s</text>" in html for t in ("0", "0.5", "1", "1.5", "2")] == [True] * 5
    assert '<path fill-opacity="1" d="M0 0h1v1h-1zM1 1h1v1h-1zM3 2h1v1h-1z"/>' in html
    lines = re.findall(r'class="boundary" d="(M[\d.]+ 6V[^"]*)"', html)
    assert len(lines) == 1 and lines[0].count("M") == 1  # the end of the audio is no window's end
    assert "diagonality <b>100 %</b>" in html
    assert 'aria-label="Cross-attention of key: 3 tokens over 2.0 s of audio, diagonality' in html
    assert "<title>please\nmost at 0.25 s: 100 %</title>" in html
    assert "end of an attention window" in html


def test_no_key_for_windows_that_are_not_drawn():
    attention = {"key": AttentionMap(("a",), np.ones((1, 3)) / 3, 2.0, (2.0,))}
    html = attention_section(attention)
    assert "boundary" not in html and "end of an attention window" not in html


def test_long_tokens_and_many_tokens_and_much_audio():
    tokens = ("x" * 99, "字" * 20, *(f" t{n}" for n in range(400)))
    rng = np.random.default_rng(0)
    html = attention_section(
        {"long": AttentionMap(tokens, rng.dirichlet(np.ones(2000), len(tokens)), 160.0)}
    )
    assert f">{'x' * 13}…</text>" in html
    assert "the first 240 of 402 tokens" in html and html.count('class="row"') == 240
    assert html.count('text-anchor="end"') < 80 and len(html) < 600_000
    assert int(re.search(r'<svg viewBox="0 0 560 (\d+)" role', html)[1]) < 1000
    assert max(int(x) for x in re.findall(r"M(\d+) \d+h\d+v1", html)) < 240
    wide = attention_section({"wide": AttentionMap(("字" * 20,), np.ones((1, 3)) / 3, 1.0)})
    assert f">{'字' * 6}…</text>" in wide


def test_flat_attention_is_faint_and_small():
    html = attention_section({"flat": AttentionMap(("a",) * 50, np.full((50, 100), 0.01), 8.0)})
    assert re.findall(r'fill-opacity="([\d.]+)"', html) == ["0.0625"]
    assert html.count("v1h") == 50


def test_nothing_to_draw():
    assert attention_section({}) == ""
    for attention_map in (
        AttentionMap((), np.zeros((0, 10)), 1.0),
        AttentionMap(("a",), np.zeros((1, 0)), 1.0),
        AttentionMap(("a",), np.ones((1, 2)) / 2, 0.0),
        AttentionMap(("a",), np.ones((1, 2)) / 2, math.nan),
    ):
        html = attention_section({"key": attention_map})
        assert "No tokens, or no audio." in html and "<svg" not in html
    html = attention_section({"key": AttentionMap(("a",), np.full((1, 3), math.nan), 1.0)})
    assert "diagonality <b>–</b>" in html and "nan" not in html and "<title>a</title>" in html


def test_six_are_drawn_and_all_are_counted():
    maps = {f"k{n}": AttentionMap(("a", "b"), one_hot([0, n % 2], 2), 1.0) for n in range(8)}
    html = attention_section(maps)
    assert html.count("<figure") == 6 and "Mean of 8 utterances: 75 %" in html
