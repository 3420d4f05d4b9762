"""Changes of speed, tempo and pitch, and the word times that go with them."""

import numpy as np
import soxr

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.errors import DataError

_HALF_FRAME_SECONDS = 0.015
_REACH_SECONDS = 0.01


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Resample so that ``factor`` > 1 is faster and higher, as a tape would be."""
    changed = soxr.resample(waveform, 16_000 * factor, 16_000).astype(np.float32)
    return changed if len(changed) else waveform[:1]  # one sample, much faster


def change_tempo(waveform: np.ndarray, factor: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """``factor`` times as fast at the pitch it had: ``(samples,)`` -> ``(samples / factor,)``.

    What was said at t is said at t / factor, within the 10 ms that WSOLA looks around.
    """
    samples = max(1, round(len(waveform) / factor))
    half = round(_HALF_FRAME_SECONDS * rate)
    # the first half frame is what lies before the clip
    return overlap_add(waveform, rate, factor, frames=samples // half + 2)[half:half + samples]


def change_pitch(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Higher (> 0) or lower at the same tempo and length; formants move along with the pitch."""
    factor = 2.0 ** (semitones / 12)
    return fit_length(change_speed(change_tempo(waveform, 1 / factor), factor), len(waveform))


def overlap_add(waveform: np.ndarray, rate: int, factor: float, frames: int) -> np.ndarray:
    """WSOLA (Verhelst & Roelands 1993): float32 ``((frames + 1) * half a frame,)``.

    Frames of 30 ms are overlapped by half; each is taken up to 10 ms away from its place, where it
    best goes on from the one before. Frame i is centred at (i + 1) * half a frame of the result and
    at i * ``factor`` * half a frame of ``waveform`` ``(samples,)``.
    """
    half, reach = round(_HALF_FRAME_SECONDS * rate), round(_REACH_SECONDS * rate)
    window = np.hanning(2 * half + 1)[:-1].astype(np.float32)
    padded = np.pad(waveform, (half + reach, 4 * half + 2 * reach))
    out = np.zeros((frames + 1) * half, np.float32)
    start = reach
    for i in range(frames):
        place = min(int(i * half * factor) + reach, len(padded) - 3 * half - reach)
        if i:
            expected = padded[start + half:start + 3 * half]
            nearby = padded[place - reach:place + reach + 2 * half]
            place += int(np.correlate(nearby, expected, "valid").argmax()) - reach
        out[i * half:(i + 2) * half] += padded[place:place + 2 * half] * window
        start = place
    return out


def fit_length(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The first ``samples`` samples, with zeros behind where there are fewer."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform))))


def scale_times(record: dict, factor: float, seconds: float) -> dict:
    """The record of a clip that became ``factor`` times as fast and is ``seconds`` long now.

    A copy with ``words`` and ``duration`` changed, where it has them; word times stay inside the
    clip, and a word without times (null) keeps none. Raises DataError for words of another form.
    """
    changed = dict(record)
    if record.get("duration") is not None:
        changed["duration"] = round(seconds, 4)
    if record.get("words"):
        changed["words"] = map_words(record["words"], lambda time: min(time / factor, seconds))
    return changed


def shift_times(record: dict, before: float, seconds: float) -> dict:
    """The record of a clip that begins ``before`` seconds earlier and is ``seconds`` long now.

    A copy with ``words`` and ``duration`` changed, where it has them. DataError as above.
    """
    changed = dict(record)
    if record.get("duration") is not None:
        changed["duration"] = round(seconds, 4)
    if record.get("words"):
        changed["words"] = map_words(record["words"], lambda time: time + before)
    return changed


def map_words(words: list, of_time) -> list[list]:
    """``[word, start, end]`` (s) with ``of_time`` of both times, to 0.1 ms.

    Raises DataError for words of another form.
    """
    try:
        return [[word, *(None if time is None else round(of_time(time), 4)
                         for time in (start, end))] for word, start, end in words]
    except (TypeError, ValueError) as error:
        raise DataError("'words' must be a list of [word, start seconds, end seconds]") from error
