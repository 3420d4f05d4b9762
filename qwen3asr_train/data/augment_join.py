"""Samples joined to a long one, with their word times."""

from collections.abc import Sequence

import numpy as np

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.augment_time import map_words
from qwen3asr_train.errors import DataError

_TASKS = ("asr", "nonspeech")


def concatenate(samples: Sequence[tuple[dict, np.ndarray]], rng: np.random.Generator,
                pause_seconds: tuple[float, float] = (0.1, 0.6)) -> tuple[dict, np.ndarray]:
    """Records and their waveforms, float32 ``(samples,)`` at 16 kHz -> one record and waveform.

    A pause of zeros is drawn between each two. ``words`` are shifted to their place, and left out
    if a sample with text has none. Contexts are put in lines and entities in one list, each once.
    ``meta`` but for ``sounds_like``, and what else a record holds, says nothing about the whole and
    is left out.

    Raises DataError for no samples, for two languages (the target names one), and for tasks other
    than asr and nonspeech.
    """
    _check(samples)
    records = [record for record, _ in samples]
    pieces, words, length = [], [], 0
    for number, (record, waveform) in enumerate(samples):
        if number:
            pieces.append(np.zeros(round(rng.uniform(*pause_seconds) * SAMPLE_RATE), np.float32))
            length += len(pieces[-1])
        start = length / SAMPLE_RATE
        words += map_words(record.get("words") or [], lambda time, start=start: start + time)
        pieces.append(waveform)
        length += len(waveform)
    spoken = [record for record in records if record["text"].strip()]
    joined = {"text": join_texts([record["text"] for record in spoken]),
              "language": next((r["language"] for r in spoken if r.get("language")), None),
              "task": "asr" if spoken else "nonspeech", "duration": round(length / SAMPLE_RATE, 4)}
    sources = _once(record.get("source") for record in records)
    optional = {
        "source": sources[0] if len(sources) == 1 else "",
        "context": "\n".join(_once(record.get("context") for record in records)),
        "entities": _once(e for record in records for e in record.get("entities") or []),
        "words": words if all(record.get("words") for record in spoken) else []}
    if sounds_like := _once(name for record in records
                            for name in (record.get("meta") or {}).get("sounds_like") or []):
        joined["meta"] = {"sounds_like": sounds_like}
    joined |= {name: value for name, value in optional.items() if value}
    return joined, np.concatenate(pieces).astype(np.float32, copy=False)


def _check(samples: Sequence[tuple[dict, np.ndarray]]) -> None:
    if not samples:
        raise DataError("no samples to join")
    records = [record for record, _ in samples]
    tasks = {record.get("task", "asr") for record in records} - set(_TASKS)
    if tasks:
        raise DataError(f"samples of task '{min(tasks)}' cannot be joined, only "
                        f"{' and '.join(_TASKS)}")
    languages = _once(record.get("language") for record in records if record["text"].strip())
    if len(languages) > 1:
        raise DataError(f"samples in {' and '.join(languages)} cannot be joined; the target names "
                        "one language")


def join_texts(texts: Sequence[str]) -> str:
    """With a space between them, except between two characters of scripts that use none."""
    joined = ""
    for text in filter(None, map(str.strip, texts)):
        spaced = joined and not (_is_unspaced(joined[-1]) and _is_unspaced(text[0]))
        joined += (" " if spaced else "") + text
    return joined


def _is_unspaced(character: str) -> bool:
    """Hanzi, kana and their punctuation; Thai, Lao, Burmese and Khmer."""
    return any(first <= character <= last for first, last in (
        ("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"), ("\u3000", "\u9fff"),
        ("\uf900", "\ufaff"), ("\uff00", "\uffef")))


def _once(values) -> list:
    """What is not empty, each once, in order."""
    return list(dict.fromkeys(value for value in values if value))
