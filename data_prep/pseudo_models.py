"""What can label audio: our models, and those of transformers' speech recognition pipeline.

Everything decodes greedily, so a label does not depend on chance, and carries a confidence: the
geometric mean of the probabilities of what was chosen. That is each token and the end for models
that generate, each frame that is not blank for CTC, and each symbol that is not blank for
transducers. It compares the labels of one model; another model's 0.9 may mean something else.
"""

import math
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import soxr
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.plan import longest_first
from qwen3asr_train.decoding import generate
from qwen3asr_train.decoding.pauses import split_at_quiet
from qwen3asr_train.decoding.transcriber import Transcriber, Transcript, join_transcripts
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.languages import known_language
from qwen3asr_train.models import folder as folders

_OURS = ("qwen3_asr", "qwen3_asr_encoder")
_CTC = modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
_SEQ2SEQ = modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
# Early 5.x versions of transformers lack them.
_TRANSDUCERS = {**getattr(modeling_auto, "MODEL_FOR_RNNT_MAPPING_NAMES", {}),
                **getattr(modeling_auto, "MODEL_FOR_TDT_MAPPING_NAMES", {})}
_MIN_SAMPLES = SAMPLE_RATE // 2  # convolutions have no output for less than some 30 ms
_WHISPER_NAMES = {"Filipino": "tagalog"}  # where it is not our name in lower case


class Labeller(Protocol):
    """A recogniser. ``names_language``: whether the language of its labels says something."""

    names_language: bool

    def label(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """float32 ``(samples,)`` at 16 kHz each, of any length -> labels, in order."""


def open_labeller(folder: str, *, language: str | None = None, device: str = "cpu",
                  max_new_tokens: int = 256, max_piece_seconds: float = 30.0,
                  batch_seconds: float = 120.0) -> Labeller:
    """The recogniser of a checkpoint folder or hub name, by the ``model_type`` of its config.

    ``language`` (English name) is forced where the model can be told (ours, Whisper); all labels
    have it. Audio beyond ``max_piece_seconds`` is cut where it is quiet. ``batch_seconds``: padded
    audio in one batch. Raises UserError when there is no recogniser.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = read_config(folder)
    kind = config.model_type
    if kind in _OURS:
        model, processor = generate.load(folder)
        return _Ours(Transcriber(model.to(device), processor, language,
                                 max_new_tokens=max_new_tokens, batch_seconds=batch_seconds,
                                 max_piece_seconds=max_piece_seconds))
    names, made = _labeller_of(folder, config)
    try:
        model, loading = getattr(transformers, names[kind]).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0]}") from error
    if missing := loading["missing_keys"]:
        raise UserError(f"{folder}: a {kind} without the weights of a {names[kind]} "
                        f"({', '.join(sorted(missing)[:3])}); was it trained to transcribe?")
    return made(model.to(device).eval(), extractor, tokenizer, language, max_new_tokens,
                max_piece_seconds, batch_seconds)


def read_config(folder: str) -> PreTrainedConfig:
    """The config of a checkpoint folder or hub name. Raises UserError when there is none."""
    with folders.opening(folder, field=""):
        return folders.read_config(folder)


def _labeller_of(folder: str, config: PreTrainedConfig
                 ) -> tuple[dict[str, str], "type[_Transformers]"]:
    kind = config.model_type
    if kind == "whisper":
        return _SEQ2SEQ, _Whisper
    if kind in _CTC:
        return _CTC, _Ctc
    if kind in _TRANSDUCERS:
        return _TRANSDUCERS, _Transducer
    if kind in _SEQ2SEQ and config.is_encoder_decoder:
        return _SEQ2SEQ, _Seq2Seq
    raise UserError(f"{folder}: a {kind} model; what can label is ours, Whisper and other encoder-"
                    "decoders, CTC models and transducers of transformers (not language models "
                    "that transcribe when prompted)")


class _Ours:
    names_language = True

    def __init__(self, transcriber: Transcriber):
        self.label = transcriber


class _Transformers:
    """Pieces, batches and features; a subclass labels the features of one batch."""

    names_language = False

    def __init__(self, model: PreTrainedModel, extractor, tokenizer, language: str | None,
                 max_new_tokens: int, max_piece_seconds: float, batch_seconds: float):
        self.model, self.extractor, self.tokenizer = model, extractor, tokenizer
        self.language, self.max_new_tokens = language, max_new_tokens
        self.piece_seconds, self.batch_seconds = max_piece_seconds, batch_seconds
        self.names_language = self.names_language or language is not None

    @torch.inference_mode()
    def label(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """As :meth:`Labeller.label` says."""
        pieces = [(owner, piece) for owner, waveform in enumerate(waveforms)
                  for piece in split_at_quiet(waveform, self.piece_seconds)]
        joined: list[list[Transcript]] = [[] for _ in waveforms]
        results: dict[int, Transcript] = {}
        for batch in longest_first([len(piece) for _, piece in pieces], self.batch_seconds,
                                   self._padded_seconds):
            with self._precision():
                found = self._label(self._features([pieces[i][1] for i in batch]))
            results |= zip(batch, found, strict=True)
        for place, (owner, _) in enumerate(pieces):
            joined[owner].append(results[place])
        return [join_transcripts(parts) for parts in joined]

    def _label(self, inputs: dict[str, Tensor]) -> list[Transcript]:
        raise NotImplementedError

    def _padded_seconds(self, samples: int) -> float:
        """What a piece costs; infinite where clips must not be padded for each other's sake."""
        return samples / SAMPLE_RATE

    def _features(self, pieces: list[np.ndarray], **options) -> dict[str, Tensor]:
        rate = self.extractor.sampling_rate
        pieces = [np.pad(piece, (0, max(0, _MIN_SAMPLES - len(piece)))) for piece in pieces]
        if rate != SAMPLE_RATE:
            pieces = [soxr.resample(piece, SAMPLE_RATE, rate) for piece in pieces]
        options = {"padding": True, "return_attention_mask": True} | options
        features = self.extractor(pieces, sampling_rate=rate, return_tensors="pt", **options)
        return {name: tensor.to(self.model.device) for name, tensor in features.items()}

    def _precision(self) -> AbstractContextManager:
        kind = self.model.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")

    def _transcript(self, text: str, confidence: float, tokens: int,
                    language: str | None = None) -> Transcript:
        return Transcript(self.language or language, text.strip(), confidence, tokens)


class _Ctc(_Transformers):
    """The likeliest symbol of each frame, repeats and blanks dropped by the tokenizer."""

    def _padded_seconds(self, samples: int) -> float:
        # Without a mask (wav2vec 2.0 with group norm) or its counterpart for the output, padding
        # would be heard.
        maskable = getattr(self.extractor, "return_attention_mask", False) and \
            hasattr(self.model, "_get_feat_extract_output_lengths")
        return super()._padded_seconds(samples) if maskable else math.inf

    def _features(self, pieces: list[np.ndarray], **options) -> dict[str, Tensor]:
        masked = getattr(self.extractor, "return_attention_mask", True)
        return super()._features(pieces, return_attention_mask=masked, **options)

    def _label(self, inputs: dict[str, Tensor]) -> list[Transcript]:
        scores, ids = self.model(**inputs).logits.float().log_softmax(-1).max(-1)
        lengths = [ids.shape[1]] * len(ids)
        if len(ids) > 1:
            lengths = self.model._get_feat_extract_output_lengths(
                inputs["attention_mask"].sum(-1)).tolist()
        found = []
        for row, logs, length in zip(ids.tolist(), scores, lengths, strict=True):
            row, logs = row[:length], logs[:length]
            spoken = logs[[token != self.model.config.pad_token_id for token in row]]
            counted = spoken if len(spoken) else logs
            # Not skip_special_tokens: it would drop the blanks first, and join double letters.
            found.append(self._transcript(self.tokenizer.decode(row), math.exp(counted.mean()),
                                          len(counted)))
        return found


class _Seq2Seq(_Transformers):
    """``generate`` of an encoder-decoder that needs nothing but the audio, one clip at a time."""

    def _padded_seconds(self, samples: int) -> float:
        return math.inf  # Moonshine normalises over time, padding and all, whatever the mask

    def _label(self, inputs: dict[str, Tensor]) -> list[Transcript]:
        tokens, scores = self._generate(inputs)
        return [self._transcript(self.tokenizer.decode(row.tokens, skip_special_tokens=True),
                                 row.confidence, len(row.tokens) + 1)
                for row in generate.trim(tokens[:, -scores.shape[1]:], scores, self._ends())]

    def _generate(self, inputs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
        """Ids ``(clips, start + new)`` and log-probabilities of the new ones ``(clips, new)``."""
        scores: list[Tensor] = []

        def keep_score(_, logits: Tensor) -> Tensor:
            # It comes last, so these are the logits that are chosen from; output_logits would
            # keep the whole vocabulary of every step.
            scores.append(logits.float().log_softmax(-1).amax(-1))
            return logits

        found = self.model.generate(**inputs, do_sample=False, num_beams=1,
                                    max_new_tokens=self._most_tokens(),
                                    logits_processor=[keep_score], **options)
        return self._sequences(found), torch.stack(scores, 1)

    def _sequences(self, found) -> Tensor:
        return found if isinstance(found, Tensor) else found["sequences"]

    def _most_tokens(self) -> int:
        # Whisper and its kind learn a position for each token, start tokens included.
        positions = getattr(self.model.config, "max_target_positions", None) or math.inf
        return int(min(self.max_new_tokens, positions - 8))

    def _ends(self) -> set[int]:
        config = self.model.generation_config
        end = config.eos_token_id
        return {*(end if isinstance(end, list) else [end]), config.pad_token_id}


class _Whisper(_Seq2Seq):
    """Pieces padded to the model's window, without timestamps; the language is the model's."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.window = float(self.extractor.chunk_length)
        self.piece_seconds = min(self.piece_seconds, self.window)
        generation = self.model.generation_config
        # Not told in old checkpoints. English-only models refuse a language and a task.
        multilingual = getattr(generation, "is_multilingual", None)
        self.multilingual, self.only = bool(multilingual), "en" if multilingual is False else None
        self.languages = {token: name.strip("<|>") for name, token in
                          getattr(generation, "lang_to_id", {}).items()}
        self.names_language = self.names_language or self.multilingual or self.only is not None

    def _padded_seconds(self, samples: int) -> float:
        return self.window

    def _features(self, pieces: list[np.ndarray], **options) -> dict[str, Tensor]:
        return super()._features(pieces, padding="max_length", **options)

    def _label(self, inputs: dict[str, Tensor]) -> list[Transcript]:
        options = {"task": "transcribe"} if self.multilingual else {}
        if self.multilingual and self.language:
            options["language"] = _WHISPER_NAMES.get(self.language, self.language.lower())
        # Segments hold the start tokens, the language among them; the ids alone do not.
        tokens, scores = self._generate(inputs, return_timestamps=False, return_segments=True,
                                        **options)
        new = scores.shape[1]
        return [self._transcript(self.tokenizer.decode(row.tokens, skip_special_tokens=True),
                                 row.confidence, len(row.tokens) + 1, self._language(start))
                for row, start in zip(generate.trim(tokens[:, -new:], scores, self._ends()),
                                      tokens[:, :-new].tolist(), strict=True)]

    def _sequences(self, found) -> Tensor:
        return torch.stack([segments[0]["result"] for segments in found["segments"]])

    def _language(self, start: list[int]) -> str | None:
        code = next((self.languages[token] for token in start if token in self.languages),
                    self.only)
        name = WHISPER_LANGUAGES.get(code, code)
        name = next((ours for ours, theirs in _WHISPER_NAMES.items() if theirs == name), name)
        return known_language(name and name.title())


class _Transducer(_Seq2Seq):
    """RNN-T and TDT: each symbol as it is emitted, one clip at a time."""

    def _label(self, inputs: dict[str, Tensor]) -> list[Transcript]:
        tokens, scores = self._generate(inputs)
        row = tokens[0, -scores.shape[1]:].tolist()
        spoken = scores[0][[token != self.model.config.blank_token_id for token in row]]
        counted = spoken if len(spoken) else scores[0]
        # Repeats are said twice, unlike in CTC.
        text = self.tokenizer.decode(row, skip_special_tokens=True, group_tokens=False)
        return [self._transcript(text, math.exp(counted.mean()), len(counted))]

    def _most_tokens(self) -> None:
        return None  # as many as the audio has room for
