"""A stream against the same scheme without any cache; events, segments, guards."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data import features
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.decoding.generate import ends_of
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.live import Event, LiveTranscriber, transcript_of
from qwen3asr_train.decoding.live_pauses import Pauses
from qwen3asr_train.decoding.transcriber import Transcriber
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.models import asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

SIZES = {
    "audio_config": dict(num_mel_bins=128, d_model=16, encoder_layers=1, encoder_attention_heads=2,
                         encoder_ffn_dim=24, downsample_hidden_size=4, initializer_range=0.3),
    "text_config": dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                        tie_word_embeddings=False, initializer_range=0.4),
}
SPARSE = dict(max_new_tokens_per_chunk=9,  # a random model repeats itself and seldom ends
              guard=RepetitionGuard(max_repeats=1000, max_tokens_per_second=6))


@pytest.fixture(scope="module")
def processor():
    texts = ["turn on the light", "关上客厅的门", "language English None", "system user assistant"]
    return make_processor(train_tokenizer(texts * 5, 400))


@pytest.fixture(scope="module")
def model(processor):
    return asr.build(SIZES, processor, seed=0).eval()


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose level and colour change every 0.2 s, with pauses of about half a second."""
    rng = np.random.default_rng(seed)
    samples, parts = int(seconds * 16_000), []
    for _ in range(samples // 3200 + 1):
        width = rng.integers(1, 20)
        sound = np.convolve(rng.standard_normal(3200), np.full(width, 1 / width), "same")
        parts.append(sound * 10 ** rng.uniform(-1.5, 0))
        if rng.random() < 0.08:
            parts.append(1e-3 * rng.standard_normal(rng.integers(4000, 14_000)))
    return (0.3 * np.concatenate(parts)[:samples]).astype(np.float32)


def stream(live: LiveTranscriber, audio: np.ndarray, cuts: list[int]) -> list[Event]:
    events = []
    for piece in np.split(audio, sorted(min(cut, len(audio)) for cut in cuts)):
        events += live.accept(piece)
    return events + live.finish()


class Naive:
    """The answer to a segment from all its audio, with no cache and no draft."""

    def __init__(self, model, processor, language, window_chunks, guard, max_new_tokens):
        self.model, self.guard, self.window_chunks = model, guard, window_chunks
        self.prompts, self.max_new_tokens = PromptBuilder(processor.tokenizer), max_new_tokens
        self.prefill = self.prompts.prefill(language) if language else []
        self.audio = np.empty(0, np.float32)

    def hear(self, samples):
        self.audio = np.concatenate([self.audio, samples])

    def answer(self, before, fixed, last=False):
        mel = features.log_mel(self.audio, 100 * self.window_chunks)
        chunks, lengths = features.chunk(mel)
        audio = self.model.encode_audio(
            {"input_features": chunks, "chunk_lengths": lengths,
             "clip_chunks": torch.tensor([len(chunks)]), "window_chunks": self.window_chunks})
        prompt = self.prompts.prompt(features.audio_tokens(len(mel))) + self.prefill
        tokens, new, agreed = before[:fixed], 0, fixed
        while True:
            embeddings = torch.cat(
                [self.model.embed(torch.tensor([prompt]), audio),
                 self.model.model.language_model.embed_tokens(torch.tensor([tokens]).long())], 1)
            hidden = self.model.model.language_model(inputs_embeds=embeddings, use_cache=False)
            token = int(self.model.lm_head(hidden.last_hidden_state[0, -1]).argmax())
            self.unfinished = token not in ends_of(self.model) and \
                new == self.max_new_tokens and not last
            if self.unfinished or token in ends_of(self.model):
                return tokens
            if agreed == len(tokens) and before[agreed:agreed + 1] == [token]:
                agreed += 1  # as before, which does not count as new
            else:
                new += 1
            tokens = [*tokens, token]
            if new:
                if len(tokens) > self.guard.limit(len(self.audio) / 16_000):
                    return tokens[:agreed]
                if (cut := self.guard.loop(tokens)) is not None:
                    return tokens[:max(cut, fixed)]


@pytest.mark.parametrize("options", [
    dict(language="English"),
    dict(language="English", unfixed_at="start", window_seconds=1, fallback_tokens=2),
    dict(),
    dict(language="Chinese", chunk_seconds=0.7, unfixed_chunks=2, max_new_tokens_per_chunk=6,
         fallback_tokens=1, window_seconds=3, pause_seconds=0.4, max_segment_seconds=5.0,
         guard=RepetitionGuard(max_repeats=4, max_ngram=3, max_tokens_per_second=7)),
])
def test_events_are_those_of_doing_everything_again(model, processor, options):
    options = SPARSE | dict(pause_seconds=3.0, max_segment_seconds=13.0) | options
    audio = speech_like(19.3, seed=3)
    live, naive = (LiveTranscriber(model, processor, **options) for _ in range(2))
    make = naive._new_segment

    def naive_segment(*place):
        segment = make(*place)
        segment.decoder = Naive(model, processor, options.get("language"), naive.window_seconds,
                                naive.guard, naive.max_new_tokens_per_chunk)
        return segment

    naive._new_segment, naive._segment = naive_segment, naive_segment(0)
    found = stream(live, audio, [])
    assert found == stream(naive, audio, [])
    assert sum(event.kind == "final" for event in found) >= 2
    if options.get("language"):
        assert any(0 < event.stable < len(event.text) for event in found)
        assert len({event.text for event in found}) > len(found) / 2


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 150_000), st.lists(st.integers(0, 150_000), max_size=40),
       st.sampled_from(["start", "end"]))
def test_any_cut_gives_the_same_events_and_stable_text_stays(model, processor, samples, cuts, at):
    audio = speech_like(max(samples, 1) / 16_000, samples)[:samples]
    options = SPARSE | dict(language="English", chunk_seconds=0.9, unfixed_chunks=3,
                            window_seconds=2, unfixed_at=at, max_segment_seconds=6)
    events = stream(LiveTranscriber(model, processor, **options), audio, cuts)
    assert events == stream(LiveTranscriber(model, processor, **options), audio, [])
    # segments cover the stream, each ends with its final event, and what is stable stays
    begun, stable = 0.0, ""
    for event in events:
        assert event.start == begun < event.end and "\ufffd" not in event.text
        assert event.text.startswith(stable)
        stable = event.text[:event.stable]
        if event.kind == "final":
            begun, stable = event.end, ""
            assert event.stable == len(event.text)
    assert begun == len(audio) / 16_000
    assert "".join(transcript_of(events).text.split()) == "".join(
        "".join(event.text for event in events if event.kind == "final").split())


def test_a_whole_window_is_encoded_once(model, processor, monkeypatch):
    audio, seen = speech_like(19.0, 4), Counter()
    forward = type(model.model.audio_tower).forward

    def counted(self, chunks, **kwargs):
        seen[chunks.numpy().tobytes()] += 1
        assert len(chunks) <= 3  # never more than a window
        return forward(self, chunks, **kwargs)

    monkeypatch.setattr(type(model.model.audio_tower), "forward", counted)
    stream(LiveTranscriber(model, processor, language="English", window_seconds=3,
                           pause_seconds=9.0, max_segment_seconds=99, **SPARSE), audio, [])
    mel = features.LogMelStream(300)
    windows = [*mel.accept(audio), *mel.finish()]
    assert [seen[features.chunk(window)[0].numpy().tobytes()] for window in windows] == [1] * 7


def test_the_cost_of_a_chunk_does_not_grow(model, processor):
    """Tokens through the language model: prompt, audio of a window, text of a segment."""
    passed, frames = [0], [0]
    handles = [
        model.model.language_model.register_forward_pre_hook(
            lambda _, __, inputs: passed.append(passed.pop() + inputs["inputs_embeds"].shape[1]),
            with_kwargs=True),
        model.model.audio_tower.register_forward_pre_hook(
            lambda _, inputs, __: frames.append(frames.pop() + 100 * len(inputs[0])),
            with_kwargs=True)]
    live, chunks = LiveTranscriber(model, processor, language="English",
                                   max_segment_seconds=20, **SPARSE), []
    for piece in np.split(speech_like(180, 5), 90):
        live.accept(piece)
        chunks.append((passed[0], frames[0]))
        passed[0] = frames[0] = 0
    for handle in handles:
        handle.remove()
    tokens, encoded = map(max, zip(*chunks, strict=True))
    # two windows' audio, the prompt, the text of a segment as a draft, and what is written anew
    assert tokens <= 2 * 104 + 40 + 2 * 11 * 9 and encoded <= 1600
    late = [tokens for tokens, _ in chunks[60:]]
    early = [tokens for tokens, _ in chunks[:30]]
    assert max(late) <= 1.2 * max(early) and sum(late) <= 1.2 * sum(early)


def followed_by(model, table: dict[int, int]) -> asr.Recogniser:
    """A model that writes ``table[token]`` after ``token``, whatever it hears; else the end."""
    rigged = copy.deepcopy(model)
    for layer in rigged.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    embeddings = torch.nn.functional.normalize(rigged.model.language_model.embed_tokens.weight)

    class Head(torch.nn.Module):
        def forward(self, hidden):
            last = (hidden @ embeddings.T).argmax(-1).flatten().tolist()
            end = rigged.generation_config.eos_token_id[-1]
            following = torch.tensor([table.get(token, end) for token in last])
            following = following.view(hidden.shape[:-1])
            return torch.nn.functional.one_hot(following, len(embeddings)).float()

    rigged.lm_head = Head()
    return rigged


def saying(model, processor, text: str, loop: bool = False) -> asr.Recogniser:
    """A model that writes ``text`` (tokens all different), once or again and again."""
    ids = processor.tokenizer(text)["input_ids"]
    assert len(set(ids)) == len(ids)
    start = processor.tokenizer("<|im_start|>assistant\n")["input_ids"][-1]
    table = dict(zip([start, *ids], ids, strict=False))
    marker = processor.tokenizer.convert_tokens_to_ids("<asr_text>")
    return followed_by(model, table | ({ids[-1]: ids[ids.index(marker) + 1]} if loop else {}))


def test_no_speech_is_empty_text(model, processor):
    silent = saying(model, processor, "language None<asr_text>")
    events = stream(LiveTranscriber(silent, processor, max_segment_seconds=12), speech_like(30), [])
    assert {(event.text, event.language, event.stable) for event in events} == {("", None, 0)}
    assert transcript_of(events).text == "" and transcript_of(events).language is None
    nothing = LiveTranscriber(silent, processor)
    assert nothing.accept(np.empty(0)) == nothing.finish() == []
    assert transcript_of([]).text == ""


def test_a_loop_is_cut_to_its_first_round_and_the_segment_goes_on(model, processor):
    looping = saying(model, processor, "language English<asr_text>turn on", loop=True)
    live = LiveTranscriber(looping, processor, max_segment_seconds=60, pause_seconds=50)
    events = stream(live, speech_like(21), [])
    assert len(events) == 11 and {event.kind for event in events[:-1]} == {"partial"}
    assert {event.language for event in events} == {"English"}
    assert {event.text for event in events} == {"turn on"}


def test_too_many_tokens_for_the_audio_are_not_believed(model, processor):
    babble = "language English<asr_text>0123456789ABCDFGHIJKLMNOPQRSTUVWXYZ"
    talking = saying(model, processor, babble)
    told = dict(max_segment_seconds=60, pause_seconds=50)
    events = stream(LiveTranscriber(talking, processor, **told), speech_like(9), [])
    assert events[-1].text == babble.partition(">")[2]
    strict = RepetitionGuard(max_tokens_per_second=3, allowance=4)
    events = stream(LiveTranscriber(talking, processor, guard=strict, **told), speech_like(9), [])
    assert [event.text for event in events] == [""] * 5


def test_a_budget_per_chunk_spreads_an_answer_over_chunks(model, processor):
    talking = saying(model, processor, "language English<asr_text>turn on the light")
    live = LiveTranscriber(talking, processor, max_new_tokens_per_chunk=3, pause_seconds=50)
    texts = [event.text for event in stream(live, speech_like(10), [])]
    assert texts[0] != texts[1] and texts[-1] == "turn on the light"


@pytest.mark.parametrize("seconds", [2.0, 1.3, 4.0])  # whole chunks, and the beginning of one
def test_the_last_answer_of_a_segment_is_whole_whatever_the_budget(model, processor, seconds):
    talking = saying(model, processor, "language English<asr_text>turn on the light")
    live = LiveTranscriber(talking, processor, max_new_tokens_per_chunk=2, pause_seconds=50)
    events = stream(live, speech_like(seconds), [])
    assert events[-1].kind == "final" and events[-1].text == "turn on the light"
    assert events[-1].end == seconds


def test_half_a_character_is_not_shown(model, processor):
    live = LiveTranscriber(model, processor, language="Chinese")
    ids = processor.tokenizer("the 鑫")["input_ids"]
    texts = [live._reader(ids[:count])[1] for count in range(len(ids) + 1)]
    assert texts[-1] == "the 鑫" and texts[-2] == texts[-3] == "the"


@pytest.mark.parametrize(("tokens", "kept"), [
    ([1, 2, 3, 4], None), ([5, 5, 5], None), ([5, 5, 5, 5], 1), ([9, 1, 2, 1, 2, 1, 2, 1, 2], 3),
    ([1, 2, 1, 2, 1, 2, 1], None), ([7, 7, 7, 7, 7, 7], 1), ([5, 5, 5, 5, 6], None)])
def test_loops(tokens, kept):
    assert RepetitionGuard(max_repeats=3, max_ngram=2).loop(tokens) == kept


def test_a_whole_answer_is_cut_to_its_length_and_a_loop_to_its_first_round():
    guard = RepetitionGuard(max_repeats=3, max_ngram=2, max_tokens_per_second=5, allowance=2)
    assert guard.cut([1, 2, 3, 4], 1.0) == [1, 2, 3, 4]
    assert guard.cut(list(range(20)), 2.0) == list(range(12))
    assert guard.cut([7, 1, 2] + [1, 2] * 9, 2.0) == [7, 1, 2]


def test_pauses():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(64_000).astype(np.float32)
    audio[:8000] *= 1e-3  # quiet before the first sound is no pause
    audio[32_000:36_800] *= 1e-3
    audio[48_000:51_200] *= 1e-3
    pauses = Pauses(25.0)
    for piece in np.split(audio, [3, 5000, 33_333]):
        pauses.accept(piece)
    assert pauses.cut(0, 0.25) == 34_400 and pauses.cut(0, 0.4) is None
    assert pauses.cut(40_000, 0.15) == 49_600 and pauses.cut(40_000, 0.25) is None
    assert pauses.cut(36_000, 0.25) == 36_000  # the pause began before the earliest place
    assert pauses.cut(52_000, 0.1) is None and 52_000 <= pauses.cut(52_000, 0.0) <= 64_000
    assert 48_000 <= pauses.cut(40_000, 0.0) <= 51_200
    assert Pauses(25.0).cut(0, 0.0) is None


def test_a_cut_is_where_it_is_quiet(model, processor):
    rng = np.random.default_rng(1)
    audio = (0.1 * rng.standard_normal(16_000 * 12)).astype(np.float32)
    audio[81_600:97_600] *= 1e-3
    events = stream(LiveTranscriber(model, processor, **SPARSE), audio, [])
    # 0.9 s of quiet before the third chunk's end, where 0.8 s are enough
    assert [event.end for event in events if event.kind == "final"] == [5.55, 12.0]


@pytest.mark.parametrize("piece", [np.array([0.0, np.nan]), np.zeros((2, 5))])
def test_bad_audio_is_refused(model, processor, piece):
    with pytest.raises(DataError, match="finite samples of one channel"):
        LiveTranscriber(model, processor).accept(piece)


def test_a_finished_stream_takes_no_more(model, processor):
    live = LiveTranscriber(model, processor, **SPARSE)
    live.accept(np.zeros(5))
    assert len(live.finish()) == 1
    with pytest.raises(ValueError, match="finished"):
        live.accept(np.zeros(5))
    with pytest.raises(ValueError, match="finished"):
        live.finish()


@pytest.mark.parametrize("options", [
    dict(chunk_seconds=0), dict(fallback_tokens=-1), dict(unfixed_at="middle"),
    dict(window_seconds=0), dict(pause_seconds=0), dict(max_segment_seconds=1),
    dict(guard=RepetitionGuard(max_repeats=0))])
def test_nonsense_is_refused(model, processor, options):
    with pytest.raises(UserError, match=f"{next(iter(options))}=.* makes no sense"):
        LiveTranscriber(model, processor, **options)


def test_offline_loops_are_cut_too(model, processor):
    looping = saying(model, processor, "language English<asr_text>turn on", loop=True)
    audio = [speech_like(9), speech_like(3)]
    found = Transcriber(looping, processor, max_new_tokens=60, max_piece_seconds=4)(audio)
    assert [(row.language, row.text) for row in found] == [
        ("English", "turn on turn on turn on"), ("English", "turn on")]  # three pieces, and one
    loose = RepetitionGuard(max_repeats=1000)
    free = Transcriber(looping, processor, max_new_tokens=60, guard=loose)(audio)
    assert all(row.text.startswith("turn onturn on") for row in free)
