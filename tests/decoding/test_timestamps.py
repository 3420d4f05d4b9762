"""The repair of times against transformers' quadratic rule."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_asr.processing_qwen3_asr import _fix_timestamps

from qwen3asr_train.decoding.timestamps import repair_times


@settings(max_examples=500)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40))
def test_equals_transformers_rule(classes):
    times = np.array(classes, dtype=np.float32) * 80
    assert repair_times(times.tolist()) == _fix_timestamps(times)


@given(st.lists(st.floats(0, 300_000, width=32), min_size=1, max_size=60))
def test_of_any_times(times):
    assert repair_times(times) == _fix_timestamps(np.array(times, dtype=np.float32))


def test_nearly_ordered_times_of_a_long_clip():
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 3750, 800))
    wrong = rng.random(800) < 0.1
    times[wrong] = rng.integers(0, 3750, int(wrong.sum()))
    milliseconds = times.astype(np.float32) * 80
    repaired = repair_times(milliseconds.tolist())
    assert repaired == _fix_timestamps(milliseconds) and repaired == sorted(repaired)


def test_nothing_and_speed():
    assert repair_times([]) == []
    times = (np.random.default_rng(0).integers(0, 3750, 10_000) * 80.0).tolist()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        repair_times(times)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05
