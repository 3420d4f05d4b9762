"""Sampling on a vLLM server instead of in the training process.

The server is started by the user on a folder that the run writes its weights to, in the layout that
vLLM reads (:mod:`qwen3asr_train.models.original`):

    python -m qwen3asr_train stage=export init_from=MODEL out=FOLDER
    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --logprobs-mode processed_logprobs

the latter so that log-probabilities are those of the temperature that was drawn with. Answers are
drawn through its OpenAI-compatible ``/v1/chat/completions`` with ``input_audio``, ``logprobs`` and
``return_token_ids``; new weights are read from the folder at ``/collective_rpc``
``reload_weights``, and what was cached of prompts under the old ones is dropped at
``/reset_prefix_cache`` (docs.vllm.ai: OpenAI-compatible server; sleep mode, RLHF).
"""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qwen3asr_train.data.audio import encode
from qwen3asr_train.errors import UserError

Answer = tuple[list[int], list[float]]
"""Token ids, the end included, and their log-probabilities."""


@dataclass(frozen=True)
class PolicyServer:
    """A server at ``url`` (``http://host:port``) that serves ``folder``.

    ``parallel``: requests under way at a time. ``timeout``: seconds for one.
    """

    url: str
    folder: str
    parallel: int = 32
    timeout: float = 600.0

    def reload(self) -> None:
        """Have the server read the weights in ``folder`` anew."""
        self._post("/collective_rpc", {"method": "reload_weights"})
        self._post("/reset_prefix_cache", {})

    def sample(self, utterances: Sequence[tuple[np.ndarray, str]], group: int, temperature: float,
               max_new_tokens: int, seeds: Sequence[int]) -> list[list[Answer]]:
        """``group`` answers to each ``(waveform at 16 kHz, context)``. UserError when the server
        does not answer, or answers something else."""
        def ask(utterance: tuple[np.ndarray, str], seed: int) -> list[Answer]:
            waveform, context = utterance
            # float, since noise and gain go beyond 1
            audio = base64.b64encode(encode(np.asarray(waveform, np.float32), "wav",
                                            subtype="FLOAT")).decode()
            messages = [{"role": "system", "content": context}] if context else []
            reply = self._post("/v1/chat/completions", {
                "model": self.folder, "n": group, "temperature": temperature, "top_p": 1.0,
                "top_k": -1, "max_tokens": max_new_tokens, "seed": seed, "logprobs": True,
                "return_token_ids": True, "skip_special_tokens": False,
                "messages": [*messages, {"role": "user", "content": [
                    {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}}]}]})
            if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
                raise UserError(f"{self.url}: no choices in the answer {str(reply)[:200]}")
            return [self._answer(choice) for choice in reply["choices"]]

        with ThreadPoolExecutor(self.parallel) as pool:
            found = list(pool.map(ask, utterances, seeds))
        if wrong := [len(answers) for answers in found if len(answers) != group]:
            raise UserError(f"{self.url}: {wrong[0]} answers where {group} were asked for")
        return found

    def _answer(self, choice: dict) -> Answer:
        try:
            tokens = [int(token) for token in choice["token_ids"]]
            logs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.url}: no token ids and log-probabilities in the answer "
                            f"({error!r}); vLLM 0.10.2 or newer gives them") from error
        if len(tokens) != len(logs) or not tokens:
            raise UserError(f"{self.url}: {len(tokens)} tokens and {len(logs)} log-probabilities")
        return tokens, logs

    def _post(self, path: str, payload: dict) -> dict:
        request = urllib.request.Request(
            self.url.rstrip("/") + path, json.dumps(payload).encode(),
            {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                body = response.read()
            return json.loads(body) if body.strip() else {}
        except urllib.error.HTTPError as error:
            reason = error.read().decode("utf-8", "replace")[:200]
            raise UserError(f"{self.url}{path}: {error.code} {reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(f"{self.url}{path}: {error} (stage.server.url)") from error
