"""What contexts do to transcripts: names that are found, names that are made up, orders obeyed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwen3asr_train.evaluation.languages import known_language
from qwen3asr_train.evaluation.metrics import Utterance
from qwen3asr_train.evaluation.text import units


def entity_recall(utterances: Sequence[Utterance]) -> float | None:
    """Share of the entities that were said and are written as they should be; None without any.
    Of an utterance without given ones, those of its context count (rare words of its transcript).
    """
    found = [holds(u, u.hypothesis, name) for u in utterances for name in u.entities or u.listed
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
        """Whether the answer does as it was told and would not have done so anyway.

        ``plain``, ``ordered``: the same clip without and with the order in its context.
        """
        if not self.shows(plain):
            return False
        if self.empty and not ordered.hypothesis.strip():
            return True
        if self.says and self._said(ordered, ordered.hypothesis):
            return True
        return self.language is not None and \
            known_language(ordered.predicted_language) == known_language(self.language)

    def shows(self, plain: Utterance) -> bool:
        """Whether obeying it would show: the clip's transcript, or the answer without the order, is
        not what it asks for."""
        if self.empty and not plain.hypothesis.strip():
            return False
        if self.says and any(self._said(plain, text) for text in (plain.hypothesis,
                                                                  plain.reference)):
            return False
        return self.language is None or known_language(self.language) not in (
            known_language(plain.language), known_language(plain.predicted_language))

    def _said(self, utterance: Utterance, text: str) -> bool:
        """Whether the words are in ``text``, as whole words in any language."""
        return holds(replace(utterance, language="English"), text, self.says)


def obeyed_share(orders: Sequence[Order], plain: Sequence[Utterance],
                 ordered: Sequence[Utterance]) -> float:
    """Share of the clips with an order in their context in which it was obeyed, of those in which
    that would show.

    Raises ValueError if a clip was not heard without the order, or none has an order.
    """
    before = {utterance.key: utterance for utterance in plain}
    if missing := [u.key for u in ordered if u.key not in before]:
        raise ValueError(f"{missing[0]} was not heard without an order")
    found = [order.obeyed(before[u.key], u) for u in ordered for order in orders
             if order.text in u.context and order.shows(before[u.key])]
    if not found:
        raise ValueError("no context holds an order that could be seen to be obeyed")
    return sum(found) / len(found)
