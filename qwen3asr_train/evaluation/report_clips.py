"""Single utterances in the report: aligned transcripts, sound and log-mel picture."""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
import soundfile
from PIL import Image
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from qwen3asr_train.evaluation.languages import known_language
from qwen3asr_train.evaluation.metrics import Counts, Utterance, align, edit_counts
from qwen3asr_train.evaluation.report_chart import pool_columns
from qwen3asr_train.evaluation.report_svg import format_duration
from qwen3asr_train.evaluation.text import scoring_unit

SAMPLE_RATE = 16_000
MAX_CLIP_SECONDS = 20.0
MAX_CELLS = 160

_EQUAL_RUN = 14  # longer stretches without an error are folded
_EQUAL_EDGE = 4  # units of such a stretch that stay on either side
_RAW_LIMIT = 1_500  # characters of a transcript as written
_PICTURE_COLUMNS = 480
_DYNAMIC_RANGE = 6.0  # decades of power, 60 dB

Row = tuple[str | None, str | None, str]

LEGEND = (
    '<ul class="legend ops" aria-label="How to read the alignments">'
    '<li><span class="cell equal"><span>same</span><span>same</span></span>correct</li>'
    '<li><span class="cell substitute" data-op="S"><span>said</span><span>heard</span></span>'
    "S: substituted</li>"
    '<li><span class="cell delete" data-op="D"><span>said</span><span>·</span></span>'
    "D: deleted</li>"
    '<li><span class="cell insert" data-op="I"><span>·</span><span>heard</span></span>'
    "I: inserted</li></ul>"
)


def counts_of(utterance: Utterance) -> Counts:
    """Edit operations of one utterance in its own scoring unit."""
    return edit_counts(*utterance.units())


def worst(utterances: Sequence[Utterance], limit: int) -> list[Utterance]:
    """Utterances with errors, highest error rate first and among equals the most errors first."""
    ranked = [(counts_of(utterance), utterance) for utterance in utterances]
    ranked = [pair for pair in ranked if pair[0].errors]
    ranked.sort(key=lambda pair: (-pair[0].rate, -pair[0].errors, pair[1].key))
    return [utterance for _, utterance in ranked[:limit]]


def choose_clips(
    utterances: Sequence[Utterance], keys: Sequence[str], limit: int = 8
) -> list[Utterance]:
    """Utterances to listen to among `keys`: half the worst, half perfect, either filling up."""
    available = set(keys)
    heard = list({u.key: u for u in utterances if u.key in available}.values())
    wrong = worst(heard, limit)
    keys_with_errors = {u.key for u in worst(heard, len(heard))}
    # Speech before silence: a perfect transcript of nothing is not much to listen to.
    perfect = sorted(
        (u for u in heard if u.key not in keys_with_errors), key=lambda u: not u.reference
    )
    shown_wrong = wrong[: max(limit // 2, limit - len(perfect))]
    return shown_wrong + perfect[: limit - len(shown_wrong)]


def _fold(rows: list[Row]) -> list[Row]:
    """Replaces the middle of long correct stretches by one row `(count, None, "fold")`."""
    folded: list[Row] = []
    run: list[Row] = []
    for row in [*rows, (None, None, "end")]:
        if row[2] == "equal":
            run.append(row)
            continue
        if len(run) > _EQUAL_RUN:
            count = len(run) - 2 * _EQUAL_EDGE
            run = [*run[:_EQUAL_EDGE], (str(count), None, "fold"), *run[-_EQUAL_EDGE:]]
        folded += [*run, row]
        run = []
    return folded[:-1]


_OPS = {"substitute": "substituted", "delete": "deleted", "insert": "inserted"}


def _cell(row: Row, unit: str) -> str:
    reference, hypothesis, op = row
    if op == "fold":
        plural = "characters" if unit == "char" else "words"
        title = f"{reference} correct {plural} not shown"
        return f'<span class="cell fold" title="{title}"><span>⋯ {reference} ⋯</span></span>'
    letter = "" if op == "equal" else f' data-op="{op[0].upper()}" title="{_OPS[op]}"'
    top, bottom = escape(reference or "·"), escape(hypothesis or "·")
    return f'<span class="cell {op}"{letter}><span>{top}</span><span>{bottom}</span></span>'


def alignment_html(utterance: Utterance) -> str:
    """Reference over hypothesis, unit by unit as scored, marked by colour, line and letter."""
    unit = scoring_unit(utterance.language)
    reference, hypothesis = utterance.units()
    if not reference and not hypothesis:
        return '<p class="note">No words on either side.</p>'
    rows = _fold(align(reference, hypothesis))
    cells = "".join(_cell(row, unit) for row in rows[:MAX_CELLS])
    if len(rows) > MAX_CELLS:
        cells += f'<span class="cell fold"><span>{len(rows) - MAX_CELLS} more</span></span>'
    return f'<div class="alignment {unit}" dir="auto">{cells}</div>'


def _as_written(utterance: Utterance) -> str:
    texts = []
    for label, text in (("Reference", utterance.reference), ("Hypothesis", utterance.hypothesis)):
        cut = text if len(text) <= _RAW_LIMIT else text[:_RAW_LIMIT] + " …"
        shown = f'<span dir="auto">{escape(cut)}</span>' if cut.strip() else "<i>empty</i>"
        texts.append(f"<dt>{label}</dt><dd>{shown}</dd>")
    return f"<details><summary>As written</summary><dl>{''.join(texts)}</dl></details>"


def _verdict(utterance: Utterance) -> str:
    counts = counts_of(utterance)
    measure = "CER" if scoring_unit(utterance.language) == "char" else "WER"
    if not counts.errors:
        return '<span class="badge good">✓ no errors</span>'
    if not counts.reference_units:
        return f'<span class="badge bad">✗ {counts.insertions} inserted on no speech</span>'
    return (
        f'<span class="badge bad">✗ {measure} {100 * counts.rate:.0f} %</span>'
        f'<span class="badge">{counts.errors} of {counts.reference_units}</span>'
    )


def _language_badge(utterance: Utterance) -> str:
    said = known_language(utterance.language) or "no language"
    heard = known_language(utterance.predicted_language) or "no language"
    if said == heard:
        return f'<span class="badge">{escape(said)}</span>'
    return f'<span class="badge bad">{escape(said)}, taken for {escape(heard)}</span>'


def utterance_card(utterance: Utterance, waveform: np.ndarray | None = None) -> str:
    """`<article>` of one utterance; with a waveform (float32, mono, 16 kHz) also to be heard."""
    source = f" · {escape(utterance.source)}" if utterance.source else ""
    sound = "" if waveform is None else _sound(waveform, utterance.key)
    return (
        f'<article class="card"><header><h3>{escape(utterance.key)}</h3>'
        f'<p class="note">{format_duration(utterance.duration)}{source}</p>'
        f'<p class="badges">{_verdict(utterance)}{_language_badge(utterance)}</p></header>'
        f"{sound}{alignment_html(utterance)}{_as_written(utterance)}</article>"
    )


def _sound(waveform: np.ndarray, key: str) -> str:
    samples = np.nan_to_num(np.asarray(waveform, dtype=np.float32).reshape(-1), posinf=0, neginf=0)
    shown = np.clip(samples[: int(MAX_CLIP_SECONDS * SAMPLE_RATE)], -1, 1)
    if not len(shown):
        return '<p class="note">The clip has no samples.</p>'
    seconds = len(shown) / SAMPLE_RATE
    cut = "" if len(shown) == len(samples) else f" (the first {seconds:.0f} s)"
    name = escape(key)
    return (
        f'<figure class="sound"><img alt="Log-mel spectrogram of {name}" '
        f'src="data:image/png;base64,{_base64(log_mel_png(shown))}">'
        f"<figcaption><span>0 s</span><span>log-mel, 0 to 8 kHz{cut}</span>"
        f"<span>{seconds:.1f} s</span></figcaption>"
        f'<audio controls preload="metadata" aria-label="{name}" '
        f'src="data:audio/ogg;base64,{_base64(encode_ogg(shown))}"></audio></figure>'
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def encode_ogg(samples: np.ndarray) -> bytes:
    """Ogg Vorbis of float32 mono samples at 16 kHz, about 5 kB per second."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, "VORBIS", format="OGG") as file:
        # libsndfile's Vorbis encoder keeps a whole write on the stack.
        for start in range(0, len(samples), SAMPLE_RATE):
            file.write(samples[start : start + SAMPLE_RATE])
    return buffer.getvalue()


def log_mel_png(samples: np.ndarray) -> bytes:
    """Picture of the 128-bin log-mel (25 ms windows every 10 ms) that the models are fed with.

    The upper 60 dB are shown, low frequencies at the bottom, at most 480 columns wide.
    """
    log_mel = spectrogram(
        np.pad(samples, (0, max(0, 400 - len(samples)))).astype(np.float64),
        window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        power=2.0,
        mel_filters=mel_filter_bank(201, 128, 0.0, 8000.0, SAMPLE_RATE, "slaney", "slaney"),
        mel_floor=1e-10,
        log_mel="log10",
    )  # (128, frames)
    pooled = pool_columns(log_mel, _PICTURE_COLUMNS)
    shades = np.clip(1 + (pooled - pooled.max()) / _DYNAMIC_RANGE, 0, 1)
    image = Image.fromarray((shades[::-1] * 255).astype(np.uint8))
    palette = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
