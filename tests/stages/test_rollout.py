"""Which utterances of a rollout are trained on."""

from collections import Counter
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from qwen3asr_train.data.rollouts import Rollout
from qwen3asr_train.objectives.gspo import Objective
from qwen3asr_train.stages.rollout import Roller

FLAT = st.lists(st.booleans(), max_size=4)  # of each utterance of a micro-batch


def groups(step: int, spare: int, flat: list[bool]) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=(step, spare, i), flat=value, whole=True)
            for i, value in enumerate(flat)]


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
