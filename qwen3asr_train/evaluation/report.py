"""The page a run leaves behind: one HTML file that opens anywhere, without network or script."""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import numpy as np

from qwen3asr_train.evaluation.languages import known_language
from qwen3asr_train.evaluation.metrics import Utterance, bootstrap_interval, score
from qwen3asr_train.evaluation.report_alignment import AlignmentReport, alignment_section
from qwen3asr_train.evaluation.report_answers import answers_section
from qwen3asr_train.evaluation.report_attention import AttentionMap, attention_section
from qwen3asr_train.evaluation.report_clips import LEGEND, choose_clips, utterance_card, worst
from qwen3asr_train.evaluation.report_svg import (
    Point,
    format_duration,
    format_value,
    is_language,
    line_chart,
    metric_name,
    series_of,
)
from qwen3asr_train.evaluation.report_tables import tables_section
from qwen3asr_train.evaluation.report_windows import WindowScore, windows_section
from qwen3asr_train.evaluation.tables import Row
from qwen3asr_train.evaluation.text import scoring_unit

MAX_CLIPS = 8
MAX_TILES = 12
MAX_WORST = 12
MAX_MORE_CURVES = 24

_PANELS = {
    "Loss": ("loss",),
    "Error rate": ("wer", "cer", "wer_macro"),
    "Language identification": ("lid_accuracy",),
    "Reward": ("reward", "reward_mean"),
    "Alignment, ms": ("aas_ms", "median_ms", "p90_ms"),
    "Learning rate": ("lr", "learning_rate"),
}
_CURVES_PER_PANEL = 5
_FILLS = 5
_COLUMNS = "Language", "Error rate", "Sub", "Del", "Ins", "LID", "Utterances", "Audio"
_LABELS = {
    "wer": "WER",
    "cer": "CER",
    "wer_macro": "WER, mean of languages",
    "lid_accuracy": "Language identified",
    "sentence_accuracy": "Sentences without error",
    "nonspeech_false_rate": "Text on no speech",
    "audio_seconds": "Audio",
    "aas_ms": "AAS, ms",
    "aas_floor_ms": "AAS floor, ms",
    "median_ms": "Median shift, ms",
    "p90_ms": "90 % of shifts, ms",
}

# Belt and braces: even a bug in the escaping could neither run a script nor reach the network.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    headline: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    utterances: Sequence[Utterance],
    clips: Mapping[str, np.ndarray],
    config_yaml: str,
    environment: Mapping[str, str],
    timings: Mapping[str, float],
    windows: Sequence[WindowScore] = (),
    attention: Mapping[str, AttentionMap] = MappingProxyType({}),
    suite: Sequence[Row] = (),
    answers: Sequence[Mapping] = (),
    alignment: AlignmentReport | None = None,
) -> None:
    """Writes the report of a run as one self-contained HTML file, atomically.

    Args:
        path: the file; its folder is made if needed.
        headline: flat figures of the run, most important first. The names of
            `evaluation.metrics.score` are shown as percentages where they are rates.
        history: rows of `metrics.jsonl`; each has `step` and any numbers (`train/loss`, `val/wer`).
            Rows need not share keys; anything not a finite number is left out.
        utterances: what was scored; may be empty.
        clips: waveforms by utterance key, float32, mono, 16 kHz. At most 8 are embedded, half of
            them the worst and half perfect, and the first 20 s of each.
        config_yaml: the composed configuration.
        environment: facts about machine and software.
        timings: seconds spent, by part of the run.
        windows: error rates at attention windows of the audio encoder and in streaming.
        attention: cross-attention by utterance key; the first 6 are drawn.
        suite: results of test sets under conditions.
        answers: samples of reinforcement learning, see `report_answers.answers_section`.
        alignment: figures and pictures of the forced aligner.

    Empty arguments leave their section out.
    """
    sections = {
        "curves": ("Curves", _curves(history)),
        "languages": ("By language", _languages(utterances)),
        "suite": ("Suite", tables_section(suite)),
        "alignment": ("Alignment", alignment_section(alignment)),
        "windows": ("Attention windows", windows_section(windows)),
        "errors": ("Largest errors", _largest_errors(utterances)),
        "answers": ("Answers and rewards", answers_section(answers)),
        "attention": ("Cross-attention", attention_section(attention)),
        "listen": ("Listen", _listen(utterances, clips)),
        "run": ("The run", _run(config_yaml, environment, timings)),
    }
    sections = {anchor: section for anchor, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{a}">{name}</a>' for a, (name, _) in sections.items())
    body = "".join(
        f'<section id="{a}"><h2>{name}</h2>{html}</section>' for a, (name, html) in sections.items()
    )
    css = files("qwen3asr_train.evaluation").joinpath("templates/report.css").read_text("utf-8")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body>"
        '<div class="top"><p class="eyebrow">qwen3asr_train · run report</p>'
        f'<h1 dir="auto">{escape(title)}</h1><p class="lead">{_lead(utterances, timings)}</p>'
        f"<nav>{links}</nav></div><main>{_tiles(headline, utterances)}{body}"
        "<footer>One file without scripts; nothing in it is loaded from elsewhere.</footer>"
        "</main></body></html>\n"
    )
    _write_atomically(Path(path), page)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # A lone surrogate from broken decoding cannot be written as UTF-8.
            file.write(text.encode("utf-8", "replace").decode("utf-8"))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _lead(utterances: Sequence[Utterance], timings: Mapping[str, float]) -> str:
    parts = []
    if utterances:
        languages = {known_language(u.language) for u in utterances} - {None}
        noun = "language" if len(languages) == 1 else "languages"
        seconds = sum(u.duration for u in utterances)
        parts.append(f"{len(utterances):,} utterances scored")
        parts.append(f"{len(languages)} {noun}")
        parts.append(f"{format_duration(seconds)} of audio")
    spent = sum(seconds for seconds in timings.values() if math.isfinite(seconds))
    if spent > 0:
        parts.append(f"{format_duration(spent)} of computing")
    return " · ".join(parts)


def _tiles(headline: Mapping[str, float], utterances: Sequence[Utterance]) -> str:
    notes = _notes(headline, utterances)
    by_language = [key for key in headline if _language_of(key)]
    first = [key for key in headline if key not in by_language][:MAX_TILES]
    tiles = "".join(
        f'<div class="tile"><dt>{escape(_label(key))}</dt><dd><span class="value">'
        f'{format_value(key, headline[key])}</span><span class="note">{notes.get(key, "")}'
        "</span></dd></div>"
        for key in first
    )
    rest = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{format_value(key, headline[key])}</td></tr>'
        for key in headline
        if key not in first
    )
    if rest:
        rest = (
            '<details class="block"><summary>All other figures</summary>'
            f"<table><tbody>{rest}</tbody></table></details>"
        )
    return (f'<dl class="tiles">{tiles}</dl>' if tiles else "") + rest


def _language_of(key: str) -> str | None:
    tail = key.split("/")[-1]
    return tail if "/" in key and is_language(tail) else None


def _label(key: str) -> str:
    *scope, name = key.split("/")
    label = _LABELS.get(name) or name.replace("_", " ").capitalize()
    return " · ".join([label, *scope])


def _notes(headline: Mapping[str, float], utterances: Sequence[Utterance]) -> dict[str, str]:
    """Unit and interval of the error rate, where it is that of these utterances."""
    keys = [key for key in headline if metric_name(key) == "wer" and not _language_of(key)]
    if not utterances or not keys:
        return {}
    total = score(utterances)["wer"]
    low, high = bootstrap_interval(utterances, samples=300)
    in_characters = {scoring_unit(u.language) == "char" for u in utterances}
    unit = {frozenset({True}): "in characters", frozenset({False}): "in words"}.get(
        frozenset(in_characters), "words, or characters by language"
    )
    note = f"{unit}; 95 %: {100 * low:.1f} to {100 * high:.1f}"
    return {key: note for key in keys if math.isclose(headline[key], total, rel_tol=1e-3)}


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    curves = series_of(history)
    panels: dict[str, dict[str, list[Point]]] = {}
    for title, names in _PANELS.items():
        chosen = [k for k in curves if metric_name(k) in names and not _language_of(k)]
        if chosen:
            panels[title] = {key: curves.pop(key) for key in chosen[:_CURVES_PER_PANEL]}
    # "epoch" and such grow with the step and tell nothing.
    rest = [key for key in curves if metric_name(key) != "epoch"][:MAX_MORE_CURVES]
    html = "".join(line_chart(title, chosen) for title, chosen in panels.items())
    html = f'<div class="charts">{html}</div>' if html else ""
    if rest:
        more = "".join(line_chart(key, {key: curves[key]}) for key in rest)
        html += (
            f'<details class="block"{"" if html else " open"}><summary>More curves</summary>'
            f'<div class="charts">{more}</div></details>'
        )
    note = '<p class="note">Over training steps. Point at a curve for its values.</p>'
    return note + html if html else ""


def _languages(utterances: Sequence[Utterance]) -> str:
    if not utterances:
        return ""
    groups: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        groups.setdefault(known_language(utterance.language) or "", []).append(utterance)
    figures = score(utterances)
    scale = max([figures.get(f"wer/{name}", 0.0) for name in groups] + [1e-9])
    names = sorted(groups, key=lambda name: (name == "", name))  # no language comes last
    rows = "".join(_language_row(name, groups[name], scale) for name in names)
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    total = _language_cells("All", "WER/CER", figures, scale)
    return (
        '<p class="note">Errors over reference units of the whole set: words (WER), or characters '
        "(CER) for Chinese, Cantonese, Japanese, Korean and Thai; substitutions, deletions and "
        "insertions are its parts. LID: share with the right language.</p>"
        f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        f"<tfoot><tr>{total}</tr></tfoot></table></div>"
    )


def _language_row(name: str, utterances: list[Utterance], scale: float) -> str:
    measure = {"char": "CER", "mixed": "MER"}.get(scoring_unit(name), "WER")
    return f"<tr>{_language_cells(name or 'No language', measure, score(utterances), scale)}</tr>"


def _language_cells(name: str, measure: str, figures: dict[str, float], scale: float) -> str:
    cells = [format_value(key, figures[key]) for key in ("substitutions", "deletions")]
    cells += [format_value(key, figures[key]) for key in ("insertions", "lid_accuracy")]
    cells += [format_value(key, figures[key]) for key in ("utterances", "audio_seconds")]
    if any(key.startswith("wer/") for key in figures):
        width = min(100.0, 100 * figures["wer"] / scale)
        rate = (
            f'<span class="rate"><b class="measure">{measure}</b><b class="meter">'
            f'<i style="width:{width:.1f}%"></i></b><span>{format_value("wer", figures["wer"])}'
            "</span></span>"
        )
    else:
        # Nothing to divide by: what matters is how often there was text at all.
        share = format_value("nonspeech_false_rate", figures.get("nonspeech_false_rate", math.nan))
        rate = f'<span class="measure">text on no speech</span> {share}'
        cells[:3] = ["–"] * 3
    inner = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<th scope="row">{escape(name)}</th><td>{rate}</td>{inner}'


def _largest_errors(utterances: Sequence[Utterance]) -> str:
    chosen = worst(utterances, MAX_WORST)
    if not chosen:
        return '<p class="note">No errors in any utterance.</p>' if utterances else ""
    cards = "".join(utterance_card(utterance) for utterance in chosen)
    return (
        f'<p class="note">The {len(chosen)} utterances with the highest error rate. '
        "Reference above, hypothesis below, normalised as they are scored.</p>"
        f'{LEGEND}<div class="cards">{cards}</div>'
    )


def _listen(utterances: Sequence[Utterance], clips: Mapping[str, np.ndarray]) -> str:
    chosen = choose_clips(utterances, list(clips), MAX_CLIPS)
    if not chosen:
        return ""
    cards = "".join(utterance_card(utterance, clips[utterance.key]) for utterance in chosen)
    return (
        '<p class="note">The worst and some perfect ones of the clips at hand.</p>'
        f'<div class="cards two">{cards}</div>'
    )


def _run(config_yaml: str, environment: Mapping[str, str], timings: Mapping[str, float]) -> str:
    html = _time_spent(timings)
    if environment:
        facts = "".join(
            f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
            for name, value in environment.items()
        )
        html += f'<div class="panel facts"><dl>{facts}</dl></div>'
    if config_yaml.strip():
        html += (
            '<details class="block"><summary>Configuration</summary>'
            f"<pre>{escape(config_yaml)}</pre></details>"
        )
    return html


def _time_spent(timings: Mapping[str, float]) -> str:
    spent = {name: s for name, s in timings.items() if math.isfinite(s) and s > 0}
    if not spent:
        return ""
    total = sum(spent.values())
    bars, legend = "", ""
    for i, (name, seconds) in enumerate(spent.items()):
        share, fill = 100 * seconds / total, f"f{i % _FILLS}"
        label = f"{escape(name)}: {format_duration(seconds)}, {share:.0f} %"
        bars += f'<i class="{fill}" style="flex:{share:.3f}" title="{label}"></i>'
        legend += (
            f'<li><span class="swatch {fill}"></span>{escape(name)} '
            f"<b>{format_duration(seconds)}</b> {share:.0f} %</li>"
        )
    return (
        f'<p class="note">Time spent, {format_duration(total)} in all</p><div class="panel facts">'
        f'<div class="spent" aria-hidden="true">{bars}</div><ul class="legend">{legend}</ul></div>'
    )
