"""Records of any task to token ids, with one of many ways to ask for it.

A prompt is the released one with what there is before the question: ``<|vision_start|>
<|image_pad|>×N<|vision_end|><|audio_start|><|audio_pad|>×M<|audio_end|>question``. A film has
``<|video_pad|>``; its sound lies among its frames in order of time, as Qwen3-Omni has it:
``<|vision_start|><|audio_start|>…<|audio_end|><|vision_end|>``. A task without prompts is text
alone: all of it is target.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qwen3asr_train.data.positions import (
    Audio,
    Film,
    Part,
    Text,
    Vision,
    position_ids,
    sound_places,
)
from qwen3asr_train.data.prompts import refuse_control_tokens
from qwen3asr_train.errors import DataError, UserError

_FIELD = re.compile(r"\{(\w+)\}")


class Given(NamedTuple):
    """What comes with a record, None where there is none: ``image`` and ``film`` in tokens and
    times, ``audio`` in tokens, which is the film's sound if there is a film."""

    image: Vision | None = None
    film: Vision | None = None
    audio: int | None = None

    @property
    def tokens(self) -> int:
        """Of all, the two marks around each among them."""
        seen = [vision.tokens + 2 for vision in (self.image, self.film) if vision]
        return sum(seen) + (self.audio + 2 if self.audio else 0)


MODALITIES = Given._fields


@dataclass(frozen=True)
class Task:
    """``needs``: modalities of a sample. ``prompts``: ways to ask, with ``{fields}`` of the record;
    empty: text alone. ``answer``: likewise. ``spoken``: whether the text is what is said."""

    needs: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    answer: str = "{text}"
    spoken: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.needs) - set(MODALITIES):
            raise UserError(f"stage.tasks: needs {sorted(unknown)}: only {', '.join(MODALITIES)}")
        if {"image", "film"} <= set(self.needs):
            raise UserError("stage.tasks: needs either an image or a film, not both")
        if self.needs and not self.prompts:
            raise UserError(f"stage.tasks: no prompts, but needs {', '.join(self.needs)}: a task "
                            "without prompts is text alone; prompts: [''] asks nothing")


class TokenSequence(NamedTuple):
    """One sample as tokens: ``ids``, ``labels`` (-100 where there is no target), ``positions``
    ``(4, length)``, and ``answer``, how many of its last ids are the answer."""

    ids: list[int]
    labels: list[int]
    positions: Tensor
    answer: int


class TaskBuilder:
    """Token ids of samples for one tokenizer and set of tasks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task]):
        self.tasks, self._tokenizer = dict(tasks), tokenizer
        self.pad_id, self.words = tokenizer.pad_token_id, tokenizer.vocab_size
        self._marks = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (
            "vision_start", "vision_end", "image_pad", "video_pad", "audio_start", "audio_end",
            "audio_pad")}
        self._ids = lru_cache(4096)(self._tokenised)
        self._head = self._ids("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
        self._end = self._ids("<|endoftext|>")

    def _tokenised(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def task_of(self, record: Mapping, given: Given) -> Task:
        """The task of a record; DataError if something is not given that it needs, or something
        is that it does not use."""
        name = record.get("task", "asr")
        task = self.tasks.get(name)
        if task is None:
            raise DataError(f"task '{name}' is not in stage.tasks")
        for modality, value in given._asdict().items():
            if modality in task.needs and value is None:
                raise DataError(f"task '{name}' without its {modality}")
            if value is not None and modality not in task.needs:
                raise DataError(f"task '{name}' does not use the {modality} of the sample")
        return task

    def lengths(self, record: Mapping, given: Given) -> list[int]:
        """Tokens of a sample for each way to ask."""
        task = self.task_of(record, given)
        answer = self._answer(task, record)
        if not task.prompts:
            return [len(answer) + 1]
        around = len(self._head) + given.tokens + len(answer)
        return [around + len(self._question(prompt, record)) for prompt in task.prompts]

    def build(self, record: Mapping, given: Given, way: int) -> TokenSequence:
        """A sample with the prompt of number ``way``."""
        task = self.task_of(record, given)
        answer = self._answer(task, record)
        if not task.prompts:
            ids = self._end + answer
            return TokenSequence(ids, [-100, *answer], position_ids([Text(len(ids))]), len(answer))
        ids, parts = list(self._head), [Text(len(self._head))]
        for more_ids, more_parts in self._media(given):
            ids += more_ids
            parts += more_parts
        question = self._question(task.prompts[way], record)
        ids += question + answer
        parts.append(Text(len(question) + len(answer)))
        return TokenSequence(ids, [-100] * (len(ids) - len(answer)) + answer, position_ids(parts),
                         len(answer))

    def _media(self, given: Given) -> Iterator[tuple[list[int], list[Part]]]:
        """Ids and parts of each medium between its marks."""
        def marked(kind: str, inside: list[int], parts: list[Part]) -> tuple[list, list]:
            ends = self._marks[f"{kind}_start"], self._marks[f"{kind}_end"]
            return [ends[0], *inside, ends[1]], [Text(1), *parts, Text(1)]

        image, film, audio = given
        audio_pad, film_pad = self._marks["audio_pad"], self._marks["video_pad"]
        if image:
            yield marked("vision", [self._marks["image_pad"]] * image.tokens, [image])
        if film and audio:
            both = Film(film, audio)
            pads = [audio_pad if sound else film_pad for sound in sound_places(both).tolist()]
            yield marked("vision", *marked("audio", pads, [both]))
        elif film:
            yield marked("vision", [film_pad] * film.tokens, [film])
        elif audio:
            yield marked("audio", [audio_pad] * audio, [Audio(audio)])

    def transcript(self, record: Mapping) -> list[int] | None:
        """Ids of what is said, where that is the text."""
        if not self.tasks[record.get("task", "asr")].spoken or not record["text"]:
            return None
        return self._tokenised(record["text"])

    def _question(self, prompt: str, record: Mapping) -> list[int]:
        return self._ids(f"{_filled(prompt, record)}<|im_end|>\n<|im_start|>assistant\n")

    def _answer(self, task: Task, record: Mapping) -> list[int]:
        refuse_control_tokens(record["text"], "text")
        if not record["text"].strip() and not task.spoken:
            raise DataError("empty text")
        if not task.prompts:
            return self._tokenised(record["text"] + "<|endoftext|>")
        return self._tokenised(_filled(task.answer, record) + "<|im_end|>")


def _filled(template: str, record: Mapping) -> str:
    """A template with the record's fields; DataError for one that is not a string."""
    def field(found: re.Match) -> str:
        value = record.get(found[1])
        if found[1] == "language" and value is None:
            return "None"
        if not isinstance(value, str):
            raise DataError(f"'{found[1]}' must be a string, for the prompt '{template}'")
        refuse_control_tokens(value, found[1])
        # a question that brings its mark along, for a template that has one
        return value.strip().rstrip("?") if template[found.end():].startswith("?") else value

    return _FIELD.sub(field, template)


def pad_positions(positions: Sequence[Tensor], length: int) -> Tensor:
    """Positions ``(4, n)`` of a row's samples, one after the other, to ``(4, length)``; the padding
    is a sample of its own."""
    padded = length - sum(part.shape[1] for part in positions)
    return torch.cat([*positions, torch.arange(float(padded)).expand(4, -1)], 1)
