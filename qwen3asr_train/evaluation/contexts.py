"""What contexts do to transcripts: names that are found, names that are made up, orders obeyed."""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3asr_train.evaluation.languages import known_language
from qwen3asr_train.evaluation.metrics import Utterance
from qwen3asr_train.evaluation.text import normalise, units


def entity_recall(utterances: Sequence[Utterance]) -> float | None:
    """Share of the entities that were said and are written as they should be; None without any."""
    found = [holds(u, u.hypothesis, name) for u in utterances for name in u.entities
             if holds(u, u.reference, name)]
    return sum(found) / len(found) if found else None


def false_alarm(utterances: Sequence[Utterance]) -> float | None:
    """Share of the utterances with a list of names in which a listed name was written that was not
    said; None when no name was listed."""
    alarms = [any(holds(u, u.hypothesis, name) and not holds(u, u.reference, name)
                  for name in u.listed) for u in utterances if u.listed]
    return sum(alarms) / len(alarms) if alarms else None


def holds(utterance: Utterance, text: str, name: str) -> bool:
    """Whether ``name`` is in ``text``, as whole scoring units after normalisation."""
    of = [units(part, utterance.language, utterance.english_normaliser) for part in (text, name)]
    words, wanted = of
    return bool(wanted) and any(words[i:i + len(wanted)] == wanted
                                for i in range(len(words) - len(wanted) + 1))


@dataclass(frozen=True)
class Order:
    """An order in the context, and how an answer that obeys it can be told.

    ``language``: it is in that language (translation). ``says``: it holds these words. ``empty``:
    there are no words.
    """

    text: str
    language: str | None = None
    says: str | None = None
    empty: bool = False

    def obeyed(self, plain: Utterance, ordered: Utterance) -> bool:
        """Whether the answer does as it was told and not as it did without the order.

        ``plain``, ``ordered``: the same clip without and with the order in its context.
        """
        if self.empty and plain.hypothesis.strip() and not ordered.hypothesis.strip():
            return True
        if self.says and self._said(ordered.hypothesis) and not (
                self._said(plain.hypothesis) or self._said(plain.reference)):
            return True
        languages = [known_language(value) for value in (
            plain.language, plain.predicted_language, ordered.predicted_language)]
        wanted = known_language(self.language)
        return wanted is not None and languages[2] == wanted and wanted not in languages[:2]

    def _said(self, text: str) -> bool:
        return normalise(self.says, None) in normalise(text, None)


def obeyed_share(orders: Sequence[Order], plain: Sequence[Utterance],
                 ordered: Sequence[Utterance]) -> float:
    """Share of the clips with an order in their context in which it was obeyed.

    Raises ValueError if a clip was not heard without the order, or none has an order.
    """
    before = {utterance.key: utterance for utterance in plain}
    if missing := [u.key for u in ordered if u.key not in before]:
        raise ValueError(f"{missing[0]} was not heard without an order")
    found = [order.obeyed(before[u.key], u) for u in ordered for order in orders
             if order.text in u.context]
    if not found:
        raise ValueError("no context holds an order")
    return sum(found) / len(found)
