"""Which micro-batches make a rollout."""

from hypothesis import given
from hypothesis import strategies as st

from qwen3asr_train.data.plan import BatchPlan
from qwen3asr_train.data.rollouts import RolloutLoader, rollout_cells
from qwen3asr_train.data.shards import Entry, ShardSummary


def plan_of(samples: int) -> BatchPlan:
    entries = [Entry("s", f"k{i}", (0, 0), None, None, 1.0 + i % 3, None) for i in range(samples)]
    return BatchPlan({"train": [ShardSummary.of("s", entries)]}, batch_seconds=9, seed=0,
                     read=lambda path: entries)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 2),
       st.integers(1, 5))
def test_every_step_once_with_its_spares_in_rollouts_that_begin_at_multiples(
        start, length, accumulate, spares, steps):
    plan, stop = plan_of(60), start + length
    cells = list(rollout_cells(plan, 0, 1, accumulate, start, stop, spares))
    assert len(cells) == length * accumulate * (1 + spares)
    batches = [{"meta": {"step": cell.step, "cell": cell}} for cell in cells]
    found = list(RolloutLoader(batches, accumulate, spares, steps, start, stop))
    assert [batch["meta"]["step"] for batch in found] == [
        step for step in range(start, stop) for _ in range(accumulate)]
    for place, batch in enumerate(found):
        step = batch["meta"]["step"]
        begins = place % accumulate == 0 and (step == start or step % steps == 0)
        assert ("rollout" in batch["meta"]) == begins
        if begins:
            parts = batch["meta"]["rollout"].parts
            last = min(stop, (step // steps + 1) * steps)
            assert [part["meta"]["step"] for part, _ in parts] == [
                s for s in range(step, last) for _ in range(accumulate)]
            for part, others in parts:
                assert [o["meta"]["cell"].step for o in others] == [
                    part["meta"]["step"] + stop * (1 + i) for i in range(spares)]


def test_all_ranks_together_meet_the_samples_of_one():
    plan = plan_of(60)
    alone = list(rollout_cells(plan, 0, 1, 1, 0, 5, 1))
    halves = [list(rollout_cells(plan, rank, 2, 1, 0, 5, 1)) for rank in range(2)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert {e.key for e in whole.entries} == {e.key for e in first.entries + second.entries}
