"""Transcription: audio files of any length and format, or a stream, to lines of language and text.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.cells import cell_len
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.audio import EXTENSIONS, LOOKED_AT, SAMPLE_RATE, decode
from qwen3asr_train.data.slots import split_units
from qwen3asr_train.decoding.alignment import Aligned, ForcedAligner
from qwen3asr_train.decoding.generate import Model, load
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.live import Event, LiveTranscriber
from qwen3asr_train.decoding.live_pcm import pcm_pieces
from qwen3asr_train.decoding.transcriber import Transcriber, Transcript
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.languages import language_name
from qwen3asr_train.models import aligner
from qwen3asr_train.stages.scoring import scoring_device


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Print one line a file; files that cannot be read go to stderr and make the exit status 1."""
    stage = config.stage
    if stage.format not in ("text", "jsonl"):
        raise UserError(f"stage.format={stage.format}: text or jsonl")
    from_stdin = config.audio == "-"
    if from_stdin and not stage.streaming:
        raise UserError("audio=- is a stream: say stage.streaming=true")
    files = [] if from_stdin else list(audio_files(config.audio))
    try:
        language = language_name(stage.language)
    except ValueError as error:
        raise UserError(f"stage.language: {error}") from error
    model, processor = load(str(stage.init_from), config.model.attn_implementation)
    model = model.to(scoring_device(config))
    guard = RepetitionGuard(**stage.guard)
    align = build_word_times(config)
    if stage.streaming:
        return stream(stage, files, model, processor, language, guard)
    transcriber = Transcriber(
        model, processor, language=language,
        context=stage.context, max_new_tokens=stage.decoding.max_new_tokens,
        max_piece_seconds=stage.decoding.max_piece_seconds,
        min_piece_seconds=stage.decoding.min_piece_seconds,
        pause_seconds=stage.decoding.pause_seconds,
        batch_seconds=stage.batch_seconds, guard=guard)
    failed: set[Path] = set()
    for group in _groups(readable(files, failed), stage.batch_seconds):
        for (file, waveform), result in zip(
                group, transcriber([waveform for _, waveform in group]), strict=True):
            words = []
            try:
                words = align(waveform, result) if align else []
            except UserError as error:  # a language that the aligner cannot cut into words
                failed.add(file)
                print(f"error: {file}: {error}", file=sys.stderr)
            if stage.format == "jsonl":
                row = {"audio": str(file), "language": result.language, "text": result.text,
                       "confidence": round(result.confidence, 4),
                       "duration": round(len(waveform) / 16_000, 3)}
                row |= {"words": [word._asdict() for word in words]} if align else {}
                print(json.dumps(row, ensure_ascii=False), flush=True)
            else:
                print(f"{file}\t{result.language}\t{result.text}", flush=True)
                for word in words:
                    print(f"\t{word.start:.3f}\t{word.end:.3f}\t{word.text}", flush=True)
    return {"files": float(len(files)), "failed": float(len(failed))}


def build_word_times(config: DictConfig
                     ) -> Callable[[np.ndarray, Transcript], list[Aligned]] | None:
    """With ``stage.timestamps``: a waveform and its transcript to the times of its words."""
    stage = config.stage
    if not stage.timestamps:
        return None
    if stage.aligner is None:
        raise UserError("stage.timestamps=true needs a forced aligner: aligner=RUN/model")
    if stage.streaming:
        raise UserError("stage.timestamps: word times come with whole files, not with a stream")
    model, processor = aligner.load(str(stage.aligner), config.model.attn_implementation)
    align = ForcedAligner(model.to(scoring_device(config)), processor)

    def word_times(waveform: np.ndarray, transcript: Transcript) -> list[Aligned]:
        if not split_units(processor, transcript.text, transcript.language):
            return []
        return align([waveform], [transcript.text], [transcript.language])[0]

    return word_times


def stream(stage: DictConfig, files: list[Path], model: Model, processor: Qwen3ASRProcessor,
           language: str | None, guard: RepetitionGuard) -> dict[str, float]:
    """Print the events of each file, or of stdin if there are no files, as they come."""
    options = OmegaConf.to_container(stage.live)

    def transcriber() -> LiveTranscriber:
        return LiveTranscriber(model, processor, language=language, context=stage.context,
                               guard=guard, **options)

    if not files:
        if sys.stdin.isatty():
            raise UserError("audio=- reads raw samples from a pipe, and stdin is a terminal")
        print_events(transcriber(), _until_interrupt(pcm_pieces(sys.stdin.buffer)),
                     EventPrinter("-", stage.format))
    failed: set[Path] = set()
    for file, waveform in readable(files, failed):
        pieces = (waveform[at:at + SAMPLE_RATE] for at in range(0, len(waveform), SAMPLE_RATE))
        print_events(transcriber(), pieces, EventPrinter(str(file), stage.format))
    return {"files": float(len(files)), "failed": float(len(failed))}


def print_events(live: LiveTranscriber, pieces: Iterable[np.ndarray], show: "EventPrinter") -> None:
    """Everything that was heard is printed before a DataError of the pieces is raised again."""
    failure = None
    try:
        for piece in pieces:
            for event in live.accept(piece):
                show(event)
    except DataError as error:
        failure = error
    for event in live.finish():
        show(event)
    if failure is not None:
        raise failure


def _until_interrupt(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Ctrl-C while waiting for audio ends the stream, and its last words are still printed."""
    try:
        yield from pieces
    except KeyboardInterrupt:
        return


@dataclass
class EventPrinter:
    """Events to stdout as JSON lines; or as text, final ones to stdout and partial ones to stderr,
    on a terminal in one line that is written over."""

    name: str
    format: str

    def __call__(self, event: Event) -> None:
        """Segments without words are left out of text."""
        if self.format == "jsonl":
            row = asdict(event) | {"start": round(event.start, 3), "end": round(event.end, 3),
                                   "audio": self.name}
            print(json.dumps(row, ensure_ascii=False), flush=True)
            return
        over_write = sys.stderr.isatty()
        if event.kind == "partial":
            line = f"\r{_last_columns(event.text)}\x1b[K" if over_write else \
                f"{self.name}\t{event.language}\t{event.text}\n"
            print(line, end="", file=sys.stderr, flush=True)
            return
        if over_write:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if event.text:
            print(f"{self.name}\t{event.language}\t{event.text}", flush=True)


def _last_columns(text: str) -> str:
    """The end of ``text`` that fits into a line of the terminal; hanzi take two columns."""
    width = shutil.get_terminal_size().columns - 1
    while cell_len(text) > width:
        text = text[1:]
    return text


def audio_files(given) -> Iterator[Path]:
    """A file, a folder (searched through), or a list of them -> audio files, sorted."""
    if given is None:
        raise UserError("name what to transcribe: audio=FILE_OR_FOLDER")
    for item in [given] if isinstance(given, str) else list(given):
        if not str(item).strip():
            raise UserError("audio= is empty: name a file or folder (audio=. is this one)")
        path = Path(item)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in LOOKED_AT)
            if not found:
                raise UserError(f"audio={item}: no {'/'.join(EXTENSIONS)} file in this folder")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"audio={item}: no such file or folder")


def readable(files: list[Path], failed: set[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Files and their waveforms; those that cannot be read are told, and put into ``failed``."""
    for file in files:
        try:
            yield file, decode(file)
        except DataError as error:
            failed.add(file)
            print(f"error: {error}", file=sys.stderr)


def _groups(heard: Iterable[tuple[Path, np.ndarray]], batch_seconds: float
            ) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """About ``batch_seconds`` at a time, so that results appear early and memory stays bounded."""
    group, seconds = [], 0.0
    for file, waveform in heard:
        group.append((file, waveform))
        seconds += len(waveform) / SAMPLE_RATE
        if seconds >= batch_seconds:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group
