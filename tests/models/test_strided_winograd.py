"""Strided convolutions in fewer multiplications against torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.models.strided_winograd import three_convolutions


def make(n: int, height: int, width: int, channels: tuple[int, int, int], dtype: torch.dtype
         ) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Images; weights and biases of three convolutions."""
    generator = torch.Generator().manual_seed(n + height + width)
    inputs, parameters = 1, []
    for outputs in channels:
        scale = (9 * inputs) ** -0.5
        parameters += [torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=dtype) * scale,
                       torch.randn(outputs, generator=generator, dtype=dtype)]
        inputs = outputs
    images = torch.randn(n, height, width, generator=generator, dtype=dtype)
    return images, [parameter.requires_grad_() for parameter in parameters]


def reference(images: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    hidden = F.conv2d(images[:, None], *parameters[:2], stride=2, padding=1)
    for weight, bias in (parameters[2:4], parameters[4:]):
        hidden = F.conv2d(F.gelu(hidden), weight, bias, stride=2, padding=1)
    return hidden.permute(0, 2, 3, 1)


def ours(images: torch.Tensor, parameters: list[torch.Tensor], size: int = 2, kept: int = 10**6
         ) -> torch.Tensor:
    return three_convolutions(images, *zip(parameters[::2], parameters[1::2], strict=True),
                              size, kept)


def results(outputs: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs and the gradients of those parameters that have one."""
    return [outputs, *torch.autograd.grad(outputs.cos().sum(),
                                          [p for p in parameters if p.requires_grad])]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40),
       st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 6), st.integers(0, 6))
def test_equal_to_torch_for_every_size(n, height, width, channels, size, kept):
    images, parameters = make(n, height, width, channels, torch.float64)
    for found, expected in zip(results(ours(images, parameters, size, kept), parameters),
                               results(reference(images, parameters), parameters), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


def test_single_precision_is_as_exact_as_torch():
    images, parameters = make(3, 128, 100, (48, 64, 56), torch.float32)
    exact = [parameter.detach().double().requires_grad_() for parameter in parameters]
    expected = results(reference(images.double(), exact), exact)
    for found, theirs, value in zip(results(ours(images, parameters), parameters),
                                    results(reference(images, parameters), parameters), expected,
                                    strict=True):
        error = (found.double() - value).norm() / value.norm()
        assert error < max(3 * (theirs.double() - value).norm() / value.norm(), 1e-6)


@pytest.mark.parametrize("trained", [0, 1, 2, 3, 4, 5])
def test_some_parameters_frozen(trained):
    images, parameters = make(3, 20, 13, (3, 4, 5), torch.float64)
    for i, parameter in enumerate(parameters):
        parameter.requires_grad_(i == trained)
    for found, expected in zip(results(ours(images, parameters, kept=2), parameters),
                               results(reference(images, parameters), parameters), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


def test_nothing_is_saved_without_gradients():
    images, parameters = make(3, 20, 13, (3, 4, 5), torch.float64)
    expected = ours(images, parameters)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        with torch.no_grad():
            assert torch.equal(ours(images, parameters), expected)
        frozen = ours(images, [parameter.detach() for parameter in parameters])
    assert torch.equal(frozen, expected) and not frozen.requires_grad
    assert not saved


def test_fewer_are_kept():
    images, parameters = make(6, 128, 100, (8, 8, 8), torch.float32)
    sizes = []
    for kept in (6, 2, 0):
        saved = []

        def keep(tensor: torch.Tensor, saved: list = saved) -> torch.Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            ours(images, parameters, kept=kept)
        sizes.append(sum(saved))
    image = 25 * 16 * 13 * 8 * 4  # transformed inputs of the second convolution
    assert sizes[0] - sizes[1] == 4 * image and sizes[1] - sizes[2] == 2 * image
