"""Results of test suites beside published figures, with averages, as JSON, CSV and Markdown.

The Markdown has a table for each suite and then, where there is something to show, tables across
suites: language identification by language, offline against streaming, noise, and context.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen3asr_train.errors import UserError
from qwen3asr_train.runtime.metrics import write_atomically

MISSING = "–"
Cells = tuple[list[str], list[list[str]]]
"""Head and lines of a table."""

_TEXTS = frozenset({"Language", "Suite", "Test set", "Condition"})
_NOISE = re.compile(r"snr_(-?\d+(?:\.\d+)?)")
_TOTALS = frozenset({"utterances", "audio_seconds"})


@dataclass(frozen=True)
class Row:
    """One test set under one condition.

    `metrics`: as from `metrics.score`, and what else there is: `wer_low` and `wer_high` (95 %
    interval), `entity_recall`, `false_alarm`; rates are shares. `paper`: model -> its published
    error rate under this condition, a share. `average_of`: the test sets of an average.
    """

    suite: str
    test_set: str
    condition: str
    metrics: dict[str, float]
    paper: dict[str, float]
    average_of: tuple[str, ...] = ()


def with_averages(rows: Sequence[Row], averages: Mapping[str, Sequence[str]]) -> list[Row]:
    """`rows`, then macro-averages (unweighted means over test sets), as the Qwen3-ASR report has.

    `averages`: name -> test sets of one suite. There is one for each condition under which the
    suite has all of these sets, with the metrics and published figures that all of them have.
    Utterances and seconds are added up; intervals are left out, since the mean of bounds is none.

    Raises:
        UserError: an average without sets, or with the name of a set; a row that is there twice.
    """
    found = {(row.suite, row.condition, row.test_set): row for row in _checked(rows)}
    places = dict.fromkeys((row.suite, row.condition) for row in rows)
    made = []
    for name, test_sets in averages.items():
        if not test_sets:
            raise UserError(f"the average {name!r} names no test set")
        if any(row.test_set == name for row in rows):
            raise UserError(f"the average {name!r} has the name of a test set")
        for place in places:
            parts = [found[key] for key in ((*place, test_set) for test_set in test_sets)
                     if key in found]
            if len(parts) == len(test_sets):
                made.append(Row(place[0], name, place[1], _mean([part.metrics for part in parts]),
                                _mean([part.paper for part in parts]), tuple(test_sets)))
    return [*rows, *made]


def _checked(rows: Sequence[Row]) -> Sequence[Row]:
    seen = set()
    for row in rows:
        key = (row.suite, row.test_set, row.condition)
        if key in seen:
            raise UserError(f"two results of {row.suite} {row.test_set} under {row.condition}")
        seen.add(key)
    return rows


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in parts[0] if not name.endswith(("_low", "_high"))
             and all(math.isfinite(part.get(name, math.nan)) for part in parts)]
    return {name: math.fsum(part[name] for part in parts) / (1 if name in _TOTALS else len(parts))
            for name in names}


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write suite.json, suite.csv and suite.md into `folder`, each as a whole.

    JSON: the rows as objects; numbers that are not finite are null. CSV: one line a number
    (`suite,set,condition,metric,value`), published figures as metric `paper/MODEL`.

    Raises:
        UserError: a row that is there twice.
    """
    _checked(rows)
    folder.mkdir(parents=True, exist_ok=True)
    listed = [asdict(row) | {kind: {name: value if math.isfinite(value) else None
                                    for name, value in getattr(row, kind).items()}
                             for kind in ("metrics", "paper")} for row in rows]
    write_atomically(folder / "suite.json",
                     json.dumps(listed, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(folder / "suite.csv", _csv(rows))
    write_atomically(folder / "suite.md", markdown(rows))


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("suite", "set", "condition", "metric", "value"))
    for row in rows:
        values = row.metrics | {f"paper/{model}": value for model, value in row.paper.items()}
        writer.writerows((row.suite, row.test_set, row.condition, name, value)
                         for name, value in values.items() if math.isfinite(value))
    return text.getvalue()


@dataclass(frozen=True)
class Table:
    """Cells as Markdown: a head and lines, whose averages are bold (``**``)."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """With its title; names to the left and figures to the right."""
        rule = [":--" if title in _TEXTS else "--:" for title in self.head]
        return f"## {self.title}\n\n" + "".join(
            f"| {' | '.join(cells)} |\n" for cells in (self.head, rule, *self.lines))


NOTE = ("Error rates in percent (WER; CER for Chinese, Cantonese, Japanese, Korean and Thai), in "
        "brackets their 95 % interval. Averages are means over test sets.\n")


def markdown(rows: Sequence[Row]) -> str:
    """The tables as Markdown."""
    return "\n".join([NOTE, *(table.markdown() for table in make_tables(rows))])


def make_tables(rows: Sequence[Row]) -> list[Table]:
    """The tables that have lines; rates in percent, what is missing as an en dash."""
    suites = list(dict.fromkeys(row.suite for row in rows))
    rows = [row for suite in suites for row in _sets_first(r for r in rows if r.suite == suite)]
    tables = [Table(_plain(suite), *_suite([row for row in rows if row.suite == suite]))
              for suite in suites]
    tables += [Table("LID by language", *_lid(rows)),
               Table("Offline against streaming", *_streaming(rows)),
               Table("Noise", *_noise(rows)),
               Table("Contexts and sounds", *_context(rows))]
    return [table for table in tables if table.lines]


def _sets_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: bool(row.average_of))  # stable


def _by_set(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(suite, set) -> condition -> row."""
    sets: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        sets.setdefault((row.suite, row.test_set), {})[row.condition] = row
    return sets


def _conditions(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.condition for row in rows))


def _suite(rows: Sequence[Row]) -> Cells:
    # Noise levels have a table of their own, and would make this one too wide.
    conditions = [c for c in _conditions(rows) if not _NOISE.fullmatch(c)] or _conditions(rows)
    rows = [row for row in rows if row.condition in conditions]
    columns = [(_plain(condition), condition, _error_rate) for condition in conditions]
    for title, metric in (("MER", "mer"), ("LID", "lid_accuracy")):
        having = _conditions(row for row in rows if metric in row.metrics)
        columns += [(title if len(conditions) == 1 else f"{title} {_plain(condition)}", condition,
                     lambda row, metric=metric: _percent(row.metrics.get(metric)))
                    for condition in having]
    sets = _by_set(rows)
    papers = _paper_columns(rows)
    lines = []
    for (_, name), found in sets.items():
        cells = [cell(found[condition]) if condition in found else MISSING
                 for _, condition, cell in columns]
        cells += [_percent(found[condition].paper.get(model)) if condition in found else MISSING
                  for _, model, condition in papers]
        lines.append(_bold_if(found, [_plain(name), *cells]))
    head = ["Test set", *(title for title, *_ in columns), *(title for title, *_ in papers)]
    return (head, lines)


def _paper_columns(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(title, model, condition to look in): one column a model if what was published for all its
    sets is that of one condition, else one for each condition."""
    columns = []
    for model in dict.fromkeys(model for row in rows for model in row.paper):
        having = _by_set([row for row in rows if model in row.paper]).values()
        conditions = _conditions(row for found in having for row in found.values())
        covering = [c for c in conditions if all(c in found for found in having)]
        agreed = all(len({row.paper[model] for row in found.values()}) == 1 for found in having)
        if covering and agreed:
            columns.append((_plain(f"{model} (paper)"), model, covering[0]))
        else:
            columns += [(_plain(f"{model} (paper, {c})"), model, c) for c in conditions]
    return columns


def _lid(rows: Sequence[Row]) -> Cells:
    prefix = "lid_accuracy/"
    rows = [row for row in rows if not row.average_of
            and any(name.startswith(prefix) for name in row.metrics)]
    conditions = _conditions(rows)
    lines = []
    for (suite, name), found in _by_set(rows).items():
        languages = {metric.removeprefix(prefix) for row in found.values()
                     for metric in row.metrics if metric.startswith(prefix)}
        lines += [[_plain(language), _plain(suite), _plain(name),
                   *(_percent(found[c].metrics.get(prefix + language)) if c in found else MISSING
                     for c in conditions)]
                  for language in sorted(languages, key=lambda n: (n == "None", n))]
    return (["Language", "Suite", "Test set", *map(_plain, conditions)], lines)


def _streaming(rows: Sequence[Row]) -> Cells:
    sets = {place: found for place, found in _by_set(rows).items()
            if {"offline", "streaming"} <= found.keys()}
    models = list(dict.fromkeys(
        model for found in sets.values() for model in found["offline"].paper
        if any(model in other["streaming"].paper for other in sets.values())))
    lines = []
    for (suite, name), found in sets.items():
        offline, streaming = found["offline"], found["streaming"]
        ratios = [_ratio(streaming.paper.get(model), offline.paper.get(model)) for model in models]
        lines.append(_bold_if(found, [
            _plain(suite), _plain(name), _error_rate(offline), _error_rate(streaming),
            _ratio(streaming.metrics.get("wer"), offline.metrics.get("wer")), *ratios]))
    return (["Suite", "Test set", "offline", "streaming", "ratio",
                   *(_plain(f"{model} ratio (paper)") for model in models)], lines)


def _noise(rows: Sequence[Row]) -> Cells:
    noisy = [row for row in rows if _NOISE.fullmatch(row.condition)]
    levels = sorted(_conditions(noisy), key=lambda c: -float(_NOISE.fullmatch(c)[1]))
    sets = {place: found for place, found in _by_set(rows).items() if found.keys() & set(levels)}
    # What the noise is to be compared with.
    clean = [c for c in ("clean", "offline") if any(c in found for found in sets.values())]
    lines = [_bold_if(found, [_plain(suite), _plain(name),
                              *(_error_rate(found[c]) if c in found else MISSING
                                for c in (*clean, *levels))])
             for (suite, name), found in sets.items()]
    titles = [f"{level.removeprefix('snr_')} dB" for level in levels]
    return (["Suite", "Test set", *clean, *titles], lines)


def _context(rows: Sequence[Row]) -> Cells:
    metrics = ("entity_recall", "false_alarm", "obeyed", "none_rate")
    lines = [_bold_if({row.condition: row}, [
                 _plain(row.suite), _plain(row.test_set), _plain(row.condition), _error_rate(row),
                 *(_percent(row.metrics.get(metric)) for metric in metrics)])
             for row in rows if row.metrics.keys() & set(metrics)]
    return (["Suite", "Test set", "Condition", "Error rate", "Entity recall", "False alarm",
             "Orders obeyed", "Sounds without text"], lines)


def _error_rate(row: Row) -> str:
    if not row.average_of and not any(name.startswith("wer/") for name in row.metrics) and \
            "nonspeech_false_rate" in row.metrics:
        return MISSING  # nothing is said: there is no unit to divide by
    low, high = (_percent(row.metrics.get(name)) for name in ("wer_low", "wer_high"))
    interval = f" ({low}–{high})" if MISSING not in (low, high) else ""
    return _percent(row.metrics.get("wer")) + interval


def _percent(share: float | None) -> str:
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above is not None and below else MISSING


def _plain(name: str) -> str:
    """A name that cannot end its cell."""
    return " ".join(name.split()).replace("\\", "\\\\").replace("|", "\\|")


def _bold_if(found: Mapping[str, Row], cells: list[str]) -> list[str]:
    average = any(row.average_of for row in found.values())
    return [f"**{cell}**" if average and cell != MISSING else cell for cell in cells]
