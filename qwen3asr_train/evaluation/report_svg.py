"""Curves of a run as inline SVG: no script, no font, readable in light and dark."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from numbers import Real
from typing import TypeGuard

from qwen3asr_train.evaluation.text import LANGUAGES

MAX_POINTS = 500
"""Points drawn per curve; a longer history is thinned."""

PERCENTAGES = frozenset(
    {"wer", "cer", "wer_macro", "lid_accuracy", "sentence_accuracy", "nonspeech_false_rate"}
    | {"substitutions", "deletions", "insertions"}
)

Point = tuple[float, float]

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 12, 30
_HOVER_STRIPS = 100
_SERIES_STYLES = 5
_MANY_POINTS = 60
_LOG_SCALE_RATIO = 30


def metric_name(key: str) -> str:
    """Bare metric of a history or headline key: `val/wer/English` and `val/wer` are `wer`."""
    parts = key.split("/")
    if len(parts) > 1 and parts[-1] in {*LANGUAGES.values(), "None"}:
        parts.pop()
    return parts[-1]


def format_value(key: str, value: float) -> str:
    """Value as a reader wants it: percent for rates, durations for `*_seconds`, 4 digits else."""
    name = metric_name(key)
    if not math.isfinite(value):
        return "–"
    if name in PERCENTAGES or name.endswith("_accuracy"):
        return f"{100 * value:.2f} %"
    if name.endswith("_seconds"):
        return format_duration(value)
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """`3.2 s`, `2 min 05 s` or `1 h 02 min`."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def series_of(history: Iterable[Mapping[str, object]]) -> dict[str, list[Point]]:
    """`(step, value)` curves by key, sorted by step; rows without step and non-numbers ignored."""
    curves: dict[str, dict[float, float]] = {}
    for row in history:
        step = row.get("step")
        if not _is_number(step):
            continue
        for key, value in row.items():
            if key != "step" and _is_number(value):
                curves.setdefault(key, {})[float(step)] = float(value)
    return {key: sorted(points.items()) for key, points in curves.items()}


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points that keep both ends and the lowest and highest of every stretch.

    Spikes stay visible, which a plain stride would lose.
    """
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for i in range(stretches):
        stretch = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [*kept, points[-1]]


def moving_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over the `window` latest values of each point."""
    values, total = [], 0.0
    for i, (step, value) in enumerate(points):
        total += value - (points[i - window][1] if i >= window else 0.0)
        values.append((step, total / min(i + 1, window)))
    return values


@dataclass(frozen=True)
class _Axis:
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


def _linear_axis(low: float, high: float, start: float, end: float, count: int) -> _Axis:
    """Axis widened to the round numbers around the data."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return _Axis(ticks[0], ticks[-1], start, end, ticks)


def _log_axis(low: float, high: float, start: float, end: float) -> _Axis:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    mantissas = (1, 2, 5) if len(decades) <= 3 else (1,)
    stride = max(1, len(decades) // 6)
    marks = [m * 10.0**d for d in decades[::stride] for m in mantissas]
    low = max([t for t in marks if t <= low * (1 + 1e-9)], default=low)
    high = min([t for t in marks if t >= high * (1 - 1e-9)], default=high)
    ticks = tuple(t for t in marks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9))
    return _Axis(low, high, start, end, ticks, log=True)


def _vertical_axis(values: list[float]) -> _Axis:
    low, high = min(values), max(values)
    bottom, top = _HEIGHT - _BOTTOM, _TOP
    if low > 0 and high / low > _LOG_SCALE_RATIO:
        return _log_axis(low, high, bottom, top)
    # A zero close by is part of the picture.
    return _linear_axis(0.0 if 0 < low < 0.5 * high else low, high, bottom, top, 4)


def _horizontal_axis(steps: list[float]) -> _Axis:
    low, high = min(steps), max(steps)
    if 0 < low < 0.25 * high:
        low = 0.0
    nice = _linear_axis(low, high, _LEFT, _WIDTH - _RIGHT, 5)
    if low == high:
        return _Axis(nice.low, nice.high, nice.start, nice.end, (low,))
    return _Axis(low, high, nice.start, nice.end, tuple(t for t in nice.ticks if low <= t <= high))


def _tick_label(value: float, key: str = "") -> str:
    if key and (metric_name(key) in PERCENTAGES or metric_name(key).endswith("_accuracy")):
        return f"{100 * value:.4g} %"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def _path(points: Sequence[Point], x: _Axis, y: _Axis, style: str) -> str:
    line = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
    return f'<path class="curve {style}" d="M{line}"/>'


def _is_noisy(points: Sequence[Point]) -> bool:
    """Whether a curve goes up and down more than it goes anywhere (a learning rate does not)."""
    values = [value for _, value in points]
    travelled = sum(abs(b - a) for a, b in pairwise(values))
    return travelled > 4 * (max(values) - min(values))


def _curve(points: Sequence[Point], x: _Axis, y: _Axis, style: str) -> str:
    if len(points) > _MANY_POINTS and not _is_noisy(points):
        return _path(thin(points), x, y, style)
    if len(points) > _MANY_POINTS:
        smooth = moving_mean(points, max(5, len(points) // 50))
        stride = max(1, math.ceil(len(smooth) / MAX_POINTS))
        return _path(thin(points), x, y, f"{style} raw") + _path(smooth[::stride], x, y, style)
    dots = "".join(
        f'<circle class="dot {style}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6"/>' for s, v in points
    )
    return (_path(points, x, y, style) if len(points) > 1 else "") + dots


def _hover_strips(curves: dict[str, list[Point]], x: _Axis) -> str:
    """Invisible columns over the plot whose title tells step and values there, without script."""
    steps = sorted({step for points in curves.values() for step, _ in points})
    steps = steps[:: math.ceil(len(steps) / _HOVER_STRIPS)]
    edges = [x.start, *((x(a) + x(b)) / 2 for a, b in pairwise(steps)), x.end]
    strips = []
    for step, left, right in zip(steps, edges[:-1], edges[1:], strict=True):
        lines = [f"step {step:,.0f}"]
        for key, points in curves.items():
            near = min(points, key=lambda point: abs(point[0] - step))
            at = "" if near[0] == step else f" (step {near[0]:,.0f})"
            lines.append(f"{key}: {format_value(key, near[1])}{at}")
        strips.append(
            f'<g class="strip"><rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/><path d="M{x(step):.1f} {_TOP}V'
            f'{_HEIGHT - _BOTTOM}"/><title>{escape(chr(10).join(lines))}</title></g>'
        )
    return "".join(strips)


def line_chart(title: str, curves: dict[str, list[Point]]) -> str:
    """A `<figure>` with the curves over training steps, their legend and last values.

    The vertical axis is logarithmic when positive values span a factor of more than 30. A noisy
    curve of more than 60 points is drawn faintly with its moving mean on top.
    """
    values = [value for points in curves.values() for _, value in points]
    steps = [step for points in curves.values() for step, _ in points]
    x, y = _horizontal_axis(steps), _vertical_axis(values)
    unit_key = next(iter(curves))

    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {y(t):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{_tick_label(t, unit_key)}'
        "</text>"
        for t in y.ticks
    )
    below = _HEIGHT - _BOTTOM + 18
    grid += "".join(
        f'<text x="{x(t):.1f}" y="{below}" text-anchor="middle">{_tick_label(t)}</text>'
        for t in x.ticks
    )
    drawn, legend = "", ""
    for i, (key, points) in enumerate(curves.items()):
        style = f"s{i % _SERIES_STYLES}"
        drawn += _curve(points, x, y, style)
        legend += (
            f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="curve {style}" '
            f'd="M1 4H23"/></svg>{escape(key)} <b>{format_value(key, points[-1][1])}</b></li>'
        )
    scale = ' <span class="note">log scale</span>' if y.log else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{scale}</figcaption>'
        f'<ul class="legend">{legend}</ul><div class="scroll">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)} over training steps">{grid}{drawn}'
        f"{_hover_strips(curves, x)}</svg></div></figure>"
    )
