"""Waveforms and their texts to times: all slots of a clip in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data import features
from qwen3asr_train.data.aligned import SlotExample, collate_slots
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.plan import longest_first
from qwen3asr_train.data.slots import BOTH, SlotPrompts, group_slots, text_groups
from qwen3asr_train.decoding.alignment_long import Align, Spans, cut_at_pauses, piece_by_piece
from qwen3asr_train.decoding.generate import autocast
from qwen3asr_train.decoding.timestamps import repair_times
from qwen3asr_train.errors import UserError
from qwen3asr_train.models.aligner import Aligner

LEVELS = ("word", "sentence", "paragraph")


class Aligned(NamedTuple):
    """A unit, sentence or paragraph and when it is said (s)."""

    text: str
    start: float
    end: float


class Clip(NamedTuple):
    """A waveform, float32 ``(samples,)`` at 16 kHz, its units, and how many slots are behind each.
    """

    waveform: np.ndarray
    units: Sequence[str]
    slots: Sequence[int]


@dataclass
class ForcedAligner:
    """Times of words, sentences or paragraphs.

    Recordings longer than ``max_seconds`` are aligned in pieces, ``min_seconds`` and longer where
    pauses allow it (None: half of ``max_seconds``); ``batch_seconds``: padded
    seconds of audio in one forward pass. ``window``: attention window of the encoder in seconds,
    None: the checkpoint's. ``coarse``: another aligner, which need only be about right and takes
    recordings of any length (CTC): it tells which words a piece holds. Without it a piece is as
    long as it can be and cut where the one before was found to end, and what goes wrong in one goes
    wrong in the next.
    """

    model: Aligner
    processor: Qwen3ASRProcessor
    max_seconds: float = 300.0
    min_seconds: float | None = None
    batch_seconds: float = 300.0
    window: int | None = None
    coarse: Align | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        self.prompts = SlotPrompts(self.processor, self.model.config.num_labels)
        if self.min_seconds is not None and not 0 < self.min_seconds <= self.max_seconds:
            raise UserError(f"stage.decoding.min_seconds={self.min_seconds}: above 0, and at most "
                            f"max_seconds={self.max_seconds}")
        self.max_seconds = min(self.max_seconds,
                               self.prompts.num_labels * self.prompts.class_seconds)

    def __call__(self, waveforms: Sequence[np.ndarray], texts: Sequence[str],
                 languages: Sequence[str | None], level: str = "word") -> list[list[Aligned]]:
        """What is said when in each clip. ``languages``: English names, or None.

        Raises DataError for a text without words.
        """
        units = [self.prompts.units(text, language)
                 for text, language in zip(texts, languages, strict=True)]
        if level == "word":
            return [[Aligned(unit, *span) for unit, span in zip(row, spans, strict=True)]
                    for row, spans in zip(units, self.spans(waveforms, units), strict=True)]
        groups = [text_groups(text, row, level) for text, row in zip(texts, units, strict=True)]
        ends = [[end for _, end in row] for row in groups]
        found = self.spans(waveforms, units, ends)
        return [[Aligned(text, spans[first][0], spans[end - 1][1])
                 for (text, end), first in zip(row, [0, *last], strict=False)]
                for row, last, spans in zip(groups, ends, found, strict=True)]

    def spans(self, waveforms: Sequence[np.ndarray], units: Sequence[Sequence[str]],
              ends: Sequence[Sequence[int]] | None = None) -> list[Spans]:
        """Start and end of every unit; with ``ends`` (of groups, see :func:`group_slots`) only the
        start of a group's first and the end of its last are asked for, the others are 0."""
        found: list[Spans] = [[] for _ in waveforms]
        short = [i for i, w in enumerate(waveforms) if len(w) <= self.max_seconds * SAMPLE_RATE]
        slots = [[BOTH] * len(units[i]) if ends is None else group_slots(ends[i]) for i in short]
        times = self.slot_times([Clip(waveforms[i], units[i], row)
                                 for i, row in zip(short, slots, strict=True)])
        for i, row, milliseconds in zip(short, slots, times, strict=True):
            found[i] = _spans_of(row, milliseconds)
        for i in set(range(len(waveforms))) - set(short):
            found[i] = self._long(waveforms[i], units[i])
        return found

    def _long(self, waveform: np.ndarray, units: Sequence[str]) -> Spans:
        """Words of a recording beyond ``max_seconds``."""
        coarse = self.coarse([waveform], [units])[0] if self.coarse else None
        if coarse is None:
            return piece_by_piece(waveform, units, self.max_seconds,
                                  lambda piece, words: self._words([piece], [words])[0])
        least = self.max_seconds / 2 if self.min_seconds is None else self.min_seconds
        pieces = cut_at_pauses(waveform, coarse, (least, self.max_seconds))
        spans = self._words([piece.of(waveform) for piece in pieces],
                            [units[piece.first:piece.stop] for piece in pieces])
        return [tuple(round(min(piece.start + time, piece.end), 3) for time in span)
                for piece, row in zip(pieces, spans, strict=True) for span in row]

    def _words(self, waveforms: Sequence[np.ndarray], units: Sequence[Sequence[str]]
               ) -> list[Spans]:
        slots = [[BOTH] * len(row) for row in units]
        times = self.slot_times([Clip(*clip) for clip in zip(waveforms, units, slots,
                                                             strict=True)])
        return [_spans_of(*row) for row in zip(slots, times, strict=True)]

    @torch.inference_mode()
    def slot_times(self, clips: Sequence[Clip]) -> list[list[int]]:
        """Repaired times in ms of every slot of each clip, in order."""
        found: list[list[int]] = [[] for _ in clips]
        for batch in longest_first([len(clip.waveform) for clip in clips], self.batch_seconds,
                                   features.padded_seconds):
            examples = [self._example(clips[i]) for i in batch]
            device = self.model.device.type
            inputs = {name: tensor.to(device) for name, tensor in
                      collate_slots(examples, self.prompts.pad_id).items()}
            if self.window:
                inputs["window_chunks"] = torch.tensor(self.window)
            is_slot = inputs["input_ids"] == self.prompts.slot_id
            with autocast(device):
                classes = self.model.slot_logits(inputs, is_slot).argmax(-1)
            counts = is_slot.sum(1).tolist()
            for i, row in zip(batch, classes.cpu().split(counts), strict=True):
                found[i] = repair_times(
                    (row.float() * self.processor.timestamp_segment_time).tolist())
        return found

    def _example(self, clip: Clip) -> SlotExample:
        mel = features.log_mel(clip.waveform)
        ids = self.prompts.ids(features.audio_tokens(len(mel)), clip.units, clip.slots)
        return SlotExample(mel, ids, [])


def _spans_of(slots: Sequence[int], milliseconds: Sequence[int]) -> Spans:
    """Start and end of each unit in seconds; a unit without a slot has (0, 0), one with a single
    slot ends where it starts."""
    spans, times = [], iter(milliseconds)
    for count in slots:
        pair = [round(next(times) / 1000, 3) for _ in range(count)]
        spans.append((pair[0], pair[-1]) if pair else (0.0, 0.0))
    return spans
