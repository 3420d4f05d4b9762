"""Word times in other people's files: TextGrid, CTM, Audacity labels, JSON.

All become ``[[word, start s, end s], …]`` in order of time. Silences are left out. Raises DataError
that names the file for anything that is not what its name says.
"""

import json
import math
import re
from pathlib import Path

from qwen3asr_train.errors import DataError

SILENCES = {"", "sil", "sp", "spn", "<sil>", "<eps>", "<s>", "</s>", "[sil]", "<p:>", "#"}
"""Labels of no word, in lower case."""

UNKNOWN = {"<unk>", "[unk]", "<oov>"}
"""What the Montreal Forced Aligner may write for a word that its dictionary lacks."""

EXTENSIONS = (".textgrid", ".ctm", ".txt", ".json")

Words = list[list]


def times_or_reason(path: Path | None, missing: str) -> Words | str:
    """Words of a file; ``missing`` for none, and what is wrong with a bad one."""
    if path is None:
        return missing
    try:
        return read_times(path)
    except DataError as error:
        return str(error)


def read_times(path: Path) -> Words:
    """Words of one recording by the file's extension (any case)."""
    kind = path.suffix.lower()
    if kind == ".textgrid":
        return textgrid_words(read_text(path), str(path))
    if kind == ".ctm":
        recordings = ctm_words(read_text(path), str(path))
        if len(recordings) != 1:
            raise DataError(f"{path}: times of {len(recordings)} recordings, one was expected")
        return next(iter(recordings.values()))
    if kind == ".txt":
        return audacity_words(read_text(path), str(path))
    if kind == ".json":
        return json_words(read_text(path), str(path))
    raise DataError(f"{path}: no {', '.join(EXTENSIONS)} file")


def read_text(path: Path) -> str:
    """UTF-16 by its byte-order mark, else UTF-8 with or without one: Praat writes all of them."""
    try:
        payload = path.read_bytes()
        encoding = "utf-16" if payload[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return payload.decode(encoding)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: neither UTF-8 nor UTF-16 ({error.reason})") from error


def textgrid_words(text: str, name: str) -> Words:
    """The words tier of a TextGrid in long or short format, found by name: ``words``, ``word``, or
    ``SPEAKER - words`` (of several speakers all); the only interval tier needs no name."""
    from praatio.utilities import errors, textgrid_io

    try:
        grid = textgrid_io.parseTextgridStr(text.replace("\r\n", "\n"), includeEmptyIntervals=True)
        tiers = [tier for tier in grid["tiers"] if tier["class"] == "IntervalTier"]
        found = [tier for tier in tiers
                 if re.fullmatch(r"(.* - )?words?", tier["name"].strip().lower())]
        if not found and len(tiers) == 1:
            found = tiers
        entries = [(label, float(start), float(end))
                   for tier in found for start, end, label in tier["entries"]]
    except (errors.PraatioException, ValueError, KeyError, IndexError, TypeError,
            AttributeError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(f"{name}: no readable TextGrid ({reason})") from error
    if not found:
        names = ", ".join(repr(tier["name"]) for tier in grid["tiers"]) or "none"
        raise DataError(f"{name}: no tier 'words'; there are {names}")
    return _ordered(entries, name)


def ctm_words(text: str, name: str) -> dict[str, Words]:
    """NIST CTM, ``recording channel start duration word [confidence]`` -> words by recording."""
    recordings: dict[str, list] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith((";;", "#")):
            continue
        fields = line.split()
        try:
            start, seconds = float(fields[2]), float(fields[3])
            recordings.setdefault(fields[0], []).append((fields[4], start, start + seconds))
        except (IndexError, ValueError) as error:
            raise DataError(f"{name}:{number}: no line of a CTM file: {line[:60]!r}") from error
    return {key: _ordered(entries, name) for key, entries in recordings.items()}


def audacity_words(text: str, name: str) -> Words:
    """Audacity's label track: ``start<tab>end<tab>word`` lines; frequency lines (from ``\\``) are
    skipped."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        fields = line.split("\t")
        try:
            entries.append((fields[2], _decimal(fields[0]), _decimal(fields[1])))
        except (IndexError, ValueError) as error:
            raise DataError(f"{name}:{number}: not start<tab>end<tab>label: {line[:60]!r}"
                            ) from error
    return _ordered(entries, name)


def json_words(text: str, name: str) -> Words:
    """A list of words, or an object with one under ``words``: ``[word, start, end]`` each, or
    objects with ``word`` or ``text``, ``start`` and ``end`` (also ``start_time``, ``end_time``)."""
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            content = content["words"]
        entries = []
        for word in content:
            if isinstance(word, dict):
                word = [word.get("word", word.get("text")),
                        word.get("start", word.get("start_time")),
                        word.get("end", word.get("end_time"))]
            label, start, end = word
            if not isinstance(label, str):
                raise ValueError(f"a word is a {type(label).__name__}")
            entries.append((label, float(start), float(end)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: no list of words with times "
                        f"({' '.join(str(error).split())[:80]})") from error
    return _ordered(entries, name)


def _decimal(text: str) -> float:
    return float(text.strip().replace(",", "."))  # Audacity writes the comma of some locales


def _ordered(entries: list[tuple[str, float, float]], name: str) -> Words:
    words = []
    for label, start, end in sorted(entries, key=lambda entry: entry[1:]):
        label = label.strip()
        if label.lower() in SILENCES:
            continue
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
            raise DataError(f"{name}: {label!r} from {start} to {end} s")
        words.append([label, start, end])
    return words
