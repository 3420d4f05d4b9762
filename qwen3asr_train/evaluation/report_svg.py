"""Curves of a run as inline SVG, and how figures are written in the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from numbers import Real
from typing import TypeGuard

from qwen3asr_train.evaluation.languages import LANGUAGES
from qwen3asr_train.evaluation.report_chart import (
    BOTTOM,
    HEIGHT,
    Axis,
    chart_figure,
    grid,
    horizontal_axis,
    hover_strips,
    legend_item,
    tick_labels,
    vertical_axis,
)

MAX_POINTS = 500
"""Points drawn per curve; a longer history is thinned."""

PERCENTAGES = frozenset(
    {"wer", "cer", "mer", "wer_macro", "lid_accuracy", "sentence_accuracy", "nonspeech_false_rate"}
    | {"substitutions", "deletions", "insertions"}
)

Point = tuple[float, float]

_HOVER_STRIPS = 100
_SERIES_STYLES = 5
_MANY_POINTS = 60


def metric_name(key: str) -> str:
    """Bare metric of a history or headline key: `val/wer/English` and `val/wer` are `wer`."""
    parts = key.split("/")
    if len(parts) > 1 and is_language(parts[-1]):
        parts.pop()
    return parts[-1]


def is_language(name: str) -> bool:
    """Whether a part of a metric's name is a language, several, or none."""
    return {*name.split(",")} <= {*LANGUAGES.values(), "None"}


def is_percentage(key: str) -> bool:
    """Whether the values of a history or headline key are rates, shown in percent."""
    name = metric_name(key)
    return name in PERCENTAGES or name.endswith("_accuracy")


def format_value(key: str, value: float) -> str:
    """Value as a reader wants it: percent for rates, durations for `*_seconds`, 4 digits else."""
    name = metric_name(key)
    if not math.isfinite(value):
        return "–"
    if is_percentage(key):
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


def _path(points: Sequence[Point], x: Axis, y: Axis, style: str) -> str:
    line = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
    return f'<path class="curve {style}" d="M{line}"/>'


def _is_noisy(points: Sequence[Point]) -> bool:
    """Whether a curve goes up and down more than it goes anywhere (a learning rate does not)."""
    values = [value for _, value in points]
    travelled = sum(abs(b - a) for a, b in pairwise(values))
    return travelled > 4 * (max(values) - min(values))


def _curve(points: Sequence[Point], x: Axis, y: Axis, style: str) -> str:
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


def _pointed_at(curves: dict[str, list[Point]]) -> dict[float, str]:
    """What to tell at each step: the value there, or the nearest one, of every curve."""
    steps = sorted({step for points in curves.values() for step, _ in points})
    texts = {}
    for step in steps[:: math.ceil(len(steps) / _HOVER_STRIPS)]:
        lines = [f"step {step:,.0f}"]
        for key, points in curves.items():
            near = min(points, key=lambda point: abs(point[0] - step))
            at = "" if near[0] == step else f" (step {near[0]:,.0f})"
            lines.append(f"{key}: {format_value(key, near[1])}{at}")
        texts[step] = "\n".join(lines)
    return texts


def line_chart(title: str, curves: dict[str, list[Point]]) -> str:
    """A `<figure>` with the curves over training steps, their legend and last values.

    The vertical axis is logarithmic when positive values span a factor of more than 30. A noisy
    curve of more than 60 points is drawn faintly with its moving mean on top.
    """
    values = [value for points in curves.values() for _, value in points]
    steps = [step for points in curves.values() for step, _ in points]
    x, y = horizontal_axis(steps), vertical_axis(values)
    drawn, legend = "", ""
    for i, (key, points) in enumerate(curves.items()):
        style = f"s{i % _SERIES_STYLES}"
        drawn += _curve(points, x, y, style)
        legend += legend_item(style, f"{escape(key)} <b>{format_value(key, points[-1][1])}</b>")
    return chart_figure(
        escape(title),
        grid(y, percent=is_percentage(next(iter(curves))))
        + tick_labels(x, HEIGHT - BOTTOM)
        + drawn
        + hover_strips(x, _pointed_at(curves)),
        description=f"{escape(title)} over training steps",
        note="log scale" if y.log else "",
        legend=legend,
    )
