"""Cross-entropy of slots against torch's, and smoothed labels against float64."""

import numpy as np
import pytest
import torch

from qwen3asr_train.objectives.slot_cross_entropy import slot_cross_entropy

LABELS = torch.tensor([0, 1, 7, 18, 19])


@pytest.fixture
def logits():
    return torch.randn(5, 20, generator=torch.Generator().manual_seed(0)) * 3


def test_without_smoothing(logits):
    expected = sum(torch.nn.functional.cross_entropy(logits[i:i + 1], LABELS[i:i + 1])
                   for i in range(5))
    torch.testing.assert_close(slot_cross_entropy(logits, LABELS), expected)


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_gaussian_targets_in_float64(logits, width):
    scores = logits.double().numpy()
    log_probs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    expected = 0.0
    for row, label in zip(log_probs, LABELS.tolist(), strict=True):
        places = [c for c in range(20) if abs(c - label) <= np.ceil(3 * width)]
        weights = np.array([np.exp(-0.5 * ((c - label) / width) ** 2) for c in places])
        expected -= (weights / weights.sum() * row[places]).sum()
    assert float(slot_cross_entropy(logits, LABELS, width)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("outliers", [0.0, 0.01])
def test_gradient(logits, outliers):
    numbers = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: slot_cross_entropy(x.double(), LABELS, 1.0, outliers).double(), numbers,
        eps=1e-2, atol=2e-2)


@pytest.mark.parametrize("outliers", [1e-4, 0.01, 0.5])
def test_outliers_in_float64(logits, outliers):
    scores = logits.double().numpy()
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    picked = probs[range(5), LABELS.tolist()]
    expected = -np.log((picked + outliers) / (1 + outliers)).sum()
    assert float(slot_cross_entropy(logits, LABELS, 0.0, outliers)) == \
        pytest.approx(expected, rel=1e-5)


def test_a_label_far_from_what_is_heard_does_not_pull():
    logits = torch.zeros(2, 20)
    logits[:, 3] = 12.0
    pulls = []
    for outliers in (0.0, 0.01):
        given = logits.clone().requires_grad_()
        slot_cross_entropy(given, torch.tensor([3, 15]), 0.0, outliers).backward()
        pulls.append(float(given.grad[1].norm()))
    assert pulls[0] > 1 and pulls[1] < 1e-2


def test_no_slots_have_a_graph():
    empty = torch.zeros(0, 20, requires_grad=True)
    for width in (0.0, 1.0):
        slot_cross_entropy(empty, torch.zeros(0, dtype=torch.long), width).backward()
