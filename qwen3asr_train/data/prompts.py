"""The released prompt and target format, as token ids.

``<|im_start|>system\\n{context}<|im_end|>\\n<|im_start|>user\\n<|audio_start|><|audio_pad|>×N
<|audio_end|><|im_end|>\\n<|im_start|>assistant\\n`` and then ``language English<asr_text>words
<|im_end|>``; ``language None<asr_text>`` where there is no speech.
"""

import re
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from qwen3asr_train.errors import DataError

_CONTROL = re.compile(r"<\|[a-z_]+\|>|<asr_text>|<timestamp>")


class PromptBuilder:
    """Token ids of prompts and targets for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._audio_pad = tokenizer.convert_tokens_to_ids("<|audio_pad|>")
        self._head_without_context, self._tail_without_question = self._head(""), self._tail("")
        self.pad_id = tokenizer.pad_token_id
        self.marker = tokenizer.convert_tokens_to_ids("<asr_text>")
        self.words = tokenizer.vocab_size
        """Tokens before the added ones, which are control tokens."""

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _head(self, context: str) -> list[int]:
        return self._ids(f"<|im_start|>system\n{context}<|im_end|>\n"
                         "<|im_start|>user\n<|audio_start|>")

    def _tail(self, question: str) -> list[int]:
        return self._ids(f"<|audio_end|>{question}<|im_end|>\n<|im_start|>assistant\n")

    def prompt(self, audio_tokens: int, context: str = "", question: str = "") -> list[int]:
        """Ids up to and including ``assistant\\n``; DataError for control tokens in the texts.

        ``question``: something else to do with the audio than to transcribe it.
        """
        refuse_control_tokens(context, "context")
        refuse_control_tokens(question, "question")
        head = self._head(context) if context else self._head_without_context
        tail = self._tail(question) if question else self._tail_without_question
        return head + [self._audio_pad] * audio_tokens + tail

    def written_prompt(self, spoken: str, context: str = "") -> list[int]:
        """Ids of a prompt with words in place of audio."""
        refuse_control_tokens(context, "context")
        refuse_control_tokens(spoken, "spoken")
        return self._head(context) + self._ids(spoken) + self._tail_without_question

    def target(self, text: str, language: str | None) -> list[int]:
        """Ids of the answer with its ``<|im_end|>``. DataError for control tokens in the text."""
        refuse_control_tokens(text, "text")
        return self._ids(f"language {language}<asr_text>{text}<|im_end|>")

    def answer(self, text: str) -> list[int]:
        """Ids of the answer to a question, with its ``<|im_end|>``."""
        refuse_control_tokens(text, "text")
        return self._ids(f"{text}<|im_end|>")

    def prefill(self, language: str, written: str = "") -> list[int]:
        """Ids that begin an answer in a forced language, or with what was ``written`` before."""
        refuse_control_tokens(written, "text")
        return self._ids(f"language {language}<asr_text>{written}")


class DecoderPrompts(PromptBuilder):
    """Prompts for a decoder that attends to the audio: none of it in them, and no context."""

    def prompt(self, audio_tokens: int, context: str = "", question: str = "") -> list[int]:
        """``<|im_start|>assistant\\n``, after a user's turn if there is a question."""
        if not question:
            return self._start
        refuse_control_tokens(question, "question")
        return self._ids(f"<|im_start|>user\n{question}<|im_end|>\n") + self._start

    def written_prompt(self, spoken: str, context: str = "") -> list[int]:
        """DataError: without audio there is nothing to attend to."""
        raise DataError("a sample of task 'text' has no audio, and this model's decoder hears with "
                        "its encoder: leave it out of the shards")

    @cached_property
    def _start(self) -> list[int]:
        return self._ids("<|im_start|>assistant\n")


def refuse_control_tokens(text: str, field: str) -> None:
    """DataError when ``text`` would be tokenised into control tokens of the prompt format."""
    if found := _CONTROL.search(text):
        raise DataError(f"{field} contains the control token {found.group()!r}")
