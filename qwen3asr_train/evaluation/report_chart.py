"""What the report's charts are made of: axes, grid, legend, values to point at, the frame.

Inline SVG with classes only: no script, no font, colours from the page's light or dark style.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 12, 30
"""Margins of the plot inside a chart of `WIDTH` by `HEIGHT`."""

_LOG_SCALE_RATIO = 30
_MAX_OCTAVE_TICKS = 8


@dataclass(frozen=True)
class Axis:
    """Maps data to pixels on one axis; `log` only with positive data."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _linear_axis(low: float, high: float, start: float, end: float, count: int) -> Axis:
    """Axis widened to the round numbers around the data."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def _decade_axis(low: float, high: float, start: float, end: float) -> Axis:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    mantissas = (1, 2, 5) if len(decades) <= 3 else (1,)
    stride = max(1, len(decades) // 6)
    marks = [m * 10.0**d for d in decades[::stride] for m in mantissas]
    low = max([t for t in marks if t <= low * (1 + 1e-9)], default=low)
    high = min([t for t in marks if t >= high * (1 - 1e-9)], default=high)
    ticks = tuple(t for t in marks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9))
    return Axis(low, high, start, end, ticks, log=True)


def octave_axis(values: Iterable[float]) -> Axis:
    """Horizontal axis of base 2 over positive values, with half an octave of room on either side.

    Its ticks are the powers of two among the values' range, or the lowest value if there are none.
    """
    low, high = min(values), max(values)
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / _MAX_OCTAVE_TICKS))
    ticks = tuple(2.0**n for n in range(first, last + 1, stride)) or (low,)
    room = math.sqrt(2)
    return Axis(low / room, high * room, LEFT, WIDTH - RIGHT, ticks, log=True)


def vertical_axis(values: Sequence[float], *, may_be_log: bool = True) -> Axis:
    """Axis from the bottom to the top of a chart, round numbers at both ends."""
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if may_be_log and low > 0 and high / low > _LOG_SCALE_RATIO:
        return _decade_axis(low, high, bottom, top)
    # A zero close by is part of the picture.
    return _linear_axis(0.0 if 0 < low < 0.5 * high else low, high, bottom, top, 4)


def horizontal_axis(values: Sequence[float], start: float = LEFT) -> Axis:
    """Axis from `start` to the right margin that ends with the data, its ticks round numbers."""
    low, high = min(values), max(values)
    if 0 < low < 0.25 * high:
        low = 0.0
    nice = _linear_axis(low, high, start, WIDTH - RIGHT, 5)
    if low == high:
        return Axis(nice.low, nice.high, nice.start, nice.end, (low,))
    return Axis(low, high, nice.start, nice.end, tuple(t for t in nice.ticks if low <= t <= high))


def _tick_text(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def grid(y: Axis, *, percent: bool = False) -> str:
    """Lines across the plot at the ticks of the vertical axis, with their labels."""
    return "".join(
        f'<path class="grid" d="M{LEFT} {y(t):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">'
        f"{f'{100 * t:.4g} %' if percent else _tick_text(t)}</text>"
        for t in y.ticks
    )


def tick_labels(x: Axis, bottom: float, unit: str = "") -> str:
    """Labels of the horizontal axis under a plot that ends at `bottom`."""
    return "".join(
        f'<text x="{x(t):.1f}" y="{bottom + 18:g}" text-anchor="middle">{_tick_text(t)}{unit}'
        "</text>"
        for t in x.ticks
    )


def hover_strips(x: Axis, texts: Mapping[float, str]) -> str:
    """Invisible columns over the plot that tell the text at the nearest value, without script.

    Args:
        texts: plain text by value on the axis, in ascending order.
    """
    edges = [x.start, *((x(a) + x(b)) / 2 for a, b in pairwise(texts)), x.end]
    return "".join(
        f'<g class="strip"><rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/><path d="M{x(value):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        f"<title>{escape(text)}</title></g>"
        for (value, text), left, right in zip(texts.items(), edges[:-1], edges[1:], strict=True)
    )


def legend_item(style: str, html: str, marker: str = "") -> str:
    """`<li>` of a legend: a piece of the curve, with its marker if it has one, and what it is."""
    return (
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="curve {style}" '
        f'd="M1 4H23"/>{marker}</svg>{html}</li>'
    )


def chart_figure(
    title: str,
    drawing: str,
    *,
    description: str,
    note: str = "",
    legend: str = "",
    height: float = HEIGHT,
) -> str:
    """The `<figure>` around a drawing of `WIDTH` by `height`; all arguments are HTML.

    Args:
        description: what a screen reader says instead of the drawing.
        note: beside the title.
        legend: `<li>` elements.
    """
    beside = f' <span class="note">{note}</span>' if note else ""
    items = f'<ul class="legend">{legend}</ul>' if legend else ""
    return (
        f'<figure class="chart"><figcaption><span>{title}</span>{beside}</figcaption>{items}'
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{description}">{drawing}</svg></div></figure>'
    )


def pool_columns(picture: np.ndarray, limit: int) -> np.ndarray:
    """Maxima over neighbouring columns of a (rows, columns) picture, at most `limit` columns."""
    columns = picture.shape[1]
    if columns <= limit:
        return picture
    return np.maximum.reduceat(picture, np.arange(limit) * columns // limit, axis=1)
