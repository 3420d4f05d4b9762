"""The answer to audio that grows, with as little computed again as the prompt allows."""

import copy

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.decoding.generate import ends_of
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.streaming import EncoderSession
from qwen3asr_train.models.asr import Recogniser


class OpenEncoderSession(EncoderSession):
    """An :class:`EncoderSession` whose last window can be looked at before it is whole."""

    @torch.inference_mode()
    def peek(self) -> Tensor:
        """What :meth:`finish` would return if the audio ended here; the session goes on."""
        return self._encode(copy.copy(self._mel).finish())


class SegmentDecoder:
    """One segment of a stream under the language model: ``head, audio, tail, answer``.

    The cache holds the head and the audio of whole windows. All that stands behind moves with every
    chunk and is run again, in one pass together with the new windows and the last answer as a
    draft: the draft's tokens that the model would write again are the new answer's, and only what
    follows them is written token by token. The answer is the one of greedy decoding without a
    draft (speculative decoding, Leviathan et al. 2023, with what was said before as the proposal).
    """

    def __init__(self, model: Recogniser, prompts: PromptBuilder, context: str, prefill: list[int],
                 window_chunks: int, guard: RepetitionGuard, max_new_tokens: int):
        self._model, self._prompts, self._context = model, prompts, context
        self._prefill, self._guard, self._max_new_tokens = prefill, guard, max_new_tokens
        self._session = OpenEncoderSession(model.model.audio_tower, window_chunks)
        self._ends = ends_of(model)
        self._cache = DynamicCache()
        self._final: list[Tensor] = []  # tokens of whole windows that the cache does not hold yet
        self._finals = 0  # tokens of all whole windows
        self._permanent = 0  # tokens of head and whole windows, what the cache may keep
        self._samples = 0
        self.unfinished = False  # whether the last answer goes on

    def hear(self, samples: np.ndarray) -> None:
        """float32 ``(samples,)`` at 16 kHz; windows that they complete are encoded, for good."""
        self._samples += len(samples)
        self._final.append(self._session.accept(samples))
        self._finals += len(self._final[-1])

    def answer(self, draft: list[int], fixed: int, last: bool = False) -> list[int]:
        """Ids of the answer to all audio so far, without its end.

        ``draft``: an earlier answer; its first ``fixed`` ids begin this one whatever the audio.
        ``last``: no more audio will come. Until then the answer stops after ``max_new_tokens`` that
        are not the draft's, and is ``unfinished``. One that loops is cut back to the loop's first
        round, one that is longer than the audio allows to what the draft said as well; never below
        ``fixed``.
        """
        logits = self._run(draft, fixed, last)
        choices = logits.argmax(-1).tolist()
        agreed = fixed
        while agreed < len(draft) and choices[agreed - fixed] == draft[agreed]:
            agreed += 1
        self._forget(len(draft) - agreed)
        tokens, token = draft[:agreed], choices[agreed - fixed]
        longest = self._guard.limit(self._samples / 16_000)
        self.unfinished = False
        while token not in self._ends:
            if len(tokens) >= agreed + self._max_new_tokens and not last:
                self.unfinished = True
                break
            tokens.append(token)
            if len(tokens) > longest:
                tokens = tokens[:agreed]
                break
            if (cut := self._guard.loop(tokens)) is not None:
                tokens = tokens[:max(cut, fixed)]
                break
            embedded = self._model.model.language_model.embed_tokens(self._ids([token]))
            token = int(self._step(embedded, 1).argmax())
        self._forget(self._cache.get_seq_length() - self._permanent)
        return tokens

    def _run(self, draft: list[int], fixed: int, last: bool) -> Tensor:
        """Logits ``(len(draft) - fixed + 1, vocabulary)`` of what follows on the fixed ids and on
        each further id of the draft."""
        rest = self._session.finish() if last else self._session.peek()
        audio = self._model.model.multi_modal_projector(torch.cat([*self._final, rest]))
        self._final = []
        prompt = self._prompts.prompt(self._finals + len(rest), self._context)
        self._permanent = prompt.index(self._model.config.audio_token_id) + self._finals
        new = prompt[self._cache.get_seq_length():]
        # the answer apart from the prompt: a model may write <|audio_pad|> too
        said = self._model.model.language_model.embed_tokens(self._ids(self._prefill + draft))
        return self._step(torch.cat([self._model.embed(self._ids(new), audio), said], 1),
                          len(draft) - fixed + 1)

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self._model.device)

    def _step(self, embeddings: Tensor, outputs: int) -> Tensor:
        """Run ``(1, length, d)`` behind the cache; logits ``(outputs, vocabulary)`` of the last."""
        hidden = self._model.model.language_model(
            inputs_embeds=embeddings, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        return self._model.lm_head(hidden[0, -outputs:])

    def _forget(self, tokens: int) -> None:
        """Take the last ``tokens`` out of the cache."""
        if tokens:
            self._cache.crop(-tokens)
