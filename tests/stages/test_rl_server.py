"""stage=rl with a server in vLLM's place: one that serves what the run writes, by transformers' own
classes, and speaks its protocol."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import torch

from qwen3asr_train.decoding.policy_server import PolicyServer
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr


class Serving(BaseHTTPRequestHandler):
    """Answers by transformers' ``generate`` with the weights that were last read."""

    folder = ""
    served = None
    reads: list[dict] = []

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = {}
        if self.path == "/collective_rpc":
            with open(f"{self.folder}/config.json") as file:
                self.reads.append(json.load(file))
            type(self).served = asr.load(self.folder)
        elif self.path == "/v1/chat/completions":
            assert request["model"] == self.folder
            reply = {"choices": answers(*self.served, request)}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@torch.inference_mode()
def answers(model, processor, request) -> list[dict]:
    """Choices with ids and log-probabilities, as vLLM gives them."""
    *before, user = request["messages"]
    audio = base64.b64decode(user["content"][0]["input_audio"]["data"])
    waveform, _ = soundfile.read(io.BytesIO(audio), dtype="float32")
    inputs = processor.apply_chat_template(
        [[*before, {"role": "user", "content": [{"type": "audio", "audio": waveform}]}]],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(request["seed"])
    found = model.generate(
        **inputs, do_sample=True, temperature=request["temperature"], top_k=0, top_p=1.0,
        num_return_sequences=request["n"], max_new_tokens=request["max_tokens"],
        output_scores=True, return_dict_in_generate=True)
    chosen = found.sequences[:, inputs["input_ids"].shape[1]:]
    logs = torch.stack(found.scores, 1).log_softmax(-1).gather(2, chosen.unsqueeze(2))[..., 0]
    choices = []
    for ids, own in zip(chosen.tolist(), logs.tolist(), strict=True):
        ends = [i for i, token in enumerate(ids) if token in model.config.eos_token_id]
        length = ends[0] + 1 if ends else len(ids)
        choices.append({"token_ids": ids[:length], "logprobs": {
            "content": [{"logprob": value} for value in own[:length]]}})
    return choices


@pytest.fixture
def url(tmp_path):
    Serving.folder, Serving.served, Serving.reads = str(tmp_path / "policy"), None, []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Serving)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_the_server_answers_with_the_weights_that_are_trained(command_line, finished_run, url,
                                                              tmp_path):
    command_line("stage=rl", f"init_from={finished_run / 'model'}", f"run_dir={tmp_path / 'run'}",
                 f"stage.server.url={url}", f"stage.server.folder={Serving.folder}",
                 "stage.server.parallel=1", "trainer.max_steps=4", "trainer.validate_every=0",
                 "stage.test=false", "stage.updates_per_rollout=2", "stage.sampling.group=4",
                 "stage.optimizer.lr=1e-3", "stage.sampling.max_new_tokens=12")
    assert len(Serving.reads) == 2 and all("thinker_config" in read for read in Serving.reads)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    gaps = {row["step"]: row["train/log_prob_gap"] for row in map(json.loads, lines)
            if "train/log_prob_gap" in row}
    # steps behind the first of a rollout train on what was another policy
    assert gaps[1] < 1e-4 and gaps[3] < 1e-4, gaps
    assert gaps[2] > 10 * gaps[1] and gaps[4] > 10 * gaps[3], gaps


@pytest.mark.parametrize("reply", [{}, {"error": "busy"}, [1], {"choices": None},
                                   {"choices": ["a"]}, {"choices": [{"token_ids": [1]}]}])
def test_a_reply_that_holds_no_answers_is_told(reply, monkeypatch):
    server = PolicyServer("http://host:1", "folder")
    monkeypatch.setattr(PolicyServer, "_post", lambda *_: reply)
    with pytest.raises(UserError, match="http://host:1: no "):
        server.sample([(np.zeros(1600, np.float32), "")], 1, 1.0, 4, [0])


def test_the_server_hears_the_numbers_that_are_trained_on(monkeypatch):
    """Noise and gain go beyond 1."""
    heard = []
    monkeypatch.setattr(PolicyServer, "_post", lambda _, __, request: heard.append(request) or {
        "choices": [{"token_ids": [1], "logprobs": {"content": [{"logprob": -1.0}]}}]})
    waveform = np.random.default_rng(0).normal(0, 1, 1600).astype(np.float32)
    PolicyServer("http://host:1", "folder").sample([(waveform, "")], 1, 1.0, 4, [0])
    audio = base64.b64decode(heard[0]["messages"][0]["content"][0]["input_audio"]["data"])
    found, rate = soundfile.read(io.BytesIO(audio), dtype="float32")
    assert np.array_equal(found, waveform) and rate == 16_000
