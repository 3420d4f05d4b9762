"""Aligned words or sentences as JSON, Praat TextGrid, SRT, WebVTT or CTM."""

import json
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from qwen3asr_train.decoding.alignment import Aligned

FORMATS = ("json", "textgrid", "srt", "vtt", "ctm")
SENTENCE_FORMATS = ("srt", "vtt")
"""Subtitles: sentences unless asked otherwise."""

_LEAST_SECONDS = 0.001


def as_text(form: str, spans: Sequence[Aligned], *, name: str, duration: float,
            language: str | None, level: str) -> str:
    """The whole file in one of :data:`FORMATS`. ``name``: the recording's; ``duration`` in s."""
    if form == "json":
        return json.dumps({"audio": name, "language": language, "duration": round(duration, 3),
                           f"{level}s": [span._asdict() for span in spans]},
                          ensure_ascii=False, indent=1) + "\n"
    if form == "textgrid":
        return textgrid(spans, duration, f"{level}s")
    if form == "srt":
        return "".join(f"{number}\n{_clock(span.start, ',')} --> {_clock(span.end, ',')}\n"
                       f"{_one_line(span.text)}\n\n" for number, span in enumerate(spans, start=1))
    if form == "vtt":
        return "WEBVTT\n\n" + "".join(
            f"{_clock(span.start, '.')} --> {_clock(span.end, '.')}\n"
            f"{escape(_one_line(span.text), quote=False)}\n\n" for span in spans)
    if form == "ctm":  # recording, channel, start, duration, word: no spaces in any of them
        key = "_".join(Path(name).stem.split()) or "audio"
        return "".join(f"{key} 1 {span.start:.3f} {span.end - span.start:.3f} "
                       f"{'_'.join(span.text.split())}\n" for span in spans)
    raise ValueError(f"format {form!r}: one of {', '.join(FORMATS)}")


def textgrid(spans: Sequence[Aligned], duration: float, tier: str) -> str:
    """A long TextGrid with one interval tier; silences are empty intervals.

    Praat has no intervals without duration: a unit whose start and end fall into one time class
    gets a millisecond, and what follows moves as far as it must.
    """
    from praatio import textgrid as praat

    entries, place = [], 0.0
    for span in spans:
        start = max(span.start, place)
        place = max(span.end, start + _LEAST_SECONDS)
        entries.append((round(start, 3), round(place, 3), span.text))
    duration = max(duration, place)
    grid = praat.Textgrid(0.0, duration)
    if entries:
        grid.addTier(praat.IntervalTier(tier, entries, 0.0, duration))
    else:
        grid.addTier(praat.IntervalTier(tier, [(0.0, duration, "")], 0.0, duration))
    with tempfile.TemporaryDirectory() as folder:  # praatio writes files only
        path = Path(folder) / "aligned.TextGrid"
        grid.save(str(path), format="long_textgrid", includeBlankSpaces=True)
        return path.read_text(encoding="utf-8")


def _clock(seconds: float, point: str) -> str:
    """``HH:MM:SS,mmm``."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _one_line(text: str) -> str:
    """A blank line would end a subtitle."""
    return " ".join(text.split())
