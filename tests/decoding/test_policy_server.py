"""The vLLM client against a stand-in server that speaks its protocol."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from qwen3asr_train.decoding.policy_server import PolicyServer
from qwen3asr_train.errors import UserError


class StandIn(BaseHTTPRequestHandler):
    """Answers with the number of audio samples as the only token, and keeps what it was asked."""

    asked: list[tuple[str, dict]] = []
    change = staticmethod(lambda reply: reply)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, request))
        reply = {}
        if self.path == "/v1/chat/completions":
            audio = request["messages"][-1]["content"][0]["input_audio"]
            waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["data"])))
            assert rate == 16_000 and audio["format"] == "wav"
            choice = {"token_ids": [len(waveform), 7],
                      "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}}
            reply = self.change({"choices": [choice] * request["n"]})
        body = json.dumps(reply).encode()
        self.send_response(200 if reply is not None else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    StandIn.asked, StandIn.change = [], staticmethod(lambda reply: reply)
    http = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield PolicyServer(f"http://127.0.0.1:{http.server_port}/", "runs/policy")
    http.shutdown()


def test_answers_come_in_order_with_their_log_probabilities(server):
    utterances = [(np.zeros(160 * i, dtype=np.float32), context)
                  for i, context in ((3, ""), (1, "Saraph, Fiona"), (2, ""))]
    found = server.sample(utterances, 2, 0.9, 64, [11, 12, 13])
    assert found == [[([160 * i, 7], [-0.5, -0.25])] * 2 for i in (3, 1, 2)]
    requests = sorted((request for _, request in StandIn.asked), key=lambda r: r["seed"])
    assert [r["messages"][0] for r in requests[1:2]] == [
        {"role": "system", "content": "Saraph, Fiona"}]
    for request, seed in zip(requests, (11, 12, 13), strict=True):
        assert request["n"] == 2 and request["seed"] == seed and request["logprobs"]
        assert request["temperature"] == 0.9 and request["max_tokens"] == 64
        assert request["top_p"] == 1 and request["return_token_ids"]


def test_new_weights_are_asked_for(server):
    server.reload()
    assert StandIn.asked == [("/collective_rpc", {"method": "reload_weights"}),
                             ("/reset_prefix_cache", {})]


@pytest.mark.parametrize("change, message", [
    (lambda reply: {"choices": reply["choices"][:1]}, "1 answers where 2"),
    (lambda reply: {"choices": [{"token_ids": [1], "logprobs": None}] * 2}, "no token ids"),
    (lambda reply: {"choices": [{"token_ids": [1, 2], "logprobs": {"content": []}}] * 2},
     "2 tokens and 0"),
    (lambda reply: None, "500")])
def test_what_is_wrong_is_one_line(server, change, message):
    StandIn.change = staticmethod(change)
    with pytest.raises(UserError, match=message):
        server.sample([(np.zeros(100, dtype=np.float32), "")], 2, 1.0, 8, [0])


def test_no_server():
    with pytest.raises(UserError, match=r"stage\.server\.url"):
        PolicyServer("http://127.0.0.1:9", "x").reload()
