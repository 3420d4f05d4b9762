"""Chunked cross-entropy against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.objectives.cross_entropy import chunked_cross_entropy


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(2, 60), st.integers(1, 50), st.floats(-3, 3),
       st.sampled_from([0.0, 0.1, 0.4]))
def test_value_and_gradient_equal_torch(positions, vocabulary, chunk, factor, smoothing):
    generator = torch.Generator().manual_seed(positions * 100 + vocabulary)
    hidden = torch.randn(positions, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, hidden, weight)]
    ours = chunked_cross_entropy(leaves[0], leaves[1], targets, chunk, smoothing)
    theirs = F.cross_entropy(leaves[2] @ leaves[3].T, targets, reduction="sum",
                             label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    (factor * ours).backward()
    (factor * theirs).backward()
    for ours, theirs in ((leaves[0], leaves[2]), (leaves[1], leaves[3])):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_value_in_float32_and_bf16():
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64), torch.randn(1000, 64)
    targets = torch.randint(1000, (300,))
    expected = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    assert chunked_cross_entropy(hidden, weight, targets, 37).item() == pytest.approx(
        expected.item(), rel=1e-6)
    rounded = chunked_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, 37)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(expected.item(), rel=2e-2)


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(7, 4)
    chunked_cross_entropy(hidden, weight, torch.arange(5), 2).backward()
    assert hidden.grad is not None and weight.grad is None
