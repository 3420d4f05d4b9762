"""CTC over packed clips against torch's, clip by clip."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.objectives.ctc import packed_ctc, transcripts

CLASSES = 6


@st.composite
def clips(draw):
    """Lengths, and targets that may be absent, empty, too long, or repeat a token."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    target = st.none() | st.lists(st.integers(1, CLASSES - 1), max_size=9)
    return lengths, [draw(target) for _ in lengths]


@settings(max_examples=150, deadline=None)
@given(clips(), st.floats(0.1, 3), st.integers(0, 99))
def test_value_and_gradient_equal_torch_clip_by_clip(drawn, factor, seed):
    lengths, targets = drawn
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(sum(lengths), CLASSES, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = packed_ctc(ours, torch.tensor(lengths), [
        None if target is None else torch.tensor(target, dtype=torch.long) for target in targets],
        blank=0)
    expected = sum((F.ctc_loss(part.log_softmax(-1)[:, None], torch.tensor([target]).long(),
                               [len(part)], [len(target)], reduction="sum", zero_infinity=True)
                    for part, target in zip(theirs.split(lengths), targets, strict=True)
                    if target is not None and len(part)), 0 * theirs.sum())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    (factor * found).backward()
    (factor * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


def test_where_the_target_is_nearly_certain():
    """The probability of the other classes is lost in rounding."""
    logits = torch.full((4, 5), -40.0)
    logits[torch.arange(4), torch.tensor([0, 3, 0, 2])] = 40.0
    logits.requires_grad_()
    loss = packed_ctc(logits, torch.tensor([4]), [torch.tensor([3, 2])], blank=0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad.abs().max() < 1e-5


def test_bf16_logits():
    torch.manual_seed(0)
    logits = torch.randn(30, 50).bfloat16()
    ours, theirs = logits.clone().requires_grad_(), logits.float().requires_grad_()
    for leaf in (ours, theirs):
        packed_ctc(leaf, torch.tensor([30]), [torch.tensor([4, 9, 9, 1])], blank=0).backward()
    torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=1e-2, atol=1e-3)


def test_transcripts_are_what_stands_between_the_marker_and_the_end():
    marker, end = 7, 9
    ids = torch.tensor([[1, 2, marker, 4, 5, end, 0], [3, marker, end, 0, 0, 0, 0],
                        [1, 4, 5, end, 0, 0, 0], [1, marker, 4, 5, end, 0, 0]])
    labels = torch.where(ids > 0, ids, -100)
    labels[:, 0] = -100
    labels[3, :3] = -100
    spoken, silent, question, end_of_one = transcripts(labels, marker, end)
    assert spoken.tolist() == [4, 5] and silent.tolist() == []
    assert question is None and end_of_one is None
