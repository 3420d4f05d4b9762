"""The batch plan against its contract, on drawn corpora."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.plan import BatchPlan, cut_evenly, evaluation_cells, sample_seed
from qwen3asr_train.data.shards import Entry, ShardSummary
from qwen3asr_train.errors import UserError


def make_plan(shard_lengths: list[list[float]], *, reads: Counter | None = None, **options):
    """A plan over shards that exist in memory only."""
    shards = {f"s{i}": [Entry(f"s{i}", f"k{i}-{j}", (0, 0), None, None, seconds, None)
                        for j, seconds in enumerate(lengths)]
              for i, lengths in enumerate(shard_lengths)}
    summaries = [ShardSummary.of(name, entries) for name, entries in shards.items()]

    def read(name: str) -> list[Entry]:
        if reads is not None:
            reads[name] += 1
        return shards[name]

    return BatchPlan({"train": summaries}, read=read,
                     **({"batch_seconds": 40.0, "seed": 3} | options))


corpora = st.lists(st.lists(st.floats(0.0, 29.0), min_size=0, max_size=40), min_size=1,
                   max_size=12).filter(lambda shards: any(shards))


@settings(max_examples=150, deadline=None)
@given(corpora, st.integers(1, 5), st.integers(0, 3), st.floats(5, 200))
def test_every_sample_once_an_epoch(shards, per_group, epoch, batch_seconds):
    plan = make_plan(shards, shards_per_group=per_group, batch_seconds=batch_seconds)
    first = epoch * plan.steps_per_epoch
    steps = [plan.step(k) for k in range(first, first + plan.steps_per_epoch)]
    seen = Counter(entry.key for _, entries in steps for entry in entries)
    assert seen == Counter(f"k{i}-{j}" for i, s in enumerate(shards) for j in range(len(s)))
    assert all(entries for _, entries in steps)
    assert {e for e, _ in steps} == {epoch}


@settings(max_examples=80, deadline=None)
@given(corpora, st.integers(1, 4), st.integers(0, 60))
def test_the_samples_of_a_step_do_not_depend_on_ranks_or_accumulation(shards, accumulate, k):
    plan = make_plan(shards, shards_per_group=2)
    whole = Counter(entry.key for entry in plan.step(k)[1])
    for ranks in (1, 2, 3, 8):
        cells = plan.cells(k, ranks, accumulate)
        assert [len(rank) for rank in cells] == [accumulate] * ranks  # equal counts on every rank
        dealt = Counter(e.key for rank in cells for cell in rank for e in cell.entries)
        assert dealt == whole


@settings(max_examples=40, deadline=None)
@given(corpora, st.integers(0, 200), st.integers(0, 5))
def test_jumping_to_a_step_equals_walking_there(shards, k, later):
    walked = make_plan(shards, shards_per_group=2)
    cells = list(walked.walk(0, 1, 1, start=max(0, k - 5), stop=k + later + 1))
    jumped = next(make_plan(shards, shards_per_group=2).walk(0, 1, 1, k, k + 1))
    assert jumped in cells and jumped.step == k


def test_a_jump_reads_one_group_only():
    reads = Counter()
    plan = make_plan([[5.0] * 20] * 40, shards_per_group=4, reads=reads)
    assert not reads  # the headers are enough to plan
    plan.step(7 * plan.steps_per_epoch + 13)
    assert sum(reads.values()) == 4


def test_epochs_and_seeds_differ_and_repeat():
    def keys(plan, epoch):
        first = epoch * plan.steps_per_epoch
        return [tuple(e.key for e in plan.step(k)[1])
                for k in range(first, first + plan.steps_per_epoch)]

    shards = [list(np.random.default_rng(i).uniform(1, 9, 30)) for i in range(6)]
    plan = make_plan(shards, shards_per_group=2)
    assert keys(plan, 0) == keys(make_plan(shards, shards_per_group=2), 0)
    assert keys(plan, 0) != keys(plan, 1)
    assert keys(plan, 0) != keys(make_plan(shards, shards_per_group=2, seed=4), 0)


def test_steps_hold_alike_seconds_and_alike_lengths():
    lengths = [list(np.random.default_rng(i).uniform(1, 20, 100)) for i in range(8)]
    plan = make_plan(lengths, shards_per_group=8, batch_seconds=100, length_jitter=0.1)
    steps = [[e.duration for e in plan.step(k)[1]] for k in range(plan.steps_per_epoch)]
    assert all(70 < sum(step) < 130 for step in steps)
    padding = 1 - sum(map(sum, steps)) / sum(max(step) * len(step) for step in steps)
    one_pile = np.concatenate(lengths)
    assert padding < 0.25 < 1 - one_pile.mean() / one_pile.max()


def test_long_samples_are_left_out_and_counted():
    plan = make_plan([[5.0, 31.0, 6.0], [40.0]], max_seconds=30.0)
    assert plan.dropped == 2 and plan.samples == 2
    with pytest.raises(UserError, match=r"data\.max_seconds"):
        make_plan([[50.0]], max_seconds=30.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=60), st.integers(1, 60))
def test_cut_evenly_covers_in_order(costs, pieces):
    costs = np.array(costs)
    bounds = cut_evenly(costs, pieces, allow_empty=True)
    assert bounds[0] == 0 and bounds[-1] == len(costs) and (np.diff(bounds) >= 0).all()
    if pieces <= len(costs):
        assert (np.diff(bounds) >= 1).all()
    else:
        with pytest.raises(ValueError, match="cannot fill"):
            cut_evenly(costs, pieces)


@given(st.lists(st.floats(0.0, 30), min_size=1, max_size=50), st.sampled_from([1, 2, 3, 8]))
def test_evaluation_covers_every_sample_once(lengths, ranks):
    entries = [Entry("s", str(i), (0, 0), None, None, d, None) for i, d in enumerate(lengths)]
    parts = [evaluation_cells(entries, 60.0, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    seen = Counter(e.key for part in parts for cell in part for e in cell.entries)
    assert seen == Counter(str(i) for i in range(len(lengths)))


def test_seeds_are_the_same_in_every_process():
    # python's hash(str) is not; this number was computed by hashlib in another process
    assert sample_seed(1, 2, "key") == int.from_bytes(
        __import__("hashlib").blake2b(b"1/2/key", digest_size=8).digest(), "little")
