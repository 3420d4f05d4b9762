"""Rewards of sampled transcripts, with the signature of TRL's reward functions.

A reward takes ``prompts``, ``completions`` (raw outputs, special tokens included) and
``completion_ids`` of n answers and, as keywords, the columns of their samples, each a list of n;
it returns n numbers, greater is better. Columns here: ``text``, ``language``, ``task``,
``entities``, ``listed`` (names in the context), ``context``, ``duration`` (s) and
``english_normaliser``. A reward function written for TRL's ``GRPOTrainer`` can be named in the
config as it is, but for None, which is as bad a reward as NaN here (``stage.bad_rewards``): 0 is
what does not count.
"""

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.contexts import holds
from qwen3asr_train.evaluation.languages import known_language, names_language
from qwen3asr_train.evaluation.metrics import Utterance, edit_counts
from qwen3asr_train.evaluation.text import SPECIAL_TOKEN, split_output

Reward = Callable[..., Sequence[float | None]]

END = "<|im_end|>"
_NAME = r"[A-Z][A-Za-z]*(?: [A-Z][a-z]+)*"
_TAG = re.compile(rf"language (None|{_NAME}(?:,{_NAME})*)<asr_text>")
REPEATED_NGRAM = 4
"""Units of speech; of so many in a row that come again, the reference's own are not counted."""

MOST_OVERRUN = 2.0
"""The penalty of a transcript's length stops growing here, in lengths of the reference."""


def error_rate(prompts, completions, **columns) -> list[float]:
    """Minus the word (character) error rate, at least -1; of non-speech, minus whether there is
    any text."""
    return [-min(1.0, edit_counts(*utterance.units()).rate)
            for utterance in _utterances(completions, columns)]


def correct_format(prompts, completions, **_) -> list[float]:
    """1 for ``language X<asr_text>words<|im_end|>`` and nothing else."""
    return [float(text.endswith(END) and (tag := _TAG.match(text)) is not None and
                  not SPECIAL_TOKEN.search(text.removesuffix(END), tag.end()))
            for text in completions]


def correct_language(prompts, completions, **columns) -> list[float]:
    """1 where the language tag is there and is that of the reference: of several languages any, as
    in scoring."""
    return [float(_TAG.match(text) is not None and
                  names_language(u.predicted_language, known_language(u.language)))
            for text, u in zip(completions, _utterances(completions, columns), strict=True)]


def repetition(prompts, completions, **columns) -> list[float]:
    """Minus the share of a transcript's n-grams that are repetitions not in the reference."""
    found = []
    for utterance in _utterances(completions, columns):
        said, written = (_ngrams(units) for units in utterance.units())
        repeated = sum(max(0, count - max(1, said[ngram])) for ngram, count in written.items())
        found.append(-repeated / max(1, written.total()))
    return found


def overrun(prompts, completions, **columns) -> list[float]:
    """Minus how much longer than the reference a transcript is, in its lengths, at most 1."""
    lengths = [tuple(map(len, u.units())) for u in _utterances(completions, columns)]
    return [-min(1.0, max(0.0, written / said - 1) / MOST_OVERRUN) if said else 0.0
            for said, written in lengths]


def silence(prompts, completions, **columns) -> list[float]:
    """On non-speech: 1 for ``language None`` without text; 0 for speech, whatever is written."""
    return [float(not u.reference and not u.hypothesis and
                  (tag := _TAG.match(text)) is not None and tag[1] == "None")
            for text, u in zip(completions, _utterances(completions, columns), strict=True)]


def listed_entities(prompts, completions, **columns) -> list[float]:
    """Share of the names that are said and listed in the context that are written as listed."""
    found = []
    for u in _utterances(completions, columns):
        wanted = [name for name in u.listed if holds(u, u.reference, name)]
        found.append(sum(holds(u, u.hypothesis, name) for name in wanted) / len(wanted)
                     if wanted else 0.0)
    return found


def recital(prompts, completions, **columns) -> list[float]:
    """-1 where a name of the context is written that is not said."""
    return [-float(any(holds(u, u.hypothesis, name) and not holds(u, u.reference, name)
                       for name in u.listed)) for u in _utterances(completions, columns)]


REWARDS: Mapping[str, Reward] = {
    "error_rate": error_rate, "format": correct_format, "language": correct_language,
    "repetition": repetition, "overrun": overrun, "silence": silence, "entities": listed_entities,
    "recital": recital}


@dataclass(frozen=True)
class RewardSum:
    """A weighted sum of rewards by name."""

    functions: Mapping[str, Reward]
    weights: Mapping[str, float]

    @classmethod
    def of(cls, weights: Mapping[str, float], own: Sequence[str] = ()) -> "RewardSum":
        """Those of ``REWARDS`` by name, and a user's ``own`` as ``module:function`` (of weight 1)
        or ``module:function*weight``. UserError for one that there is not."""
        chosen = {name: (REWARDS[name], float(weight)) for name, weight in weights.items()
                  if weight}
        for place in own:
            name, _, weight = place.partition("*")
            try:
                chosen[name] = imported_reward(name), float(weight or 1)
            except ValueError as error:
                raise UserError(f"stage.own_rewards: {place}: no weight {weight!r}") from error
        if not chosen:
            raise UserError(f"stage.rewards: no reward has a weight; there are {list(REWARDS)}")
        return cls({name: function for name, (function, _) in chosen.items()},
                   {name: weight for name, (_, weight) in chosen.items()})

    def __call__(self, prompts: Sequence[str], completions: Sequence[str],
                 completion_ids: Sequence[list[int]], columns: Mapping[str, list]
                 ) -> tuple[dict[str, list[float]], list[float], list[str]]:
        """Each reward of each answer, their weighted sum, and what went wrong, a line a reward.

        What is no finite number is NaN, and so is the sum it is part of; a function that raises, or
        returns another count, is NaN for all.
        """
        parts, problems = {}, []
        for name, function in self.functions.items():
            parts[name], problem = _checked(name, function, prompts, completions, completion_ids,
                                            columns)
            problems += [problem] if problem else []
        total = [sum(self.weights[name] * values[i] for name, values in parts.items())
                 for i in range(len(completions))]
        return parts, total, problems


def imported_reward(name: str) -> Reward:
    """``module:function`` -> the function; UserError when there is none."""
    module, _, function = name.partition(":")
    if not function:
        raise UserError(f"stage.own_rewards: {name!r} is no module:function")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"stage.own_rewards: {name}: {error}") from error


def _checked(name: str, function: Reward, prompts, completions, completion_ids, columns
             ) -> tuple[list[float], str | None]:
    count = len(completions)
    try:
        values = list(function(prompts=prompts, completions=completions,
                               completion_ids=completion_ids, **columns))
    except Exception as error:  # a user's code may raise anything
        return [math.nan] * count, f"{name} raised {type(error).__name__}: {error}"
    if len(values) != count:
        return [math.nan] * count, f"{name} returned {len(values)} rewards for {count} answers"
    numbers = [_number(value) for value in values]
    bad = [i for i, number in enumerate(numbers) if not math.isfinite(number)]
    if not bad:
        return numbers, None
    for i in bad:
        numbers[i] = math.nan
    return numbers, (f"{name} returned {values[bad[0]]!r} for {len(bad)} of {count} answers, "
                     f"the first {completions[bad[0]]!r}")


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _utterances(completions: Sequence[str], columns: Mapping[str, list]) -> list[Utterance]:
    """Answers beside their references."""
    found = []
    for i, completion in enumerate(completions):
        predicted, text = split_output(completion)
        reference, language, listed, normaliser = (
            columns[name][i] for name in ("text", "language", "listed", "english_normaliser"))
        found.append(Utterance(key="", reference=reference, hypothesis=text, language=language,
                               predicted_language=predicted, duration=0.0, listed=tuple(listed),
                               english_normaliser=normaliser))
    return found


def _ngrams(units: Sequence[str]) -> Counter:
    return Counter(tuple(units[i:i + REPEATED_NGRAM])
                   for i in range(len(units) - REPEATED_NGRAM + 1))
