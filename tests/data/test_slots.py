"""The aligner's text against transformers' processor; slots and labels by brute force."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.slots import (
    BOTH,
    NONE,
    START,
    SlotOptions,
    SlotPrompts,
    draw_slots,
    group_ends,
    group_slots,
    is_letter,
    slot_text,
    split_units,
    unit_times,
)
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.models.aligner import with_slots
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

TEXTS = ["turn on the light, don't stop!", "关上客厅的门。", "关灯 please 现在",
         "Ça va? Où est-il?", "3 small eggs… and 20 more"]


@pytest.fixture(scope="module")
def processor():
    texts = ["turn on the light please now", "关上客厅的门"] * 5
    return with_slots(make_processor(train_tokenizer(texts, 400)))


@pytest.fixture(scope="module")
def prompts(processor):
    return SlotPrompts(processor, num_labels=3750)


@pytest.mark.parametrize("seconds", [0.2, 2.345, 9.1])
def test_ids_equal_transformers(processor, prompts, seconds):
    from qwen3asr_train.data import features

    waveform = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
    tokens = features.audio_tokens(features.mel_frames(len(waveform)))
    for text in TEXTS:
        theirs, (words,) = processor.prepare_forced_aligner_inputs([waveform], [text])
        assert prompts.units(text, None) == words
        ids = prompts.ids(tokens, words, [BOTH] * len(words))
        assert ids == theirs["input_ids"][0].tolist()


def test_japanese_and_korean_need_their_tokenisers(processor, monkeypatch):
    from transformers.models.qwen3_asr import processing_qwen3_asr as theirs

    for name, package in (("Japanese", "nagisa"), ("Korean", "soynlp")):
        monkeypatch.setattr(theirs, f"is_{package}_available", lambda: False)
        with pytest.raises(UserError, match=f"pip install {package}"):
            split_units(processor, "テキスト", name)


@pytest.mark.parametrize(("name", "text"), [("Japanese", "私は東京に住んでいます。"),
                                            ("Korean", "나는 서울에 살고 있다.")])
def test_japanese_and_korean(processor, name, text):
    pytest.importorskip({"Japanese": "nagisa", "Korean": "soynlp"}[name])
    units = split_units(processor, text, name)
    assert len(units) > 2 and "".join(units) == "".join(filter(is_letter, text))


def test_slots_among_words(prompts):
    assert slot_text(["turn", "on", "the", "light"], [START, NONE, NONE, BOTH]) == \
        "turn<timestamp>on the light<timestamp><timestamp>"
    assert slot_text(["关", "灯", "now"], [NONE, BOTH, NONE]) == "关灯<timestamp><timestamp>now"
    assert slot_text([], []) == ""


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from([BOTH, START, NONE]), st.integers(0, 299_900),
                          st.integers(0, 299_900), st.booleans()), min_size=1, max_size=9))
def test_labels_stand_at_their_slots(prompts, drawn):
    slots = [count for count, *_ in drawn]
    times = [(None if unknown else min(a, b) / 1000, max(a, b) / 1000)
             for _, a, b, unknown in drawn]
    units = ["light"] * len(slots)
    ids = prompts.ids(13, units, slots)
    labels = prompts.labels(ids, times, slots)
    assert len(labels) == len(ids) and ids[:15] == prompts.ids(13, [], [])
    found = [label for token, label in zip(ids, labels, strict=True) if token == prompts.slot_id]
    wanted = [time for pair, count in zip(times, slots, strict=True) for time in pair[:count]]
    assert len(found) == len(wanted)
    for label, time in zip(found, wanted, strict=True):
        assert label == -100 if time is None else abs(label * 0.08 - time) <= 0.04 + 1e-9
    assert all(label == -100 for token, label in zip(ids, labels, strict=True)
               if token != prompts.slot_id)


def test_the_last_class(prompts):
    assert prompts.time_class(3749.4 * 0.08) == 3749
    with pytest.raises(DataError, match="3750 classes end at 300 s"):
        prompts.time_class(300.0)


def test_times_of_units(processor):
    words = [["Don't", 0.0, 0.4], ["—", 0.4, 0.5], ["stop", 0.5, 1.0]]
    assert unit_times(processor, ["don't", "stop"], words) == [(0.0, 0.4), (0.5, 1.0)]
    # a teacher's Chinese words, of which the times between are not known
    assert unit_times(processor, list("关上门"), [["关上", 0.1, 0.5], ["门", 0.6, 0.9]]) == [
        (0.1, None), (None, 0.5), (0.6, 0.9)]
    # two words that are one unit
    assert unit_times(processor, ["twentyone"], [["twenty", 1, 2], ["one", 2, 3]]) == [(1, 3)]
    assert unit_times(processor, ["a", "b"], [["a", None, None], ["b", 1, 2]])[0] == (None, None)


@pytest.mark.parametrize(("words", "message"), [
    ([["stop", 0, 1]], "not those of the text"), ([["go", 0, 1], ["on", 1, 2]], "not those"),
    ([["go", 2, 1]], "'go' from 2 to 1"), ([["go", -1, 1]], "from -1"),
    ([["go", float("nan"), 1]], "from nan"), ([["go", "0", 1]], "is not .word, start s, end s"),
    ([{"word": "go", "start": 0, "end": 1}], "is not"), ([[None, 0, 1]], "is not"),
    ([["go", 0]], "is not")])
def test_bad_words(processor, words, message):
    with pytest.raises(DataError, match=message):
        unit_times(processor, ["go"], words)


@given(st.text(max_size=60))
def test_letters_are_what_transformers_keeps(processor, text):
    assert "".join(processor.split_words_for_alignment(text)) == "".join(filter(is_letter, text))


def test_sentences_and_paragraphs():
    units = "it is 3.5 o'clock Go now 好 的 yes".replace("3.5", "35").split()
    text = "It is 3.5 o'clock. Go\nnow! 好。的\n\nyes"
    assert group_ends(text, units) == [4, 5, 6, 7, 8, 9]
    assert group_ends(text, units, "paragraph") == [8, 9]
    assert group_ends("no end", ["no", "end"]) == [2]
    assert group_slots([2, 3, 6]) == [START, BOTH, BOTH, START, NONE, BOTH]


def test_drawn_slots_have_their_shares():
    units, times = ["a"] * 40, [(float(i), i + 0.5) for i in range(40)]
    rng = np.random.default_rng(0)
    options = SlotOptions(all_share=0.0, sentence_share=0.0, both_share=0.5, start_share=0.2)
    drawn = np.concatenate([draw_slots(options, "", units, times, rng) for _ in range(200)])
    assert [np.mean(drawn == count) for count in (BOTH, START, NONE)] == \
        pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    everything = SlotOptions(all_share=0.3, sentence_share=0.0)
    whole = [draw_slots(everything, "", units, times, rng) == [BOTH] * 40 for _ in range(500)]
    assert np.mean(whole) == pytest.approx(0.3, abs=0.06)
    sentences = SlotOptions(all_share=0.0, sentence_share=1.0, sentence_pause=0.4)
    assert draw_slots(sentences, "a a", ["a", "a"], [(0, 1), (1.1, 2)], rng) == [START, BOTH]
    assert draw_slots(sentences, "a a", ["a", "a"], [(0, 1), (1.5, 2)], rng) == [BOTH, BOTH]
    nothing = SlotOptions(all_share=0, sentence_share=0, both_share=0, start_share=0)
    assert sum(draw_slots(nothing, "", units, times, rng)) == BOTH


def test_shares_that_make_no_sense():
    with pytest.raises(UserError, match=r"stage.slots.all_share=0.8, sentence_share=0.3"):
        SlotOptions(all_share=0.8, sentence_share=0.3)
