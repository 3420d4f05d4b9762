"""3 x 3 convolutions of stride 2 in fewer multiplications, for CPU.

Along one axis two outputs of such a convolution are ``y0 = a g0 + b g1 + c g2`` and
``y1 = c g0 + d g1 + e g2`` of five inputs a to e. Taps g0 and g2 are a stride-1 filter of the even
inputs, for which Winograd's F(2, 2) needs three multiplications (Lavin and Gray 2016, "Fast
Algorithms for Convolutional Neural Networks"); g1 needs two more::

    y0 = [(a - c) g0 + b g1] + c (g0 + g2)        y1 = [(e - c) g2 + d g1] + c (g0 + g2)

So there are three matrix products over channels, of 2, 1 and 2 inputs each (a bracket is one), and
on two axes nine, with 25 multiplications for 2 x 2 outputs instead of 36. Gradients take as many.

Everything is channels last. A frame is a zero margin: one row and column before the inputs, and as
many after them as make ``4 * tiles + 1``.
"""

from itertools import islice, product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PARTS = (slice(0, 2), slice(2, 3), slice(3, 5))
"""Of an axis' five transformed inputs ``a - c, b, c, e - c, d``: those of each product."""


def three_convolutions(images: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor],
                       third: tuple[Tensor, Tensor], size: int, kept: int) -> Tensor:
    """3 x 3 convolutions of stride 2 and padding 1 with GELU between them.

    ``images`` ``(n, height, width)`` -> ``(n, height / 8, width / 8, out)``, rounded up. ``first``,
    ``second``, ``third``: weight ``(out, in, 3, 3)``, of one input channel in the first, and bias.
    ``size``: images that are worked on at a time; ``kept``: images after which transformed inputs
    of the second convolution are made again in the backward pass. Images get no gradient.
    """
    parameters = *first, *second, *third
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    return _ThreeConvolutions.apply(images, size, kept if trained else None, *parameters)


class _ThreeConvolutions(torch.autograd.Function):
    """:func:`three_convolutions`; all slices in one function, which adds up their gradients."""

    @staticmethod
    def forward(ctx, images: Tensor, size: int, kept: int | None, weight1: Tensor, bias1: Tensor,
                weight2: Tensor, bias2: Tensor, weight3: Tensor, bias3: Tensor) -> Tensor:
        first = torch.cat([weight1.flatten(1), bias1[:, None]], 1)
        second, third = _transform_weight(weight2), _transform_weight(weight3)
        outputs = images.new_empty(len(images), *(-(-length // 8) for length in images.shape[1:]),
                                   len(bias3))
        saved, done, space = [], 0, None
        for part, place in zip(images.split(size), outputs.split(size), strict=True):
            done += len(part)
            patches = _patches(part)
            if space is None:  # one for all slices: no holes in the heap
                space = images.new_empty(*patches.shape[:3], len(bias1))
            activated = space[:len(part)]
            torch.mm(patches.flatten(0, 2), first.T, out=activated.flatten(0, 2))
            transformed2 = _transform(torch.ops.aten.gelu_(activated))
            hidden, inner = _framed(bias2, len(part), *(-(-n // 4) for n in images.shape[1:]))
            _multiply(transformed2, second, bias2, inner)
            transformed3 = _transform(F.gelu(hidden))
            _multiply(transformed3, third, bias3, place)
            if kept is not None:
                saved += [patches, hidden, *transformed3,
                          *(transformed2 if done <= kept else [None] * 9)]
        ctx.size, ctx.inner = size, inner.shape[1:3]
        ctx.save_for_backward(first, *second, *third, *saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        first, *weights = islice(saved, 19)
        by_first, by_second, by_third = torch.zeros_like(first), [], []
        for part in gradient.split(ctx.size):
            patches, hidden, *transformed = islice(saved, 20)
            part = _multiply_back(part, transformed[:9], weights[9:], by_third)
            part = _inside(torch.ops.aten.gelu_backward(part, hidden), *ctx.inner)
            hidden = F.linear(patches, first)
            if transformed[9] is None:
                transformed[9:] = _transform(F.gelu(hidden))
            part = _multiply_back(part, transformed[9:], weights[:9], by_second)
            part = torch.ops.aten.gelu_backward(part, hidden)
            by_first.addmm_(part.flatten(0, 2).T, patches.flatten(0, 2))
        return (None, None, None, by_first[:, :9].reshape(-1, 1, 3, 3), by_first[:, 9],
                _transform_weight_back(by_second[:9]), by_second[9],
                _transform_weight_back(by_third[:9]), by_third[9])


def _tiles(length: int) -> int:
    """Tiles, of four inputs and a fifth of the next one, on an axis."""
    return (length + 3) // 4


def _framed(like: Tensor, n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A zero frame around ``(n, height, width, len(like))``, and what is inside, not yet set."""
    framed = like.new_empty(n, 4 * _tiles(height) + 1, 4 * _tiles(width) + 1, len(like))
    for edge in (framed[:, 0], framed[:, height + 1:], framed[:, :, 0], framed[:, :, width + 1:]):
        edge.zero_()
    return framed, _inside(framed, height, width)


def _inside(framed: Tensor, height: int, width: int) -> Tensor:
    """What is in the frame."""
    return framed[:, 1:height + 1, 1:width + 1]


def _patches(images: Tensor) -> Tensor:
    """Framed inputs of the first convolution, ``(n, rows, columns, 10)``.

    The tenth is 1, to multiply the bias; all are 0 in the frame, so that the outputs are.
    """
    patches = F.pad(images, (1, 1, 1, 1)).unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)
    framed, inner = _framed(images.new_empty(10), *patches.shape[:3])
    inner[..., :9] = patches
    inner[..., 9] = 1
    return framed


def _transform_weight(weight: Tensor) -> list[Tensor]:
    """``(out, in, 3, 3)`` -> matrices of the nine products, ``(inputs * in, out)`` each."""
    def axis(g0: Tensor, g1: Tensor, g2: Tensor) -> tuple[Tensor, ...]:
        return g0, g1, g0 + g2, g2, g1

    rows = [axis(*row) for row in axis(*weight.permute(2, 3, 1, 0).contiguous())]
    return [torch.cat([tap for row in rows[i] for tap in row[j]])
            for i, j in product(PARTS, PARTS)]


def _transform_weight_back(matrices: list[Tensor]) -> Tensor:
    """Gradient of those matrices -> of the weight ``(out, in, 3, 3)``."""
    def axis(g0: Tensor, g1: Tensor, g02: Tensor, g2: Tensor, g1_: Tensor) -> Tensor:
        return torch.stack([g0 + g02, g1 + g1_, g2 + g02])

    rows = [axis(*row) for row in _places(matrices, 0)]
    return axis(*rows).permute(3, 2, 0, 1)


def _places(matrices: list[Tensor], axis: int) -> list[list[Tensor]]:
    """Views of each transformed input (or tap), 5 x 5, in the ``axis`` of the nine matrices."""
    places = [[] for _ in range(5)]
    for matrix, (rows, columns) in zip(matrices, product(PARTS, PARTS), strict=True):
        sizes = rows.stop - rows.start, columns.stop - columns.start
        views = matrix.unflatten(axis, (*sizes, -1)).unbind(axis)
        for row, row_views in enumerate(views, rows.start):
            places[row] += row_views.unbind(axis)
    return places


def _transform(framed: Tensor) -> list[Tensor]:
    """Framed inputs -> nine matrices ``(tiles, inputs * in)``."""
    tiles = len(framed), framed.shape[1] // 4, framed.shape[2] // 4
    matrices = [framed.new_empty(*tiles, count * framed.shape[3])
                for count in (4, 2, 4, 2, 1, 2, 4, 2, 4)]
    a, b, c, d, e = framed.unfold(1, 5, 4).unbind(-1)
    for row, place in zip((a - c, b, c, e - c, d), _places(matrices, 3), strict=True):
        a, b, c, d, e = row.unfold(2, 5, 4).unbind(-1)
        torch.sub(a, c, out=place[0])
        place[1].copy_(b)
        place[2].copy_(c)
        torch.sub(e, c, out=place[3])
        place[4].copy_(d)
    return [matrix.flatten(0, 2) for matrix in matrices]


def _multiply(transformed: list[Tensor], weight: list[Tensor], bias: Tensor, outputs: Tensor
              ) -> None:
    """The nine products, added up to ``outputs`` ``(n, height, width, out)``."""
    n, height, width, _ = outputs.shape
    tiles = n, (height + 1) // 2, (width + 1) // 2

    def add(index: int, to: Tensor) -> Tensor:
        return torch.addmm(to, transformed[index], weight[index])

    centre = add(4, bias)
    rows = add(1, centre), add(7, centre)
    for column in range(2):
        shared = transformed[3 + 2 * column] @ weight[3 + 2 * column]
        for row in range(2):
            place = outputs[:, row::2, column::2]
            total, rest = (matrix.view(*tiles, -1)[:, :place.shape[1], :place.shape[2]]
                           for matrix in (add(6 * row + 2 * column, shared), rows[row]))
            torch.add(total, rest, out=place)


def _multiply_back(gradient: Tensor, transformed: list[Tensor], weight: list[Tensor],
                   totals: list[Tensor]) -> Tensor:
    """Gradient of the outputs -> of the framed inputs.

    Adds gradients of the nine matrices of the weight, and of the bias, to ``totals``.
    """
    sums = _spread(gradient)
    if totals:
        for total, left, right in zip(totals, transformed, sums, strict=False):
            total.addmm_(left.T, right)
        totals[9] += sums[4].sum(0)
    else:
        totals += [left.T @ right for left, right in zip(transformed, sums, strict=True)]
        totals.append(sums[4].sum(0))  # a tile's outputs all pass the product in the middle
    return _transform_back([right @ matrix.T for right, matrix in zip(sums, weight, strict=True)],
                           (len(gradient), *((n + 1) // 2 for n in gradient.shape[1:3])))


def _spread(gradient: Tensor) -> list[Tensor]:
    """Gradient of the outputs -> of the nine products, ``(tiles, out)`` each."""
    odd = gradient.shape[1] % 2, gradient.shape[2] % 2
    if any(odd):
        gradient = F.pad(gradient, (0, 0, 0, odd[1], 0, odd[0]))
    quarters = [[gradient[:, row::2, column::2].flatten(0, 2) for column in range(2)]
                for row in range(2)]
    (a, c), (g, i) = quarters
    b, h = a + c, g + i
    return [a, b, c, a + g, b + h, c + i, g, h, i]


def _transform_back(matrices: list[Tensor], tiles: tuple[int, int, int]) -> Tensor:
    """Gradient of the nine matrices -> of the framed inputs."""
    n, height, width = tiles
    framed = matrices[4].new_empty(n, 4 * height + 1, 4 * width + 1, matrices[4].shape[1])
    places = _places([matrix.unflatten(0, tiles) for matrix in matrices], 3)
    outer = framed.new_empty(2, n, height, *framed.shape[2:])
    rows = outer[0], framed[:, 1::4], framed[:, 2::4], outer[1], framed[:, 3::4]
    for row, (a, b, c, e, d) in zip(rows, places, strict=True):
        row[:, :, 1::4] = b
        row[:, :, 3::4] = d
        _add_back(row.transpose(1, 2), *(part.transpose(1, 2) for part in (a, c, e)))
    _add_back(framed, outer[0], rows[2], outer[1])
    return framed


def _add_back(gradient: Tensor, a: Tensor, c: Tensor, e: Tensor) -> None:
    """Gradients of ``a - c``, ``c`` and ``e - c`` along axis 1 to their places in ``gradient``."""
    torch.sub(c, a, out=gradient[:, 2::4]).sub_(e)
    gradient[:, 0] = a[:, 0]
    torch.add(a[:, 1:], e[:, :-1], out=gradient[:, 4:-1:4])
    gradient[:, -1] = e[:, -1]
