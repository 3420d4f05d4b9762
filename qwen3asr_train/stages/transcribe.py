"""Transcription: audio files of any length and format to lines of language and text."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from qwen3asr_train.data.audio import EXTENSIONS, decode
from qwen3asr_train.decoding.generate import load
from qwen3asr_train.decoding.transcriber import Transcriber
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.text import language_name
from qwen3asr_train.stages.evaluate import scoring_device


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Print one line a file; files that cannot be read go to stderr and make the exit status 1."""
    stage = config.stage
    if stage.format not in ("text", "jsonl"):
        raise UserError(f"stage.format={stage.format}: text or jsonl")
    files = list(audio_files(config.audio))
    try:
        language = language_name(stage.language)
    except ValueError as error:
        raise UserError(f"stage.language: {error}") from error
    model, processor = load(str(stage.init_from), config.model.attn_implementation)
    transcriber = Transcriber(
        model.to(scoring_device(config)), processor, language=language,
        context=stage.context, max_new_tokens=stage.decoding.max_new_tokens,
        max_piece_seconds=stage.max_piece_seconds, batch_seconds=stage.batch_seconds)
    failed = 0
    for group in _groups(files, stage.batch_seconds):
        readable = []
        for file in group:
            try:
                readable.append((file, decode(file)))
            except DataError as error:
                failed += 1
                print(f"error: {error}", file=sys.stderr)
        for (file, waveform), result in zip(
                readable, transcriber([waveform for _, waveform in readable]), strict=True):
            if stage.format == "jsonl":
                row = {"audio": str(file), "language": result.language, "text": result.text,
                       "confidence": round(result.confidence, 4),
                       "duration": round(len(waveform) / 16_000, 3)}
                print(json.dumps(row, ensure_ascii=False), flush=True)
            else:
                print(f"{file}\t{result.language}\t{result.text}", flush=True)
    return {"files": float(len(files)), "failed": float(failed)}


def audio_files(given) -> Iterator[Path]:
    """A file, a folder (searched through), or a list of them -> audio files, sorted."""
    if given is None:
        raise UserError("name what to transcribe: audio=FILE_OR_FOLDER")
    for item in [given] if isinstance(given, str) else list(given):
        path = Path(item)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS)
            if not found:
                raise UserError(f"audio={item}: no {'/'.join(EXTENSIONS)} file in this folder")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"audio={item}: no such file or folder")


def _groups(files: list[Path], batch_seconds: float) -> Iterator[list[Path]]:
    """Files a few at a time, so that results appear early and memory stays bounded."""
    size = max(1, int(batch_seconds // 5))
    for start in range(0, len(files), size):
        yield files[start:start + size]
