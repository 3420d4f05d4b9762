"""The released prompt and target format, as token ids.

``<|im_start|>system\\n{context}<|im_end|>\\n<|im_start|>user\\n<|audio_start|><|audio_pad|>×N
<|audio_end|><|im_end|>\\n<|im_start|>assistant\\n`` and then ``language English<asr_text>words
<|im_end|>``; ``language None<asr_text>`` where there is no speech.
"""

import re

from transformers import PreTrainedTokenizerBase

from qwen3asr_train.errors import DataError

_CONTROL = re.compile(r"<\|[a-z_]+\|>|<asr_text>|<timestamp>")


class PromptBuilder:
    """Token ids of prompts and targets for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._audio_pad = tokenizer.convert_tokens_to_ids("<|audio_pad|>")
        self._tail = self._ids("<|audio_end|><|im_end|>\n<|im_start|>assistant\n")
        self._head_without_context = self._head("")
        self.pad_id = tokenizer.pad_token_id

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _head(self, context: str) -> list[int]:
        return self._ids(f"<|im_start|>system\n{context}<|im_end|>\n"
                         "<|im_start|>user\n<|audio_start|>")

    def prompt(self, audio_tokens: int, context: str = "") -> list[int]:
        """Ids up to and including ``assistant\\n``. DataError for control tokens in the context."""
        if context:
            refuse_control_tokens(context, "context")
        head = self._head(context) if context else self._head_without_context
        return head + [self._audio_pad] * audio_tokens + self._tail

    def target(self, text: str, language: str | None) -> list[int]:
        """Ids of the answer with its ``<|im_end|>``. DataError for control tokens in the text."""
        refuse_control_tokens(text, "text")
        return self._ids(f"language {language}<asr_text>{text}<|im_end|>")

    def prefill(self, language: str) -> list[int]:
        """Ids that begin an answer in a forced language."""
        return self._ids(f"language {language}<asr_text>")


def refuse_control_tokens(text: str, field: str) -> None:
    """DataError when ``text`` would be tokenised into control tokens of the prompt format."""
    if found := _CONTROL.search(text):
        raise DataError(f"{field} contains the control token {found.group()!r}")
