"""Figures about contexts: against counts by hand and a search over whole words."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.evaluation.contexts import (
    Order,
    entity_recall,
    false_alarm,
    holds,
    obeyed_share,
)
from qwen3asr_train.evaluation.metrics import Utterance


def utterance(reference="call Sarah now", hypothesis="call Sarah now", language="English",
              predicted="English", key="a", **more):
    return Utterance(key, reference, hypothesis, language, predicted, 1.0, **more)


def test_entity_recall_counts_names_that_were_said():
    right = utterance(entities=("Sarah",), listed=("Sarah", "Jon"))
    wrong = utterance(hypothesis="call Sara now", entities=("Sarah",))
    not_said = utterance(entities=("Jon",))
    assert entity_recall([right, wrong, not_said]) == 0.5
    assert entity_recall([not_said]) is None


def test_entity_recall_counts_listed_words_where_no_names_are_given():
    heard = utterance("call anna", "call anna", listed=("Anna", "Bob"))
    missed = utterance("call anna", "call hannah", listed=("Anna", "Bob"))
    assert entity_recall([heard, missed]) == 0.5
    given = utterance("call anna now", "call anna", listed=("Anna", "now"), entities=("Anna",))
    assert entity_recall([given]) == 1.0


def test_false_alarms_are_listed_names_that_were_not_said():
    clean = utterance(listed=("Sarah", "Jon"))
    alarm = utterance(hypothesis="call Jon now", listed=("Jon", "Neil"))
    without = utterance(hypothesis="call Jon now")
    assert false_alarm([clean, alarm, without]) == 0.5
    assert false_alarm([without]) is None


def test_chinese_names_are_found_between_other_characters():
    said = utterance("请找张明和章明", "请找张明", "Chinese")
    assert holds(said, said.hypothesis, "张明") and not holds(said, said.hypothesis, "章明")


words = st.lists(st.sampled_from(["ann", "anne", "an", "bo", "bob"]), max_size=6)


@settings(max_examples=200, deadline=None)
@given(words, words.filter(bool))
def test_names_are_whole_words(text, name):
    found = holds(utterance(), " ".join(text), " ".join(name))
    assert found == bool(re.search(rf"(?<!\S){' '.join(name)}(?!\S)", " ".join(text)))


@pytest.mark.parametrize(("order", "answer", "obeyed"), [
    (Order("Be silent", empty=True), utterance(hypothesis=" "), True),
    (Order("Be silent", empty=True), utterance(), False),
    (Order("Write OK", says="OK"), utterance(hypothesis="ok"), True),
    (Order("Write OK", says="OK"), utterance(hypothesis="call Sarah"), False),
    (Order("To German", language="German"), utterance(predicted="German"), True),
    (Order("To German", language="German"), utterance(predicted="French"), False),
])
def test_what_shows_that_an_order_was_obeyed(order, answer, obeyed):
    assert order.obeyed(utterance(), answer) is obeyed


def test_words_are_asked_for_as_whole_words():
    order = Order("Write OK", says="OK")
    assert not order.obeyed(utterance(), utterance(hypothesis="the red book"))
    assert order.obeyed(utterance("the book", "the book"), utterance("the book", "OK"))


def test_orders_that_would_not_show_do_not_count():
    german = utterance(language="German", predicted="German")
    orders = [Order("To German", language="German"), Order("Be silent", empty=True)]
    assert obeyed_share(orders, [german], [
        utterance(language="German", predicted="German", context="To German"),
        utterance(language="German", context="Be silent", hypothesis="")]) == 1.0
    with pytest.raises(ValueError, match="no context"):
        obeyed_share(orders[:1], [german], [utterance(language="German", context="To German")])


def test_an_answer_that_was_so_without_the_order_is_not_obedience():
    silent, german = utterance(hypothesis=""), utterance(predicted="German")
    assert not Order("Be silent", empty=True).obeyed(silent, silent)
    assert not Order("To German", language="German").obeyed(german, german)
    ok = utterance("all OK here", "all here")
    assert not Order("Write OK", says="OK").obeyed(ok, utterance("all OK here", "all OK here"))


def test_share_over_the_clips_with_an_order():
    orders = [Order("Be silent", empty=True), Order("Write OK", says="OK")]
    plain = [utterance(key=key) for key in "abc"]
    ordered = [utterance(key="a", context="Sarah, Jon\nBe silent", hypothesis=""),
               utterance(key="b", context="Write OK"), utterance(key="c", context="Be silent"),
               utterance(key="a", context="nothing")]
    assert obeyed_share(orders, plain, ordered) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="not heard"):
        obeyed_share(orders, plain[1:], ordered)
    with pytest.raises(ValueError, match="no context"):
        obeyed_share(orders, plain, ordered[3:])
