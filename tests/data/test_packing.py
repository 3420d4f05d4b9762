"""Steps by tokens and packed rows: brute force and properties."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.data.packing import (
    Source,
    TokenPlan,
    apart,
    balance,
    in_one_row,
    pack,
    together,
)
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.errors import UserError


def source(name, lengths, seed=0, per_shard=4, per_group=2, read=None):
    """Shards of ``per_shard`` samples; ``read``: a list that notes the shards that are read."""
    shards = {f"s{start}": [(Entry(f"s{start}", f"{name}{i}", (0, 1), None, None, 0.0, None),
                             lengths[i])
                            for i in range(start, min(start + per_shard, len(lengths)))]
              for start in range(0, len(lengths), per_shard)}

    def samples(shard):
        if read is not None:
            read.append(shard)
        return shards[shard]

    return Source(name, {shard: sum(sum(ways) / len(ways) for _, ways in rows)
                         for shard, rows in shards.items()}, samples, seed, per_group)


lines = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=3), min_size=1, max_size=12)


@given(lines, st.floats(1, 80), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_a_line_is_cut_without_loss_and_epoch_by_epoch(lengths, stretch, steps, seed):
    line = source("a", lengths, seed)
    found = [item for k in range(steps) for item in line.between(k * stretch, (k + 1) * stretch)]
    again = source("a", lengths, seed)
    assert again.between(0, steps * stretch) == found  # however it is cut
    for k in reversed(range(steps)):  # any step by itself, in any order
        assert again.between(k * stretch, (k + 1) * stretch) == \
            source("a", lengths, seed).between(k * stretch, (k + 1) * stretch)
    for item in found:
        assert item.tokens == lengths[int(item.entry.key[1:])][item.way]
    times = Counter((item.epoch, item.entry.key) for item in found)
    assert set(times.values()) <= {1}
    last = max((item.epoch for item in found), default=0)
    assert all(times[epoch, f"a{i}"] == 1 for epoch in range(last) for i in range(len(lengths)))
    assert abs(sum(sum(ways) / len(ways) for ways in (
        lengths[int(item.entry.key[1:])] for item in found)) - steps * stretch) <= 60


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_prompt_comes_as_often_in_a_group(count, ways, per_group, seed):
    line = source("a", [[7] * ways] * count, seed, per_group=per_group)
    found = line.between(0, 7 * count)
    for start in range(0, count, 4 * per_group):
        times = Counter(item.way for item in found[start:start + 4 * per_group])
        # a shard that is not full may lie in any group
        assert max(times.values()) - min(times[way] for way in range(ways)) <= 1 or count % 4


def test_a_step_reads_the_shards_of_its_groups_alone():
    lengths, read = [[10]] * 4000, []
    line = source("a", lengths, per_shard=10, per_group=8, read=read)
    far = line.between(1_234_567, 1_234_667)  # in epoch 30, without those before
    assert len(far) == 10 and {item.epoch for item in far} == {30}
    assert len(read) in (8, 16)
    walked = [item for k in range(12000, 12400)
              for item in line.between(100 * k, 100 * (k + 1))]
    assert far == line.between(1_234_567, 1_234_667)
    assert {item.entry.key for item in walked} == {f"a{i}" for i in range(4000)}
    assert len(read) <= 16 + 400 + 3 * 8  # each shard once in passing; a group or two again


@given(st.integers(2, 40), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_shares_are_the_weights(steps, seed):
    rng = np.random.default_rng(seed)
    prompts = np.array([3, 4, 9])  # each as long for all samples, as most are
    sources = [source(name, (rng.integers(5, 180, (50, 1)) + prompts).tolist(), seed)
               for name in "abc"]
    plan = TokenPlan(sources, {"a": 1, "b": 2, "c": 1}, 2000)
    tokens = Counter()
    for k in range(steps):
        for item in plan.step(k):
            tokens[item.source] += item.tokens
    for name, share in {"a": 0.25, "b": 0.5, "c": 0.25}.items():
        expected = share * 2000 * steps  # to within a sample, and prompts longer than the mean
        assert abs(tokens[name] - expected) <= 190 + expected / 500


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_a_step_is_the_same_on_any_number_of_ranks(ranks, accumulate):
    rng = np.random.default_rng(0)
    plan = TokenPlan([source("a", rng.integers(5, 50, (40, 1)).tolist())], {"a": 1.0}, 600)
    cells = [cell for rank in plan.cells(3, ranks, accumulate) for cell in rank]
    assert len(cells) == ranks * accumulate
    assert sorted(i for cell in cells for i in cell.items) == sorted(plan.step(3))
    walked = [list(plan.walk(r, ranks, accumulate, 2, 5)) for r in range(ranks)]
    assert {len(rank) for rank in walked} == {3 * accumulate}


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 400))
@settings(max_examples=100, deadline=None)
def test_rows_hold_every_sample_once_within_the_budget(sizes, budget):
    rows = pack(sizes, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= budget for row in rows)


def test_rows_of_many_samples_waste_little():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 110, 200).tolist()
    sums = [sum(sizes[i] for i in row) for row in pack(sizes, 512)]
    assert 1 - sum(sums) / (len(sums) * max(sums)) < 0.005
    few = rng.integers(40, 110, 42).tolist()
    sums = [sum(few[i] for i in row) for row in pack(few, 512)]
    assert 1 - sum(sums) / (len(sums) * max(sums)) < 0.02


def test_balance_gives_every_bin_its_turn():
    assert balance([5, 4, 3, 2], 2) == [[0, 3], [1, 2]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="101 tokens"):
        pack([101], 100)
    with pytest.raises(UserError, match="weights"):
        TokenPlan([source("a", [[3]])], {"b": 1.0}, 10)
    with pytest.raises(UserError, match=r"data\.sources\.a"):
        source("a", [])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_layouts_hold_every_sample_once(sizes):
    for layout in (apart, together, in_one_row):
        assert sorted(i for row in layout(sizes) for i in row) == list(range(len(sizes)))
    assert max(sum(sizes[i] for i in row) for row in together(sizes)) <= 2 * max(sizes)
