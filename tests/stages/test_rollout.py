"""Which utterances of a rollout are trained on."""

from collections import Counter
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from qwen3asr_train.data.rollouts import Rollout
from qwen3asr_train.objectives.gspo import Objective
from qwen3asr_train.stages.rollout import Roller
from qwen3asr_train.stages.rollout_groups import Group, Rolled, Underway

FLAT = st.lists(st.booleans(), max_size=4)  # of each utterance of a micro-batch


def groups(step: int, spare: int, flat: list[bool]) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=(step, spare, i), flat=value, whole=True)
            for i, value in enumerate(flat)]


def group(place: int, shard: str, key: str) -> Group:
    entry = SimpleNamespace(key=key, name=f"{shard}:{key}", copy=0)
    return Group(place, entry, {}, None, None, None, [])


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=3, unique=True), min_size=1,
                max_size=6), st.integers(1, 3), st.data())
def test_what_a_checkpoint_holds_comes_back_to_its_micro_batch(keys, accumulate, data):
    """Keys repeat between shards; any of the groups may be a spare of another step; steps may
    train on none."""
    steps = [place // accumulate for place in range(len(keys))]
    spares, rolled = [], []
    for place, (step, row) in enumerate(zip(steps, keys, strict=True)):
        for key in row:
            is_spare = data.draw(st.booleans())
            planned = 100 + place if is_spare else step
            trained = group(planned, f"shard-{place % accumulate}", key)
            trained.answers = [([place, len(rolled)], [0.5, 0.25])]
            trained.old = [[0.5, 0.125]]
            spares += [trained] if is_spare else []
            rolled.append(Rolled(step, place % accumulate, trained))

    def anew(old: Group) -> Group:
        return group(old.planned, *old.entry.name.split(":"))

    own = [[anew(r.group) for r in rolled if r.group.planned == step
            and (r.step, r.part) == (step, place % accumulate)]
           for place, step in enumerate(steps)]
    saved = Underway(Underway.state(steps, rolled))
    found = saved.restore(steps, own, [anew(spare) for spare in reversed(spares)])
    assert sorted(found) == list(range(len(keys)))
    for place, groups in found.items():
        expected = [r.group for r in rolled if (r.step, r.part) == (
            steps[place], place % accumulate)]
        assert [(g.name, g.answers, g.old) for g in groups] == [
            (g.name, g.answers, g.old) for g in expected]
    if spares:  # on fewer ranks, say: its step is answered anew
        lost = next(r for r in rolled if r.group is spares[0])
        found = saved.restore(steps, own, [anew(spare) for spare in spares[1:]])
        assert sorted(found) == [p for p, step in enumerate(steps) if step != lost.step]


PARTS = st.lists(st.tuples(FLAT, st.lists(FLAT, max_size=2)), min_size=1, max_size=4)


@given(PARTS)
def test_what_has_no_variance_stays_where_its_reference_teaches(parts):
    """And a group without rewards is replaced, also by a spare without variance."""
    class Answering(Roller):
        def __init__(self):
            self.objective = Objective(cross_entropy=0.5)

        def _sampled(self, batch, number):
            return batch

    for step, (flat, spares) in enumerate(parts):
        batch = groups(step, 0, flat)
        kept, _, left = Answering()._varied(batch, [], [], 0, tally := Counter())
        assert kept == batch and not left and tally["flat"] == sum(flat)
        if flat and spares and spares[0]:
            batch[0].whole = False
            spare = groups(step, 1, spares[0])
            kept, _, left = Answering()._varied(batch, [spare], [], 0, tally)
            assert kept == [*batch[1:], spare[0]] and left == spare[1:]
            assert tally["dropped"] == tally["replaced"] == 1


@given(PARTS)
def test_spares_replace_what_has_no_variance(parts):
    answered = []

    class Answering(Roller):
        def __init__(self):
            self.objective = Objective()

        def _sampled(self, batch, number):
            answered.append(batch["names"])
            return batch["groups"]

    def batch(step, spare, flat):
        return {"groups": groups(step, spare, flat), "names": (step, spare)}

    rollout = Rollout([(batch(step, 0, flat), [batch(step, 1 + n, more)
                                               for n, more in enumerate(spares)])
                       for step, (flat, spares) in enumerate(parts)])
    roller, tally, left, trained = Answering(), Counter(), [], {}
    for step, (own, spares) in reversed(list(enumerate(rollout.parts))):
        kept, found, left = roller._varied(own, spares, left, 0, tally)
        assert found == own["groups"] and len(kept) <= len(found)
        trained[step] = [group.name for group in kept]
        assert not any(group.flat for group in (*kept, *left))
    names = [name for step in trained.values() for name in step]
    assert len(names) == len(set(names))
    assert all(place >= step for step, kept in trained.items() for place, _, _ in kept)
    assert len(answered) == len(set(answered))
    assert tally["replaced"] == sum(spare > 0 for _, spare, _ in names)
    for step, (flat, spares) in enumerate(parts):
        lacking = len(flat) - len(trained[step])
        if lacking:  # all its spares are answered, and what these and later ones gave is used
            usable = sum(not f for place in range(step, len(parts))
                         for n, more in enumerate(parts[place][1]) if (place, 1 + n) in answered
                         for f in more)
            taken = sum(spare > 0 and place >= step for place, spare, _ in names)
            assert taken == usable
            assert all((step, 1 + n) in answered for n in range(len(spares)))
        elif not any(flat):
            assert (step, 1) not in answered
