"""Transcripts of a stream, while it is heard.

The scheme is the released one (Qwen3-ASR report, streaming: chunks of 2 s, a fallback of 5 tokens,
the last 4 chunks unfixed; QwenLM/Qwen3-ASR, ``Qwen3ASRModel.streaming_transcribe``): after every
chunk the model hears all audio so far and goes on from the text that it has written, less its last
tokens. The released client computes everything anew for each chunk, so a chunk costs more the
longer the stream is. Here the cost stays flat:

* **Encoder.** A window that is whole is encoded once. What the last window holds so far is encoded
  anew with each chunk; that is never more than a window.
* **Language model.** Audio stands before the answer, so new audio moves all text behind it: the
  cache is good up to the end of the last whole window. The rest of the audio, the end of the prompt
  and the answer so far are run again, in one pass that also tells how much of the answer the model
  would write again. Only tokens beyond that are written one by one
  (:class:`~qwen3asr_train.decoding.live_decoder.SegmentDecoder`).
* **Segments.** Audio and answer grow until the stream is cut: its text becomes ``final``, and a new
  segment begins with a fresh prompt. The longer a segment, the shorter the pause that ends it, from
  ``pause_seconds`` down to nothing at ``max_segment_seconds``, where the quietest place of the
  newest chunk has to do. Text is only ever fixed for audio before the newest chunk and the cut is
  inside it, so no word is told twice.

What is fixed: the newest wording of as many tokens as the answer had ``unfixed_chunks`` chunks ago,
less ``fallback_tokens``. So the text of the last chunks stays open, as the report has it
(``unfixed_at="end"``). The released client leaves only the first chunks open and from then on fixes
all but the last tokens (``unfixed_at="start"``). For the first ``unfixed_chunks`` of a segment
the two are the same: nothing is fixed. A language is fixed with the first word, not before.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3ASRProcessor

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.decoding.generate import autocast
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.live_decoder import SegmentDecoder
from qwen3asr_train.decoding.live_pauses import Pauses
from qwen3asr_train.decoding.transcriber import Transcript, join_transcripts
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.text import split_output
from qwen3asr_train.models.asr import Recogniser


@dataclass(frozen=True)
class Event:
    """What is known of a segment.

    ``kind``: ``partial``, or ``final`` when the segment is over. ``start``, ``end``: seconds of the
    stream that were heard for it. The first ``stable`` characters of ``text`` also begin every
    later event of the segment. ``language``: None where no speech was found.
    """

    kind: str
    text: str
    language: str | None
    start: float
    end: float
    stable: int


@dataclass
class LiveTranscriber:
    """One stream of audio to events.

    Every ``chunk_seconds`` of audio give one event, and the segments of the ``final`` ones cover
    the stream. Events do not depend on how the audio is cut into pieces.

    ``window_seconds``: attention window of the encoder, by default the checkpoint's (8 s).
    ``pause_decibels``: a pause is that much quieter than the segment's loudest 100 ms.
    ``max_new_tokens_per_chunk``: of an answer that is longer, the next chunk writes the rest, and
    the last of a segment all there is.
    ``language`` forces a language by prefilling ``language X<asr_text>``. UserError for values that
    make no sense and for a model that is no :class:`Recogniser`.
    """

    model: Recogniser
    processor: Qwen3ASRProcessor
    chunk_seconds: float = 2.0
    fallback_tokens: int = 5
    unfixed_chunks: int = 4
    unfixed_at: str = "end"
    window_seconds: int | None = None
    pause_seconds: float = 1.0
    pause_decibels: float = 25.0
    max_segment_seconds: float = 30.0
    language: str | None = None
    context: str = ""
    max_new_tokens_per_chunk: int = 128
    guard: RepetitionGuard = field(default_factory=RepetitionGuard)

    def __post_init__(self) -> None:
        self._check()
        self.model.eval()
        encoder = self.model.model.audio_tower
        if self.window_seconds is None:
            self.window_seconds = encoder.n_window_infer // (2 * encoder.n_window)
        self._prompts = PromptBuilder(self.processor.tokenizer)
        self._prefill = self._prompts.prefill(self.language) if self.language else []
        self._reader = _AnswerReader(self.processor.tokenizer, self.language)
        self._chunk = round(self.chunk_seconds * SAMPLE_RATE)
        self._pending = np.empty(0, np.float32)
        self._finished = False
        self._segment = self._new_segment(0)

    def _check(self) -> None:
        if not isinstance(self.model, Recogniser):
            raise UserError("streaming needs a model with a language model (stage=sft); "
                            "this is an AuT, an encoder with its pretraining decoder")
        sensible = {
            "chunk_seconds": self.chunk_seconds >= 0.1,
            "fallback_tokens": self.fallback_tokens >= 0,
            "unfixed_chunks": self.unfixed_chunks >= 0,
            "unfixed_at": self.unfixed_at in ("start", "end"),
            "window_seconds": self.window_seconds is None or self.window_seconds >= 1,
            "pause_seconds": self.pause_seconds > 0,
            "pause_decibels": self.pause_decibels > 0,
            "max_segment_seconds": self.max_segment_seconds >= self.chunk_seconds,
            "max_new_tokens_per_chunk": self.max_new_tokens_per_chunk >= 1,
            "guard": min(self.guard.max_repeats, self.guard.max_ngram) >= 1,
        }
        for name, fine in sensible.items():
            if not fine:
                raise UserError(f"{name}={getattr(self, name)} makes no sense for a stream")

    def accept(self, samples: np.ndarray) -> list[Event]:
        """float32 ``(samples,)`` at 16 kHz, any number of them -> an event for each chunk that they
        complete. DataError for what is not finite mono audio, ValueError after :meth:`finish`."""
        if self._finished:
            raise ValueError("the stream is finished")
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise DataError("a piece of audio must be finite samples of one channel")
        self._pending = np.concatenate([self._pending, samples])
        events = []
        while len(self._pending) >= self._missing():
            chunk, self._pending = np.split(self._pending, [self._missing()])
            events.append(self._hear(chunk))
        return events

    def finish(self) -> list[Event]:
        """The final event of the last segment, if it holds audio; the stream is over."""
        if self._finished:
            raise ValueError("the stream is finished")
        self._finished = True
        segment = self._segment
        if len(self._pending) or segment.decoder.unfinished:
            return [self._close(self._pending)]
        return [self._event("final", segment)] if segment.samples else []

    def _missing(self) -> int:
        """Samples until the next chunk of the stream is whole, counted from the segment's end."""
        heard = self._segment.start + self._segment.samples
        return self._segment.next_chunk * self._chunk - heard

    def _hear(self, chunk: np.ndarray) -> Event:
        """The segment goes on with a chunk, or ends inside it."""
        segment = self._segment
        segment.pauses.accept(chunk)
        length = (segment.samples + len(chunk)) / SAMPLE_RATE
        needed = self.pause_seconds * (1 - length / self.max_segment_seconds)
        cut = segment.pauses.cut(segment.samples, needed)
        if cut is None:
            self._answer(segment, chunk)
            segment.next_chunk += 1
            return self._event("partial", segment)
        mine, rest = np.split(chunk, [cut - segment.samples])
        self._pending = np.concatenate([rest, self._pending])
        event = self._close(mine)
        self._segment = self._new_segment(segment.start + cut, segment.next_chunk + 1)
        return event

    def _close(self, samples: np.ndarray) -> Event:
        """The segment ends with ``samples``."""
        self._answer(self._segment, samples, last=True)
        return self._event("final", self._segment)

    def _new_segment(self, start: int, next_chunk: int = 1) -> "_Segment":
        decoder = SegmentDecoder(
            self.model, self._prompts, self.context, self._prefill, self.window_seconds,
            self.guard, self.max_new_tokens_per_chunk)
        return _Segment(start, next_chunk, decoder, Pauses(self.pause_decibels),
                        deque(maxlen=max(1, self.unfixed_chunks)))

    @torch.inference_mode()
    def _answer(self, segment: "_Segment", samples: np.ndarray, last: bool = False) -> None:
        """What the model says now, and how much of it is fixed from here on."""
        with autocast(self.model.device.type):
            segment.decoder.hear(samples)
            segment.answer = segment.decoder.answer(segment.answer, segment.fixed, last)
        segment.samples += len(samples)
        segment.lengths.append(len(segment.answer))
        if len(segment.lengths) == segment.lengths.maxlen:
            reached = segment.lengths[0 if self.unfixed_at == "end" else -1]
            fixed = min(reached, len(segment.answer)) - self.fallback_tokens
            if self._reader.has_words(segment.answer[:max(fixed, 0)]):
                segment.fixed = max(segment.fixed, fixed)

    def _event(self, kind: str, segment: "_Segment") -> Event:
        language, text = self._reader(segment.answer)
        stable = text if kind == "final" else self._reader(segment.answer[:segment.fixed])[1]
        return Event(kind, text, language, segment.start / SAMPLE_RATE,
                     (segment.start + segment.samples) / SAMPLE_RATE, len(stable))


@dataclass
class _Segment:
    """``start``, ``samples``: where it begins in the stream and how much it has heard;
    ``next_chunk``: number of the stream's chunk that it hears next; ``answer``, ``fixed``: ids of
    its text and how many of them stay; ``lengths``: of the last answers."""

    start: int
    next_chunk: int
    decoder: SegmentDecoder
    pauses: Pauses
    lengths: deque[int]
    samples: int = 0
    answer: list[int] = field(default_factory=list)
    fixed: int = 0


class _AnswerReader:
    """Ids of an answer to language and text, so that the text of a beginning is the beginning of
    the text: bytes that are no whole character and control tokens are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, language: str | None):
        self._tokenizer, self._language = tokenizer, language
        self._marker = tokenizer.convert_tokens_to_ids("<asr_text>")
        self._control = set(tokenizer.added_tokens_decoder)

    def __call__(self, tokens: list[int]) -> tuple[str | None, str]:
        tag, words = self._split(tokens)
        words = [token for token in words if token not in self._control]
        text = self._tokenizer.decode(words).replace("\N{REPLACEMENT CHARACTER}", "").strip()
        return self._language or split_output(self._tokenizer.decode(tag))[0], text

    def has_words(self, tokens: list[int]) -> bool:
        """Whether there is something behind the language tag."""
        tag, words = self._split(tokens)
        return bool(words) and bool(tag or self._language)

    def _split(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """Language tag and words; without a tag all are words, as offline."""
        known = self._language or self._marker not in tokens
        start = 0 if known else tokens.index(self._marker) + 1
        return tokens[:start], tokens[start:]


def transcript_of(events: list[Event]) -> Transcript:
    """The whole transcript: the ``final`` events joined; its confidence is not known (1)."""
    return join_transcripts([Transcript(event.language, event.text, 1.0, 1)
                             for event in events if event.kind == "final"]
                            or [Transcript(None, "", 1.0, 1)])
