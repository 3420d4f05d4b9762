"""Forced alignment with the CTC head of an AuT: a teacher, and what our aligner is compared with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data import features
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.augment_join import join_texts
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.decoding.alignment_long import Spans
from qwen3asr_train.decoding.generate import autocast
from qwen3asr_train.decoding.pauses import FRAME, find_pauses, split_at_pauses
from qwen3asr_train.errors import DataError
from qwen3asr_train.models.aut import AuT

TOKENS_A_CHUNK = features.audio_tokens(features.CHUNK_FRAMES)
_CHUNK_SECONDS = features.CHUNK_FRAMES * features.HOP / SAMPLE_RATE
_SILENCE_PENALTY = 10.0  # nats, for a word in a pause: unlikely, but not out of the question
_TOKEN_SECONDS = 8 * features.HOP / SAMPLE_RATE  # three stride-2 convolutions


def viterbi(log_probs: np.ndarray, targets: Sequence[int], blank: int) -> list[tuple[int, int]]:
    """The likeliest CTC path (Graves et al. 2006) that says ``targets``: first frame and one after
    the last of each.

    ``log_probs`` ``(frames, classes)``. Raises DataError when the targets do not fit into the
    frames.
    """
    if not len(targets):
        return []
    states = np.full(2 * len(targets) + 1, blank)
    states[1::2] = targets
    emissions = log_probs[:, states]  # (frames, states)
    skips = np.zeros(len(states), dtype=bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = emissions[0, :2]
    moves = np.zeros(emissions.shape, dtype=np.int8)  # how many states back the path came from
    for frame in range(1, len(emissions)):
        choices = np.full((3, len(states)), -np.inf)
        choices[0] = score
        choices[1, 1:] = score[:-1]
        choices[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        moves[frame] = choices.argmax(0)
        score = choices.max(0) + emissions[frame]
    state = len(states) - 1 - int(score[-2] >= score[-1])
    if not np.isfinite(score[state]):
        raise DataError(f"{len(targets)} tokens do not fit into {len(emissions)} frames of audio")
    spans = [[len(emissions), 0] for _ in targets]
    for frame in range(len(emissions) - 1, -1, -1):
        if state % 2:
            span = spans[state // 2]
            span[0], span[1] = frame, max(span[1], frame + 1)
        state -= int(moves[frame, state])
    return [(first, after) for first, after in spans]


def token_time(index: int) -> float:
    """When an encoder token begins (s): 13 in each second, the last of them half as long."""
    chunk, place = divmod(index, TOKENS_A_CHUNK)
    return chunk * _CHUNK_SECONDS + place * _TOKEN_SECONDS


class Emissions(NamedTuple):
    """``log_probs`` ``(tokens, classes)`` of a clip, and when each token begins and ends (s),
    ``times`` ``(tokens, 2)``."""

    log_probs: np.ndarray
    times: np.ndarray


@dataclass
class CtcAligner:
    """Spans of units by the CTC head of ``model``.

    ``batch_clips``: how many clips or pieces go through the encoder together. ``piece_seconds``:
    what is longer than the second of them is encoded in pieces that are cut at pauses, the first of
    them apart at the least, and aligned as a whole.
    """

    model: AuT
    processor: Qwen3ASRProcessor
    batch_clips: int = 16
    piece_seconds: tuple[float, float] = (1.0, 8.0)

    def spans(self, waveforms: Sequence[np.ndarray], units: Sequence[Sequence[str]]
              ) -> list[Spans | None]:
        """Start and end (s) of each unit; None for a clip that is too short for its text."""
        found = []
        for start in range(0, len(waveforms), self.batch_clips):
            part = slice(start, start + self.batch_clips)
            for emissions, row in zip(self._emissions(waveforms[part]), units[part], strict=True):
                try:
                    found.append(self._aligned(emissions, row))
                except DataError:
                    found.append(None)
        return found

    def _emissions(self, waveforms: Sequence[np.ndarray]) -> Iterator[Emissions]:
        """Of each clip."""
        longest = self.piece_seconds[1] * SAMPLE_RATE
        pieces = [[w] if len(w) <= longest else split_at_pauses(w, self.piece_seconds)
                  for w in waveforms]
        flat = [piece for row in pieces for piece in row]
        log_probs = iter([row for start in range(0, len(flat), self.batch_clips)
                          for row in self._log_probs(flat[start:start + self.batch_clips])])
        for waveform, row in zip(waveforms, pieces, strict=True):
            parts, times, begin = [], [], 0.0
            for piece in row:
                parts.append(next(log_probs))
                end = begin + len(piece) / SAMPLE_RATE
                marks = np.minimum([begin + token_time(i) for i in range(len(parts[-1]) + 1)], end)
                times.append(np.stack([marks[:-1], marks[1:]], 1))
                begin = end
            yield self._silenced(Emissions(np.concatenate(parts), np.concatenate(times)), waveform)

    def _silenced(self, emissions: Emissions, waveform: np.ndarray) -> Emissions:
        """Blank wherever all of a token is in a pause: what the model did not understand would be
        put there, since it puts nothing else there."""
        log_probs, times = emissions.log_probs.copy(), emissions.times
        silent = times[:, 0] >= len(waveform) / SAMPLE_RATE  # features of short clips are padded
        for start, end in find_pauses(waveform):
            # pauses end with a whole frame
            silent |= (times[:, 0] >= start) & (times[:, 1] <= end + FRAME / SAMPLE_RATE)
        blank = log_probs[silent, self.model.blank_id]
        log_probs[silent] -= _SILENCE_PENALTY
        log_probs[silent, self.model.blank_id] = blank
        return emissions._replace(log_probs=log_probs)

    @torch.inference_mode()
    def _log_probs(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """``(tokens, classes)`` of each waveform."""
        self.model.eval()
        device = self.model.device
        batch = collate([Example(features.log_mel(w), [0], []) for w in waveforms], 0)
        with autocast(device.type):
            tokens, lengths = self.model.encode_audio({k: v.to(device) for k, v in batch.items()})
            logits = self.model.ctc_head(tokens)
        log_probs = logits.float().log_softmax(-1).cpu().numpy()
        return np.split(log_probs, np.cumsum(lengths.tolist())[:-1])

    def _aligned(self, emissions: Emissions, units: Sequence[str]) -> Spans:
        ids, owners = self._tokens(units)
        frames = viterbi(emissions.log_probs, ids, self.model.blank_id)
        spans: list[tuple[float, float] | None] = [None] * len(units)
        for (first, after), owner in zip(frames, owners, strict=True):
            start, end = float(emissions.times[first, 0]), float(emissions.times[after - 1, 1])
            spans[owner] = (spans[owner][0] if spans[owner] else start, max(start, end))
        for i, span in enumerate(spans):  # all of it in a token of the unit before
            if span is None:
                spans[i] = spans[i - 1] if i else (0.0, 0.0)
        return spans

    def _tokens(self, units: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of the text, and to which unit each belongs: that of its last letter."""
        text, ends = "", []
        for unit in units:
            text = join_texts([text, unit])
            ends.append(len(text))
        encoded = self.processor.tokenizer(text, add_special_tokens=False,
                                           return_offsets_mapping=True)
        owners = [int(np.searchsorted(ends, end)) for _, end in encoded["offset_mapping"]]
        return encoded["input_ids"], [min(owner, len(units) - 1) for owner in owners]
