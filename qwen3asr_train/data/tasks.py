"""Records of any task to token ids, with one of many ways to ask for it.

A prompt is the released one with what there is before the question: ``<|vision_start|>
<|image_pad|>×N<|vision_end|><|audio_start|><|audio_pad|>×M<|audio_end|>question``. A task without
prompts is text alone: all of it is target.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qwen3asr_train.data.positions import Audio, Part, Text, Vision, position_ids
from qwen3asr_train.data.prompts import refuse_control_tokens
from qwen3asr_train.errors import DataError, UserError

MODALITIES = ("image", "audio")
_FIELD = re.compile(r"\{(\w+)\}")


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
        self.pad_id = tokenizer.pad_token_id
        self._marks = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (
            "vision_start", "vision_end", "image_pad", "audio_start", "audio_end", "audio_pad")}
        self._ids = lru_cache(4096)(self._tokenised)
        self._head = self._ids("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
        self._end = self._ids("<|endoftext|>")

    def _tokenised(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def task_of(self, record: Mapping, given: Sequence[str]) -> Task:
        """The task of a record that comes with the ``given`` modalities; DataError if it lacks
        one, or has what its task does not use."""
        name = record.get("task", "asr")
        task = self.tasks.get(name)
        if task is None:
            raise DataError(f"task '{name}' is not in stage.tasks")
        for modality in MODALITIES:
            if modality in task.needs and modality not in given:
                raise DataError(f"task '{name}' without its {modality}")
            if modality in given and modality not in task.needs:
                raise DataError(f"task '{name}' does not use the {modality} of the sample")
        return task

    def lengths(self, record: Mapping, picture: tuple[int, int] | None, audio: int | None
                ) -> list[int]:
        """Tokens of a sample for each way to ask; ``picture`` in rows and columns of tokens,
        ``audio`` in tokens, None where there is none."""
        task = self.task_of(record, given(picture, audio))
        answer = self._answer(task, record)
        if not task.prompts:
            return [len(answer) + 1]
        media = (picture[0] * picture[1] + 2 if picture else 0) + (audio + 2 if audio else 0)
        return [len(self._head) + media + len(self._question(prompt, record)) + len(answer)
                for prompt in task.prompts]

    def build(self, record: Mapping, picture: tuple[int, int] | None, audio: int | None,
              way: int) -> TokenSequence:
        """A sample with the prompt of number ``way``."""
        task = self.task_of(record, given(picture, audio))
        answer = self._answer(task, record)
        if not task.prompts:
            ids = self._end + answer
            return TokenSequence(ids, [-100, *answer], position_ids([Text(len(ids))]), len(answer))
        marks, ids = self._marks, list(self._head)
        parts: list[Part] = [Text(len(ids))]
        if picture:
            count = picture[0] * picture[1]
            ids += [marks["vision_start"], *[marks["image_pad"]] * count, marks["vision_end"]]
            parts += [Text(1), Vision(*picture), Text(1)]
        if audio:
            ids += [marks["audio_start"], *[marks["audio_pad"]] * audio, marks["audio_end"]]
            parts += [Text(1), Audio(audio), Text(1)]
        question = self._question(task.prompts[way], record)
        ids += question + answer
        parts.append(Text(len(question) + len(answer)))
        return TokenSequence(ids, [-100] * (len(ids) - len(answer)) + answer, position_ids(parts),
                         len(answer))

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


def given(picture: object, audio: object) -> tuple[str, ...]:
    """Names of the modalities that are there."""
    return tuple(name for name, value in zip(MODALITIES, (picture, audio), strict=True) if value)


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
    """Positions ``(4, n)`` of a row's samples, one after the other, to ``(4, length)``; a padded
    place begins a sample of its own."""
    joined = torch.cat([*positions, torch.zeros(4, 0)], 1)
    return torch.nn.functional.pad(joined, (0, length - joined.shape[1]))
