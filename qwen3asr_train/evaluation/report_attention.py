"""Cross-attention in the report: where in the audio the decoder looked for each token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from unicodedata import east_asian_width

import numpy as np

from qwen3asr_train.evaluation.report_chart import (
    Axis,
    chart_figure,
    horizontal_axis,
    pool_columns,
    tick_labels,
)
from qwen3asr_train.evaluation.report_svg import format_duration

MAX_MAPS = 6
MAX_TOKENS = 240
MAX_COLUMNS = 240

_FULL_SHADE = 0.5  # weight that is drawn at full strength
_GAMMA = 0.65  # below 1, so that weak attention shows
_LEVELS = 16
_TOP, _BOTTOM = 6, 28
_LABEL_HEIGHT = 15
_HEIGHTS = 240, 900  # of the picture, as far as the labels allow
_LABEL_COLUMNS = 14
_PIXELS_PER_COLUMN = 6.7  # of the 11 px monospaced labels

# A space can be the whole difference between two tokens; a line break must not break the label.
_VISIBLE = {n: "\N{REPLACEMENT CHARACTER}" for n in (*range(32), *range(127, 160))} | {
    ord(" "): "▁",
    ord("\n"): "⏎",
    ord("\t"): "⇥",
}


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Cross-attention of the decoder over one utterance.

    Attributes:
        tokens: text of each decoder token.
        weights: (tokens, audio_tokens), float, each row sums to 1; the mean over heads.
        seconds: audio that the columns span.
        boundaries: where the encoder's attention windows end, in seconds.

    Raises:
        ValueError: `weights` has not one row per token.
    """

    tokens: tuple[str, ...]
    weights: np.ndarray
    seconds: float
    boundaries: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if np.ndim(self.weights) != 2 or len(self.weights) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens, weights of {np.shape(self.weights)}")

    @property
    def diagonality(self) -> float:
        """How much of the attention one monotonic alignment holds; see `diagonality`."""
        return diagonality(self.weights)


def diagonality(weights: np.ndarray) -> float:
    """Share of the attention that lies on the best monotonic alignment of tokens and audio.

    The alignment gives every audio token to one text token, in order and leaving none out: the
    monotonic alignment search of Glow-TTS (Kim et al. 2020, arXiv:2005.11129), here for the
    greatest attention instead of the greatest likelihood. The share is the attention diagonal ratio
    of LRSpeech (Xu et al. 2020, arXiv:2008.03687) around this path instead of a straight band, so
    pauses and a changing pace cost nothing.

    1 for attention that only moves forward; 1 / tokens for attention that is spread evenly, and
    for attention that stays at one place.

    Args:
        weights: (tokens, audio_tokens), not negative; rows sum to 1.

    Returns:
        0 to 1; NaN for weights that are empty, all zero or not finite.
    """
    weights = np.asarray(weights, dtype=np.float64)
    total = float(weights.sum())
    if not math.isfinite(total) or total <= 0:
        return math.nan
    tokens, audio_tokens = weights.shape
    parts = math.ceil(tokens / audio_tokens)  # with too little audio to go round, tokens share
    columns = np.repeat(weights / parts, parts, axis=1).T  # (parts * audio_tokens, tokens)
    best = np.full(tokens, -np.inf)  # of the alignments that have come to each token
    best[0] = columns[0, 0]
    for column in columns[1:]:
        best = column + np.maximum(best, np.concatenate(([-np.inf], best[:-1])))
    return float(best[-1]) / total


def attention_section(attention: Mapping[str, AttentionMap]) -> str:
    """Pictures of the cross-attention of at most 6 utterances; nothing without any."""
    if not attention:
        return ""
    shown = dict(list(attention.items())[:MAX_MAPS])
    figures = [m.diagonality for m in attention.values()]
    figures = [figure for figure in figures if math.isfinite(figure)]
    mean = ""
    if len(figures) > 1:
        mean = f" Mean of {len(figures)} utterances: {_percent(sum(figures) / len(figures))}."
    key = (
        '<li><span>weight 0</span><span class="ramp"></span>'
        f"<span>{_FULL_SHADE:g} and more</span></li>"
    )
    if any(_inner_boundaries(m) for m in shown.values()):
        key += (
            '<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="boundary" d="M1 4H23"/>'
            "</svg>end of an attention window</li>"
        )
    maps = "".join(_figure(name, attention_map) for name, attention_map in shown.items())
    return (
        '<p class="note">Where in the audio the decoder looked for each token, mean over heads. '
        "Diagonality is the share of the attention on the best monotonic alignment: 100 % moves "
        "only forward; evenly spread or standing still, <i>n</i> tokens have 1/<i>n</i>."
        f'{mean}</p><ul class="legend">{key}</ul><div class="charts maps">{maps}</div>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"


def _inner_boundaries(attention_map: AttentionMap) -> list[float]:
    """Boundaries with audio on both sides."""
    return [b for b in attention_map.boundaries if 0 < b < attention_map.seconds * (1 - 1e-6)]


def _figure(name: str, attention_map: AttentionMap) -> str:
    seconds, count = attention_map.seconds, len(attention_map.tokens)
    title = escape(name)
    if not attention_map.weights.size or not 0 < seconds < math.inf:
        return (
            f'<figure class="chart"><figcaption><span>{title}</span></figcaption>'
            '<p class="note">No tokens, or no audio.</p></figure>'
        )
    share = _percent(attention_map.diagonality)
    labels = [_label(token) for token in attention_map.tokens[:MAX_TOKENS]]
    row_height = _row_height(len(labels))
    left = 16 + _PIXELS_PER_COLUMN * max(4, *map(_columns, labels))
    x = horizontal_axis([0.0, seconds], left)
    bottom = _TOP + row_height * len(labels)
    cut = f"the first {len(labels)} of {count} tokens · " if len(labels) < count else ""
    return chart_figure(
        title,
        _heat(attention_map.weights[: len(labels)], x, row_height)
        + _frame(x, bottom, _inner_boundaries(attention_map))
        + tick_labels(x, bottom, " s")
        + _rows(attention_map, labels, x, row_height),
        description=(
            f"Cross-attention of {title}: {count} tokens over {format_duration(seconds)} "
            f"of audio, diagonality {share}"
        ),
        note=f"{cut}diagonality <b>{share}</b>",
        height=bottom + _BOTTOM,
    )


def _row_height(count: int) -> float:
    """Height that lets every row have its label, unless there are too many of them."""
    low, high = (height / count for height in _HEIGHTS)
    return min(max(_LABEL_HEIGHT, low), 1.6 * _LABEL_HEIGHT, high)


def _heat(weights: np.ndarray, x: Axis, row_height: float) -> str:
    """Cells in shades, one path per shade; a run of equal cells in a row is one rectangle.

    All utterances have the same scale.
    """
    pooled = pool_columns(np.nan_to_num(weights, posinf=0.0, neginf=0.0), MAX_COLUMNS)
    strength = np.clip(pooled / _FULL_SHADE, 0, 1) ** _GAMMA
    paths: dict[int, str] = {}
    for i, row in enumerate(np.rint(_LEVELS * strength).astype(int).tolist()):
        start = 0
        for level, run in groupby(row):
            length = len(list(run))
            if level:
                paths[level] = paths.get(level, "") + f"M{start} {i}h{length}v1h-{length}z"
            start += length
    cells = "".join(
        f'<path fill-opacity="{level / _LEVELS:.3g}" d="{d}"/>' for level, d in paths.items()
    )
    width = (x.end - x.start) / pooled.shape[1]
    place = f"translate({x.start:.1f} {_TOP}) scale({width:.4f} {row_height:.4f})"
    return f'<g class="heat" transform="{place}">{cells}</g>'


def _frame(x: Axis, bottom: float, boundaries: list[float]) -> str:
    drawn = (
        f'<rect class="frame" x="{x.start:.1f}" y="{_TOP}" width="{x.end - x.start:.1f}" '
        f'height="{bottom - _TOP:.1f}"/>'
    )
    if boundaries:
        lines = "".join(f"M{x(b):.1f} {_TOP}V{bottom:.1f}" for b in boundaries)
        drawn += f'<path class="boundary" d="{lines}"/>'
    ticks = "".join(f"M{x(t):.1f} {bottom:.1f}v4" for t in x.ticks)
    return f'{drawn}<path class="grid" d="{ticks}"/>'


def _rows(attention_map: AttentionMap, labels: list[str], x: Axis, row_height: float) -> str:
    """Labels of the tokens, and over each row what to read when one points at it."""
    seconds, rows = attention_map.seconds, []
    stride = math.ceil(_LABEL_HEIGHT / row_height)  # of the rows that have a label
    for i, (label, weights) in enumerate(zip(labels, attention_map.weights, strict=False)):
        text = attention_map.tokens[i].translate(_VISIBLE)
        if np.isfinite(weights).all():
            peak = int(weights.argmax())
            time = (peak + 0.5) * seconds / len(weights)
            text += f"\nmost at {time:.2f} s: {_percent(float(weights[peak]))}"
        top = _TOP + i * row_height
        beside = (
            f'<text x="{x.start - 8:.1f}" y="{top + row_height / 2 + 4:.1f}" text-anchor="end">'
            f"{escape(label)}</text>"
        )
        rows.append(
            f'<g class="row">{"" if i % stride else beside}<rect x="{x.start:.1f}" y="{top:.1f}" '
            f'width="{x.end - x.start:.1f}" height="{row_height:.1f}"/>'
            f"<title>{escape(text)}</title></g>"
        )
    return "".join(rows)


def _columns(text: str) -> int:
    """Width in characters of a monospaced font, where those of East Asia take two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _label(token: str) -> str:
    text = token.translate(_VISIBLE) or "∅"
    if _columns(text) <= _LABEL_COLUMNS:
        return text
    while _columns(text) > _LABEL_COLUMNS - 1:
        text = text[:-1]
    return f"{text}…"
