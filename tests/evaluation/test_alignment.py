"""AAS and its relatives against sums by hand."""

import numpy as np
import pytest

from qwen3asr_train.evaluation.alignment import clip_of, length_group, score_alignment


def test_figures():
    clips = [clip_of("a", "English", 3.0, ["x", "y"], [(0.0, 0.5), (0.5, 1.0)],
                     [(0.02, 0.4), (None, 1.16)]),
             clip_of("b", "Chinese", 61.0, ["z"], [(0.0, 0.0)], [(0.05, 0.4)])]
    figures = score_alignment(clips, 0.08)
    shifts = [20, 100, 160, 50, 400]
    assert figures["aas_ms"] == pytest.approx(np.mean(shifts))
    assert figures["median_ms"] == pytest.approx(100)
    assert figures["within_20_ms"] == 0.2 and figures["within_50_ms"] == 0.4
    assert figures["within_80_ms"] == 0.4 and figures["within_160_ms"] == 0.8
    assert figures["aas_ms/English"] == pytest.approx(280 / 3)
    assert figures["aas_ms/60-300s"] == pytest.approx(225)
    # 0.02 -> 0, 0.4 -> 0.4, 1.16 -> 1.2, 0.05 -> 0.08, 0.4 -> 0.4
    assert figures["aas_floor_ms"] == pytest.approx((20 + 0 + 40 + 30 + 0) / 5)
    assert figures["slots"] == 5
    assert score_alignment([], 0.08) == {}


def test_groups():
    assert [length_group(s) for s in (0.5, 2.0, 29, 300, 999)] == [
        "0-2s", "2-5s", "10-30s", "300s-", "300s-"]
