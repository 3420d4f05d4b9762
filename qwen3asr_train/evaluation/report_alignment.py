"""The forced aligner in the report: how far its times are off; words under their spectrogram."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

import numpy as np

from qwen3asr_train.evaluation.alignment import WITHIN_MS, AlignedClip, score_alignment
from qwen3asr_train.evaluation.report_clips import MAX_CLIP_SECONDS, SAMPLE_RATE, log_mel_png

MAX_PICTURES = 8

_WIDTH = 960  # of a picture, in units of its own
_MEL_HEIGHT, _ROW = 150, 26
_GAP = 4
_PIXELS_PER_COLUMN = 7.0  # of the labels
_COLUMNS = ("Clips", "Aligned by", "AAS", "Median", "90 %",
            *(f"≤ {limit} ms" for limit in WITHIN_MS), "Floor", "Slots")


@dataclass(frozen=True, eq=False)
class AlignmentPicture:
    """A clip, float32 ``(samples,)`` at 16 kHz, its units, the spans (s) that were found, and the
    right ones where they are known."""

    key: str
    waveform: np.ndarray
    units: Sequence[str]
    found: Sequence[tuple[float, float]]
    reference: Sequence[tuple[float, float] | None] = ()


@dataclass
class AlignmentReport:
    """Figures by the way in which clips were heard and by who aligned them ("": the model)."""

    class_seconds: float
    rows: list[tuple[str, str, dict[str, float]]] = field(default_factory=list)
    pictures: list[AlignmentPicture] = field(default_factory=list)

    def add(self, way: str, label: str, clips: Sequence[AlignedClip]) -> None:
        """Score the clips of one way."""
        self.rows.append((way, label, score_alignment(clips, self.class_seconds)))

    @property
    def metrics(self) -> dict[str, float]:
        """``test/aas_ms`` … of the first way and the model, ``test/WAY/aas_ms`` of others,
        ``test/LABEL_aas_ms`` of other aligners."""
        found = {}
        for way, label, figures in self.rows:
            scope = "test" if way == self.rows[0][0] else f"test/{way}"
            for name, value in figures.items():
                found[f"{scope}/{label}_{name}" if label else f"{scope}/{name}"] = value
        return found


def alignment_section(report: AlignmentReport | None) -> str:
    """The tables and pictures as HTML; "" without a report."""
    if report is None:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(*row) for row in report.rows if row[2])
    parts = "".join(_groups(*row) for row in report.rows if row[2] and not row[1])
    return (
        '<p class="note">AAS: mean over all slots of the absolute difference in ms between the '
        "time found and the right one. Floor: that of the nearest class at every slot "
        f"({1000 * report.class_seconds:g} ms classes).</p>"
        f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{parts}{pictures(report.pictures)}"
    )


def _row(way: str, label: str, figures: dict[str, float]) -> str:
    cells = [label or "this model"]
    cells += [f"{figures[name]:.1f} ms" for name in ("aas_ms", "median_ms", "p90_ms")]
    cells += [f"{100 * figures[f'within_{limit}_ms']:.0f} %" for limit in WITHIN_MS]
    cells += [f"{figures['aas_floor_ms']:.1f} ms", f"{figures['slots']:,.0f}"]
    name = escape(way.replace("_", " "))
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>'


def _groups(way: str, label: str, figures: dict[str, float]) -> str:
    """AAS by language and by length, where there are several."""
    groups = {name.split("/")[1]: value for name, value in figures.items() if "/" in name}
    if len(groups) < 2:
        return ""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{value:.1f} ms</td></tr>'
                   for name, value in groups.items())
    return (f'<details class="block"><summary>{escape(way.replace("_", " "))}: AAS by language and '
            f"length</summary><table><tbody>{rows}</tbody></table></details>")


def pictures(clips: Sequence[AlignmentPicture]) -> str:
    """Spectrograms with their words under them, at most 8."""
    drawn = "".join(picture(clip) for clip in clips[:MAX_PICTURES])
    return f'<div class="charts maps">{drawn}</div>' if drawn else ""


def picture(clip: AlignmentPicture) -> str:
    """``<figure>``: log-mel, the words found, and the right ones below where they are known."""
    samples = np.clip(np.nan_to_num(clip.waveform), -1, 1)[:int(MAX_CLIP_SECONDS * SAMPLE_RATE)]
    name, seconds = escape(clip.key), len(samples) / SAMPLE_RATE
    if not len(samples):
        return ""
    tiers = [("found", clip.found)]
    if any(span is not None for span in clip.reference):
        tiers.append(("right", clip.reference))
    height = _MEL_HEIGHT + len(tiers) * (_ROW + _GAP) + 18
    image = base64.b64encode(log_mel_png(samples)).decode("ascii")
    drawing = (f'<image href="data:image/png;base64,{image}" x="0" y="0" width="{_WIDTH}" '
               f'height="{_MEL_HEIGHT}" preserveAspectRatio="none"/>')
    for number, (tier, spans) in enumerate(tiers):
        top = _MEL_HEIGHT + _GAP + number * (_ROW + _GAP)
        drawing += _tier(tier, clip.units, spans, seconds, top)
    drawing += "".join(
        f'<text x="{_WIDTH * t / seconds:.1f}" y="{height - 4}" text-anchor="middle">{t:g} s</text>'
        for t in np.arange(1, seconds, max(1, round(seconds / 10))))
    return (
        f'<figure class="chart"><figcaption><span>{name}</span></figcaption><div class="scroll">'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Spectrogram of {name} with '
        f'its words">{drawing}</svg></div></figure>'
    )


def _tier(tier: str, units: Sequence[str], spans: Sequence[tuple[float, float] | None],
          seconds: float, top: float) -> str:
    """One row of words, each with lines up through the spectrogram where it starts and ends."""
    style = "frame" if tier == "found" else "boundary"
    lines, texts = "", ""
    for unit, span in zip(units, spans, strict=False):
        if span is None or span[0] > seconds:
            continue
        left, right = (_WIDTH * min(time, seconds) / seconds for time in span)
        if tier == "found":
            lines += f"M{left:.1f} 0V{top + _ROW}M{right:.1f} 0V{top + _ROW}"
        else:
            lines += f"M{left:.1f} {top}v{_ROW}M{right:.1f} {top}v{_ROW}"
        shown = _shortened(unit, right - left)
        texts += (f'<g><text x="{(left + right) / 2:.1f}" y="{top + _ROW - 8:.1f}" '
                  f'text-anchor="middle">{escape(shown)}</text><title>{escape(unit)}: '
                  f"{span[0]:.2f} to {span[1]:.2f} s ({tier})</title></g>")
    return f'<path class="{style}" fill="none" d="{lines}"/>{texts}'


def _shortened(text: str, width: float) -> str:
    """As much of ``text`` as fits; at least one character."""
    used = 0.0
    for place, character in enumerate(text):
        used += (2 if character > "\u2e7f" else 1) * _PIXELS_PER_COLUMN
        if used > width and place:
            return text[:place]
    return text


def alignment_page(clip: AlignmentPicture) -> str:
    """One clip as a page of its own that opens anywhere."""
    css = files("qwen3asr_train.evaluation").joinpath("templates/report.css").read_text("utf-8")
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
            f"{escape(clip.key)}</title><style>{css}</style></head><body><main>{picture(clip)}"
            "</main></body></html>\n")
