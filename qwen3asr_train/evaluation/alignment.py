"""How far predicted times are from the right ones.

AAS, the accumulated average shift of the Qwen3-ASR report, is the mean over all slots of the
absolute difference in ms.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WITHIN_MS = (20, 50, 80, 160)
LENGTH_BOUNDS = (2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds between the groups of clips by length."""


@dataclass(frozen=True, eq=False)
class AlignedClip:
    """Times in seconds, ``(slots,)`` each: those ``found`` and those of the ``reference``, where
    they are known. ``units`` with their spans are for pictures."""

    key: str
    language: str | None
    duration: float
    found: np.ndarray
    reference: np.ndarray
    units: tuple[str, ...] = ()

    @property
    def shifts(self) -> np.ndarray:
        """Absolute differences in ms."""
        return 1000 * np.abs(self.found - self.reference)


def clip_of(key: str, language: str | None, duration: float, units: Sequence[str],
            found: Sequence[tuple[float, float]],
            reference: Sequence[tuple[float | None, float | None]]) -> AlignedClip:
    """From spans of units; slots whose right time is not known do not count."""
    right = np.array(reference, dtype=float).ravel()  # None becomes NaN
    known = np.isfinite(right)
    return AlignedClip(key, language, duration, np.array(found, dtype=float).ravel()[known],
                       right[known], tuple(units))


def shift_figures(shifts: np.ndarray) -> dict[str, float]:
    """AAS, median, 90th percentile (ms) and the share within some distances; {} for no slots."""
    if not len(shifts):
        return {}
    # 1e-6: times to the millisecond are not exact in binary
    return {"aas_ms": float(shifts.mean()), "median_ms": float(np.median(shifts)),
            "p90_ms": float(np.percentile(shifts, 90)),
            **{f"within_{limit}_ms": float((shifts <= limit + 1e-6).mean())
               for limit in WITHIN_MS}}


def score_alignment(clips: Sequence[AlignedClip], class_seconds: float) -> dict[str, float]:
    """Figures of all slots together; AAS by language (``aas_ms/English``) and by length
    (``aas_ms/2-5s``); ``aas_floor_ms``: that of the nearest class at every slot."""
    if not clips:
        return {}
    figures = shift_figures(_joined(clip.shifts for clip in clips))
    reference = _joined(clip.reference for clip in clips)
    nearest = np.floor(reference / class_seconds + 0.5) * class_seconds
    figures["aas_floor_ms"] = float(1000 * np.abs(nearest - reference).mean())
    figures["slots"] = float(len(reference))
    for label, name in (("language", lambda c: c.language or "none"),
                        ("length", lambda c: length_group(c.duration))):
        names = sorted({name(clip) for clip in clips})
        if len(names) > 1 or label == "language":
            for value in names:
                group = [clip.shifts for clip in clips if name(clip) == value]
                figures[f"aas_ms/{value}"] = float(_joined(group).mean())
    return figures


def length_group(seconds: float) -> str:
    """``"2-5s"`` and so on; the last one is open."""
    above = [bound for bound in LENGTH_BOUNDS if bound <= seconds]
    below = [bound for bound in LENGTH_BOUNDS if bound > seconds]
    low = f"{above[-1]:g}" if above else "0"
    return f"{low}-{below[0]:g}s" if below else f"{low}s-"


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0)])
