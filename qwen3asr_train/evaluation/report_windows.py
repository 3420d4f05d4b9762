"""Error rate by attention window in the report: what a shorter view, or streaming, costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from qwen3asr_train.evaluation.report_chart import (
    BOTTOM,
    HEIGHT,
    Axis,
    chart_figure,
    grid,
    hover_strips,
    legend_item,
    octave_axis,
    tick_labels,
    vertical_axis,
)
from qwen3asr_train.evaluation.report_svg import format_value

_STREAMING_SHIFT = 7  # pixels beside a whole-utterance score at the same window
_CAP = 4


@dataclass(frozen=True)
class WindowScore:
    """Error rate of one set of utterances at one attention window of the audio encoder.

    Attributes:
        label: name of the setting in the table: `8 s`, `streaming, 2 s`.
        seconds: length of the window. What is not positive and finite (an unlimited window) stands
            in the table only.
        streaming: decoded as the audio comes in, not from the whole utterance.
        wer: corpus-level rate of `evaluation.metrics.score`, 0.05 for 5 %.
        low, high: its 95 % interval; NaN where there is none.
    """

    label: str
    seconds: float
    streaming: bool
    wer: float
    low: float
    high: float


def windows_section(windows: Sequence[WindowScore]) -> str:
    """Plot and table of the error rate over the attention window; nothing without scores."""
    if not windows:
        return ""
    ordered = sorted(windows, key=lambda score: (score.streaming, score.seconds))
    return (
        '<p class="note">Error rate on the same utterances at each attention window of the audio '
        "encoder, with its 95 % interval.</p>"
        f'<div class="charts beside">{_plot(ordered)}{_table(ordered)}</div>'
    )


def _longest(windows: Sequence[WindowScore]) -> WindowScore | None:
    usable = [w for w in windows if not w.streaming and w.seconds > 0 and w.wer > 0]
    return max(usable, key=lambda score: score.seconds, default=None)


def _interval(score: WindowScore) -> str:
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return "–"
    return f"{100 * score.low:.2f} to {100 * score.high:.2f} %"


def _table(windows: Sequence[WindowScore]) -> str:
    longest = _longest(windows)
    columns = ["Window", "Error rate", "95 % interval"]
    columns += [f"Against {longest.label}"] if longest else []
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = ""
    for score in windows:
        cells = [format_value("wer", score.wer), _interval(score)]
        if longest:
            change = 100 * (score.wer / longest.wer - 1)
            cells.append(f"{change:+.1f} %" if math.isfinite(change) else "–")
        if score is longest:
            cells[-1] = '<span class="measure">reference</span>'
        inner = "".join(f"<td>{cell}</td>" for cell in cells)
        rows += f'<tr><th scope="row">{escape(score.label)}</th>{inner}</tr>'
    return (
        f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _plot(windows: Sequence[WindowScore]) -> str:
    shown = [w for w in windows if 0 < w.seconds < math.inf and math.isfinite(w.wer)]
    if not shown:
        return ""
    bounds = [bound for w in shown for bound in (w.wer, w.low, w.high) if math.isfinite(bound)]
    if not any(bounds):
        bounds.append(0.01)  # no errors at all: an axis needs some extent, and none below zero
    x, y = octave_axis([w.seconds for w in shown]), vertical_axis(bounds, may_be_log=False)
    whole = [w for w in shown if not w.streaming]
    streaming = [w for w in shown if w.streaming]
    both = {w.seconds for w in whole} & {w.seconds for w in streaming}
    legend = ""
    if whole and streaming:
        legend = legend_item("s0", "whole utterance", _marker(12, 4, False))
        legend += legend_item("s1", "streaming", _marker(12, 4, True))
    texts: dict[float, str] = {}
    for w in sorted(shown, key=lambda score: score.seconds):
        line = f"{w.label}: {format_value('wer', w.wer)} (95 %: {_interval(w)})"
        texts[w.seconds] = "\n".join(filter(None, [texts.get(w.seconds), line]))
    return chart_figure(
        "Error rate over the attention window",
        grid(y, percent=True)
        + tick_labels(x, HEIGHT - BOTTOM, " s")
        + _series(whole, x, y, 0)
        + _series(streaming, x, y, _STREAMING_SHIFT if both else 0)
        + hover_strips(x, texts),
        description="Error rate over the attention window in seconds; the table has its values",
        legend=legend,
    )


def _series(windows: Sequence[WindowScore], x: Axis, y: Axis, shift: float) -> str:
    """Curve through the scores with a whisker for the interval of each."""
    if not windows:
        return ""
    style = "s1" if windows[0].streaming else "s0"
    places = [(x(w.seconds) + shift, y(w.wer)) for w in windows]
    line = "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    drawn = f'<path class="curve {style}" d="M{line}"/>' if len(places) > 1 else ""
    for w, (left, top) in zip(windows, places, strict=True):
        if math.isfinite(w.low) and math.isfinite(w.high):
            caps = "".join(f"M{left - _CAP:.1f} {y(v):.1f}h{2 * _CAP}" for v in (w.low, w.high))
            stem = f"M{left:.1f} {y(w.low):.1f}V{y(w.high):.1f}"
            drawn += f'<path class="whisker {style}" d="{stem}{caps}"/>'
        drawn += _marker(left, top, w.streaming)
    return drawn


def _marker(x: float, y: float, streaming: bool) -> str:
    if streaming:
        place = f'x="{x - 3:.1f}" y="{y - 3:.1f}"'
        return f'<rect class="dot s1" {place} width="6" height="6"/>'
    return f'<circle class="dot s0" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
