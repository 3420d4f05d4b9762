"""Shares of data sets and languages by temperature, over drawn corpora."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.mixture import mixture_rates
from qwen3asr_train.data.plan import BatchPlan
from qwen3asr_train.data.shards import Entry, ShardSummary, ShardWriter, find_shards
from qwen3asr_train.errors import UserError

LANGUAGES = ["English", "Chinese", "Korean", None]


def corpus(sets: dict[str, list[list[int]]]) -> dict[str, dict[str, list[Entry]]]:
    """Set -> shard -> entries, from how many samples of each language a shard has."""
    made = {}
    for name, shards in sets.items():
        made[name] = {}
        for number, counts in enumerate(shards):
            path = f"{name}-{number}"
            made[name][path] = [
                Entry(path, f"{path}-{language}-{i}", (0, 0), None, None, 1.0 + (i % 7), language)
                for language, count in zip(LANGUAGES, counts, strict=True) for i in range(count)]
    return made


def plan(made, **options) -> BatchPlan:
    entries = {path: found for shards in made.values() for path, found in shards.items()}
    return BatchPlan({name: [ShardSummary.of(path, found) for path, found in shards.items()]
                      for name, shards in made.items()},
                     read=entries.__getitem__, batch_seconds=20.0, seed=1, **options)


shard_counts = st.lists(st.integers(0, 30), min_size=4, max_size=4)
sets = st.dictionaries(st.sampled_from("abc"), st.lists(shard_counts, min_size=1, max_size=5),
                       min_size=1).filter(
    lambda drawn: all(sum(map(sum, shards)) for shards in drawn.values()))


@settings(max_examples=60, deadline=None)
@given(sets, st.floats(1, 10), st.data())
def test_rates_are_the_formula(drawn, temperature, data):
    made = corpus(drawn)
    shares = {name: data.draw(st.floats(0.01, 1)) for name in made}
    summaries = {name: [ShardSummary.of(path, found) for path, found in shards.items()]
                 for name, shards in made.items()}
    rates = mixture_rates(summaries, shares, temperature)
    total = sum(e.duration for shards in made.values() for es in shards.values() for e in es)
    for name, shards in made.items():
        seconds = Counter()
        for entries in shards.values():
            for entry in entries:
                seconds[entry.language or ""] += entry.duration
        expected = {language: s ** (1 / temperature) for language, s in seconds.items()}
        for language, s in seconds.items():
            wanted = total * shares[name] / sum(shares.values())
            wanted *= expected[language] / sum(expected.values())
            assert rates[next(iter(shards))][language] * s == pytest.approx(wanted)


@settings(max_examples=60, deadline=None)
@given(sets, st.floats(1, 5), st.integers(0, 3), st.integers(1, 3), st.data())
def test_an_epoch_holds_each_sample_as_often_as_its_rate_says(drawn, temperature, epoch, per_group,
                                                              data):
    made = corpus(drawn)
    shares = {name: data.draw(st.floats(0.05, 1)) for name in made}
    planned = plan(made, shares=shares, temperature=temperature, shards_per_group=per_group)
    first = epoch * planned.steps_per_epoch
    steps = [planned.step(k) for k in range(first, first + planned.steps_per_epoch)]
    assert all(entries for _, entries in steps) and {e for e, _ in steps} == {epoch}
    seen = Counter((e.shard, e.language, e.key) for _, entries in steps for e in entries)
    copies = Counter((e.key, e.copy) for _, entries in steps for e in entries)
    assert set(copies.values()) <= {1}  # repetitions are told apart
    for shards in made.values():
        for path, entries in shards.items():
            for language, count in Counter(e.language for e in entries).items():
                rate = planned._rates[path][language or ""]
                times = [seen[path, language, e.key] for e in entries if e.language == language]
                assert max(times) - min(times) <= 1
                assert abs(sum(times) - count * rate) < 1


def test_without_a_mixture_rates_do_not_matter():
    made = corpus({"a": [[5, 3, 0, 1]], "b": [[2, 9, 4, 0]]})
    seen = Counter(e.key for k in range(plan(made).steps_per_epoch) for e in plan(made).step(k)[1])
    assert set(seen.values()) == {1} and len(seen) == 24


@settings(max_examples=30, deadline=None)
@given(sets, st.integers(0, 40))
def test_any_step_is_known_at_once(drawn, k):
    made = corpus(drawn)
    walked, jumped = plan(made, temperature=3.0), plan(made, temperature=3.0)
    for before in range(k):
        walked.step(before)
    assert walked.step(k) == jumped.step(k)


@pytest.mark.parametrize("shares", [{"a": 1.0}, {"a": 1.0, "b": -1.0}, {"a": 0.0, "b": 0.0},
                                    {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_shares_that_do_not_fit_are_refused(shares):
    with pytest.raises(UserError, match=r"data\.shares"):
        plan(corpus({"a": [[1, 1, 1, 1]], "b": [[1, 1, 1, 1]]}), shares=shares)


def test_headers_know_the_languages(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i, language in enumerate(["English", "Chinese", "English"]):
            writer.write(f"k{i}", {"text": "a", "language": language, "duration": i + 1.0})
        writer.write("noise", {"text": "", "language": None, "duration": 2.0, "task": "nonspeech"})
    planned = BatchPlan.from_paths({"x": find_shards(str(tmp_path))}, batch_seconds=3, seed=0)
    assert planned.shards[0].languages == {"English": (2, 4.0), "Chinese": (1, 2.0), "": (1, 2.0)}
