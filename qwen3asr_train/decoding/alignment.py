"""Waveforms and their texts to times: all slots of a clip in one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data import features
from qwen3asr_train.data.aligned import SlotExample, collate_slots
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.slots import BOTH, SlotPrompts, group_slots, text_groups
from qwen3asr_train.decoding.generate import autocast
from qwen3asr_train.decoding.timestamps import repair_times
from qwen3asr_train.models.aligner import Aligner

LEVELS = ("word", "sentence", "paragraph")

Spans = list[tuple[float, float]]
"""Start and end (s) of each unit."""

_TEXT_SHARE = 0.7  # of the text that a piece of a long recording is expected to hold
_PAUSE_MARGIN = 0.2  # seconds around a pause in which the quietest place is looked for
_FRAME = 160  # samples in one energy frame (10 ms)
_QUIET_FRAMES = 10
_EDGE_SECONDS = 1.0  # words that are said to end so near a piece's end may belong behind it


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

    Recordings longer than ``max_seconds`` are aligned piece by piece; ``batch_seconds``: padded
    seconds of audio in one forward pass. ``window``: attention window of the encoder in seconds,
    None: the checkpoint's.
    """

    model: Aligner
    processor: Qwen3ASRProcessor
    max_seconds: float = 300.0
    batch_seconds: float = 300.0
    window: int | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        self.prompts = SlotPrompts(self.processor, self.model.config.num_labels)
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
            found[i] = align_long(waveforms[i], units[i], self.max_seconds, self._words)
        return found

    def _words(self, waveform: np.ndarray, units: Sequence[str]) -> Spans:
        slots = [BOTH] * len(units)
        return _spans_of(slots, self.slot_times([Clip(waveform, units, slots)])[0])

    @torch.inference_mode()
    def slot_times(self, clips: Sequence[Clip]) -> list[list[int]]:
        """Repaired times in ms of every slot of each clip, in order."""
        found: list[list[int]] = [[] for _ in clips]
        for batch in self._batches([len(clip.waveform) / SAMPLE_RATE for clip in clips]):
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

    def _batches(self, seconds: list[float]) -> list[list[int]]:
        """Indices, longest first, at most ``batch_seconds`` padded seconds together."""
        batches: list[list[int]] = []
        for index in sorted(range(len(seconds)), key=lambda i: -seconds[i]):
            longest = seconds[batches[-1][0]] if batches else 0.0
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_seconds:
                batches.append([])
            batches[-1].append(index)
        return batches


def _spans_of(slots: Sequence[int], milliseconds: Sequence[int]) -> Spans:
    """Start and end of each unit in seconds; a unit without a slot has (0, 0), one with a single
    slot ends where it starts."""
    spans, times = [], iter(milliseconds)
    for count in slots:
        pair = [round(next(times) / 1000, 3) for _ in range(count)]
        spans.append((pair[0], pair[-1]) if pair else (0.0, 0.0))
    return spans


def align_long(waveform: np.ndarray, units: Sequence[str], max_seconds: float,
               align: Callable[[np.ndarray, Sequence[str]], Spans]) -> Spans:
    """Times in a recording longer than ``max_seconds``, piece by piece.

    Of each piece of the audio, ``align`` is given somewhat less text than it should hold, by the
    letters; what it finds is kept up to the longest pause in its second half, and the next piece
    starts where it is quietest around that pause.
    """
    found, start = [], 0.0
    length = len(waveform) / SAMPLE_RATE
    letters = [0, *accumulate(map(len, units))]
    while len(found) < len(units):
        done, rest = len(found), length - start
        last = rest <= max_seconds
        expected = letters[-1] - letters[done]
        expected = expected if last else expected * _TEXT_SHARE * max_seconds / rest
        stop = max(done + 1, int(np.searchsorted(letters, letters[done] + expected, "right")) - 1)
        piece = waveform[round(start * SAMPLE_RATE):round((start + max_seconds) * SAMPLE_RATE)]
        spans = align(piece, units[done:stop])
        kept, cut = (len(spans), rest) if last else _cut_at_pause(piece, spans, max_seconds)
        found += [(round(start + a, 3), round(start + b, 3)) for a, b in spans[:kept]]
        start += cut
    return found


def _cut_at_pause(piece: np.ndarray, spans: Spans, seconds: float) -> tuple[int, float]:
    """How many of the spans to keep, and where in the piece the next one starts.

    Words that pile up at the end of the piece are said behind it, so they are not kept.
    """
    sure = [i for i, (_, end) in enumerate(spans, start=1) if end < seconds - _EDGE_SECONDS]
    count = sure[-1] if sure else 1
    pauses = [(after[0] - before[1], i)
              for i, (before, after) in enumerate(pairwise(spans[:count]), start=1)
              if i >= count // 2]
    if not pauses:
        return count, max(spans[count - 1][1], 0.5)
    _, kept = max(pauses)
    return kept, max(_quietest(piece, spans[kept - 1][1], spans[kept][0]), 0.5)


def _quietest(piece: np.ndarray, start: float, end: float) -> float:
    """The middle of the quietest 100 ms around a pause from ``start`` to ``end`` (s), whose times
    are only about right."""
    first = max(0, round((start - _PAUSE_MARGIN) * SAMPLE_RATE)) // _FRAME
    samples = piece[first * _FRAME:round((end + _PAUSE_MARGIN) * SAMPLE_RATE)]
    count = len(samples) // _FRAME
    if count < _QUIET_FRAMES:
        return (start + end) / 2
    energy = np.square(samples[:count * _FRAME], dtype=np.float64).reshape(count, _FRAME).mean(1)
    smooth = np.convolve(energy, np.ones(_QUIET_FRAMES), mode="valid")
    quiet = np.flatnonzero(smooth <= smooth.min() * (1 + 1e-6))  # digital silence: its middle
    place = quiet[len(quiet) // 2] + _QUIET_FRAMES / 2
    return (first + place) * _FRAME / SAMPLE_RATE

