"""Waveforms of any length to language and text."""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3ASRProcessor

from qwen3asr_train.data import features
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.augment_join import join_texts
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.plan import longest_first
from qwen3asr_train.decoding.generate import Model, autocast, generate, prompts_for
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.pauses import split_at_pauses, split_at_quiet
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.text import split_output
from qwen3asr_train.models.aut import AuT


@dataclass(frozen=True)
class Transcript:
    """``language`` is None where no speech was found or the model did not say. ``confidence``: the
    geometric mean of the tokens' probabilities, weighted by length over pieces."""

    language: str | None
    text: str
    confidence: float
    tokens: int


@dataclass
class Transcriber:
    """Batched greedy transcription; audio beyond ``max_piece_seconds`` is cut where it is quiet,
    and, with ``min_piece_seconds``, at every pause of at least ``pause_seconds`` that is at least
    that far behind the cut before. Pieces so cut keep half of ``pause_seconds`` at either end.

    ``language`` forces a language by prefilling ``language X<asr_text>``. ``window``: attention
    window of the encoder in seconds, None: the checkpoint's. An answer that ends in a loop is cut
    back to its first round, and one with more tokens than anybody can say is cut (``guard``).
    """

    model: Model
    processor: Qwen3ASRProcessor
    language: str | None = None
    context: str = ""
    max_new_tokens: int = 256
    max_piece_seconds: float = 30.0
    min_piece_seconds: float | None = None
    pause_seconds: float = 0.2
    batch_seconds: float = 120.0
    window: int | None = None
    guard: RepetitionGuard = field(default_factory=RepetitionGuard)

    def __post_init__(self) -> None:
        self.model.eval()
        if self.context and isinstance(self.model, AuT):
            raise UserError("stage.context: an AuT model takes no context; a recogniser of "
                            "stage=sft does")
        check_pieces(self.min_piece_seconds, self.max_piece_seconds, self.pause_seconds)
        self._prompts = prompts_for(self.model, self.processor.tokenizer)
        self._prefill = self._prompts.prefill(self.language) if self.language else []

    def __call__(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """float32 ``(samples,)`` at 16 kHz each -> transcripts, in order."""
        pieces = [(owner, piece) for owner, waveform in enumerate(waveforms)
                  for piece in self._split(waveform)]
        results: list[Transcript | None] = [None] * len(pieces)
        for batch in longest_first([len(piece) for _, piece in pieces], self.batch_seconds,
                                   features.padded_seconds):
            found = self._transcribe([pieces[i][1] for i in batch])
            for place, result in zip(batch, found, strict=True):
                results[place] = result
        joined: list[list[Transcript]] = [[] for _ in waveforms]
        for (owner, _), result in zip(pieces, results, strict=True):
            joined[owner].append(result)
        return [join_transcripts(parts) for parts in joined]

    def _split(self, waveform: np.ndarray) -> list[np.ndarray]:
        least, most = self.min_piece_seconds, self.max_piece_seconds
        if least is None or len(waveform) <= most * SAMPLE_RATE:
            return split_at_quiet(waveform, most)
        return split_at_pauses(waveform, (least, most), self.pause_seconds, self.pause_seconds / 2)

    def _transcribe(self, pieces: list[np.ndarray]) -> list[Transcript]:
        examples = []
        for piece in pieces:
            mel = features.log_mel(piece)
            prompt = self._prompts.prompt(features.audio_tokens(len(mel)), self.context)
            examples.append(Example(mel, prompt + self._prefill, []))
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in collate(
            examples, self._prompts.pad_id, with_prompts=True).items()}
        if self.window:
            inputs["window_chunks"] = torch.tensor(self.window)
        with autocast(device.type):
            rows = generate(self.model, inputs, self.max_new_tokens)
        transcripts = []
        for row, piece in zip(rows, pieces, strict=True):
            tokens = self.guard.cut(row.tokens, len(piece) / SAMPLE_RATE)
            language, text = read_answer(self.processor.tokenizer, tokens)
            transcripts.append(Transcript(self.language or language, text, row.confidence,
                                          len(tokens) + 1))
        return transcripts


def read_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> tuple[str | None, str]:
    """Language and words of an answer; half a character at its end is left out."""
    language, text = split_output(tokenizer.decode(tokens))
    return language, text.replace("\N{REPLACEMENT CHARACTER}", "").strip()


def check_pieces(least: float | None, most: float, pause: float) -> None:
    """UserError for lengths of pieces and pauses that there are not."""
    if most <= 0 or (least is not None and not 0 <= least <= most):
        raise UserError(f"stage.decoding.min_piece_seconds={least}, max_piece_seconds={most}: the "
                        "one from 0 to the other, or null")
    if pause <= 0:
        raise UserError(f"stage.decoding.pause_seconds={pause}: above 0")


def join_transcripts(parts: list[Transcript]) -> Transcript:
    """Texts in order, without a space between two scripts that use none; the commonest language."""
    languages = [part.language for part in parts if part.language]
    tokens = sum(part.tokens for part in parts)
    log_confidence = sum(part.tokens * math.log(max(part.confidence, 1e-300)) for part in parts)
    return Transcript(Counter(languages).most_common(1)[0][0] if languages else None,
                      join_texts([part.text for part in parts]),
                      math.exp(log_confidence / tokens), tokens)

