"""Contexts that are drawn for training samples."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.context import (
    Context,
    ContextBuilder,
    EntityTable,
    candidate_entities,
)
from qwen3asr_train.errors import UserError

NAMES = [f"Name{i}" for i in range(60)]
TEXTS = [f"please call {name} now" for name in NAMES] * 2 + ["please wait now"] * 80
ORDERS = ("Translate into French.", "Say nothing.")


@pytest.fixture(scope="module")
def table():
    return EntityTable(((text, None) for text in TEXTS), rare_share=0.01)


def builder(table, **options) -> ContextBuilder:
    return ContextBuilder(Context(orders=ORDERS, **options), table, TEXTS)


def drawn(made: ContextBuilder, record: dict, times: int = 300) -> list[str]:
    return [made.draw(record, np.random.default_rng(i)).text for i in range(times)]


def test_candidates_are_words_or_pairs_of_unspaced_characters():
    assert candidate_entities("call O'Neil at 7, Ann-Marie!") == ["call", "O'Neil", "at", "7",
                                                                 "Ann-Marie"]
    assert candidate_entities("请找王小明") == ["请找", "找王", "王小", "小明"]
    assert candidate_entities("") == []


def test_rare_words_are_entities_and_common_ones_are_not(table):
    assert table.pool == sorted(NAMES)
    assert table.entities_of({"text": "please call Name3 Name7 now"}, 5) == ["Name3", "Name7"]
    assert table.entities_of({"text": "please wait now"}, 5) == []
    assert table.entities_of({"text": "x", "entities": ["Ada", "Bo", "Cy"]}, 2) == ["Ada", "Bo"]


def test_given_entities_join_the_pool():
    made = EntityTable([("we met Ada in Rome", ["Ada"])] + [("we met Ada in Rome", None)] * 500)
    assert made.pool == ["Ada"]


def test_distractors_are_as_frequent_as_the_names_of_samples():
    often = [("call Ada", ["Ada"])] * 60
    table = EntityTable(often + [(f"call {name}", [name]) for name in NAMES])
    rng = np.random.default_rng(0)
    first = Counter(table.draw(1, rng)[0] for _ in range(2000))
    assert 900 < first["Ada"] < 1100 and len(first) == len(NAMES) + 1
    assert all(6 <= len(set(names)) == len(names) <= 10 for names in
               (table.draw(10, rng) for _ in range(50)))
    assert sorted(table.draw(100, rng)) == table.pool


def test_shares_and_what_each_kind_holds(table):
    made = builder(table, entities=0.25, distractors=0.25, background=0.25, instructions=0.25,
                   list_length=(2, 8))
    record = {"text": "please call Name3 now"}
    kinds = Counter()
    for context in drawn(made, record):
        kinds["instruction" if any(order in context for order in ORDERS) else
              "background" if "please" in context else
              "entities" if "Name3" in context.replace(",", " ").replace("、", " ").split() else
              "distractors"] += 1
    assert all(50 <= kinds[kind] <= 105 for kind in
               ("instruction", "background", "entities", "distractors")), kinds


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 10_000))
def test_distractors_are_never_in_the_transcript_and_lists_have_the_length(table, low, more, seed):
    made = builder(table, distractors=1.0, list_length=(low, low + more), separators=("\n",))
    record = {"text": "Name1 Name2 and Name30"}
    names = made.draw(record, np.random.default_rng(seed)).names
    assert len(names) <= low + more and len(set(names)) == len(names)
    assert len(names) >= min(low, len(NAMES) - 4)  # Name1, 2, 3 and 30 are taken out
    assert not any(name in record["text"] for name in names)


def test_lists_from_no_entry_on_are_empty_now_and_then(table):
    made = builder(table, distractors=1.0, list_length=(0, 3))
    lengths = Counter(len(made.draw({"text": "x"}, np.random.default_rng(i)).names)
                      for i in range(400))
    assert set(lengths) == {0, 1, 2, 3} and lengths[0] > lengths[3] > 20


@pytest.mark.parametrize("options", [
    {"entities": 0.6, "distractors": 0.6}, {"list_length": (5, 2)}, {"list_length": (-1, 2)},
    {"background": 1.5}])
def test_contexts_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match="contexts"):
        Context(**options)


def test_off_keeps_the_records_own_context(table):
    assert not Context().on and Context(entities=0.1).on
    assert set(drawn(builder(table), {"text": "a", "context": "from a friend"}, 20)) == {
        "from a friend"}
    assert set(drawn(builder(table), {"text": "a"}, 20)) == {""}


def test_text_alone_has_shares_of_its_own(table):
    made = builder(table, background=1.0, text_entities=0.75, list_length=(2, 8),
                   formats=("{list}",), separators=(";",))
    record = {"text": "please call Name3 now", "task": "text"}
    contexts = [context.split(";") for context in drawn(made, record)]
    assert all(set(names) <= set(NAMES) for names in contexts)
    assert 195 <= sum("Name3" in names for names in contexts) <= 255
    assert all("please" in context for context in drawn(made, record | {"task": "asr"}))
    assert Context(text_entities=0.0).on
    with pytest.raises(UserError, match=r"contexts\.text_entities=85"):
        Context(text_entities=85)


def test_an_empty_pool_makes_no_list():
    made = builder(EntityTable([]), distractors=1.0)
    assert set(drawn(made, {"text": "please wait"}, 20)) == {""}


def test_formats_are_used(table):
    made = builder(table, distractors=1.0, formats=("Hotwords: {list}.",), list_length=(1, 1))
    contexts = [context for context in drawn(made, {"text": "hello"}, 30) if context]
    assert contexts and all(c.startswith("Hotwords: Name") and c.endswith(".") for c in contexts)


def test_the_same_generator_gives_the_same_context(table):
    made = builder(table, entities=0.5, background=0.5)
    assert drawn(made, {"text": "call Name5"}, 50) == drawn(made, {"text": "call Name5"}, 50)
