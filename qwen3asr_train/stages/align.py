"""Alignment: an audio file and its text to the times of words, sentences or paragraphs."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from qwen3asr_train.data.audio import SAMPLE_RATE, decode
from qwen3asr_train.decoding.alignment import LEVELS
from qwen3asr_train.decoding.alignment_formats import FORMATS, SENTENCE_FORMATS, as_text
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.languages import language_name
from qwen3asr_train.evaluation.report_alignment import AlignmentPicture, alignment_page
from qwen3asr_train.models import aligner
from qwen3asr_train.runtime.metrics import write_atomically
from qwen3asr_train.stages.alignment_scoring import ctc_aligners, forced_aligner


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Align ``audio`` with ``stage.text``; write the result to ``stage.out`` or stdout."""
    stage = config.stage
    level = chosen_level(stage)
    if not isinstance(config.audio, str) or not Path(config.audio).is_file():
        raise UserError(f"audio={config.audio}: no such file; name the one to align")
    try:
        language = language_name(stage.language)
    except ValueError as error:
        raise UserError(f"stage.language: {error}") from error
    text = read_text(str(stage.text))
    waveform = decode(Path(config.audio))
    model, processor = aligner.load(str(stage.init_from), config.model.attn_implementation)
    align = forced_aligner(model, processor, config, ctc_aligners(config))
    try:
        spans = align([waveform], [text], [language], level)[0]
    except DataError as error:
        raise UserError(f"stage.text: {error}") from error
    written = as_text(stage.format, spans, name=config.audio, language=language, level=level,
                      duration=len(waveform) / SAMPLE_RATE)
    if stage.out is None:
        sys.stdout.write(written)
        sys.stdout.flush()
    else:
        write_file(stage.out, written)
    if stage.picture is not None:
        clip = AlignmentPicture(config.audio, waveform, [span.text for span in spans],
                                [(span.start, span.end) for span in spans])
        write_file(stage.picture, alignment_page(clip))
    return {"spans": float(len(spans))}


def chosen_level(stage: DictConfig) -> str:
    """``stage.level``, or what ``auto`` stands for; UserError for a level or format that is none.
    """
    if stage.format not in FORMATS:
        raise UserError(f"stage.format={stage.format}: one of {', '.join(FORMATS)}")
    if stage.level == "auto":
        return "sentence" if stage.format in SENTENCE_FORMATS else "word"
    if stage.level not in LEVELS:
        raise UserError(f"stage.level={stage.level}: one of auto, {', '.join(LEVELS)}")
    return stage.level


def read_text(given: str) -> str:
    """The text itself, or what is in the ``.txt`` file of that name."""
    if not given.lower().endswith(".txt"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"stage.text={given}: {getattr(error, 'strerror', None) or error}"
                        ) from error


def write_file(path: str, text: str) -> None:
    """Write a file whole, its folder made if need be."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
