"""Short sentences over small closed vocabularies, for the embedded speech of eight languages.

A grammar (``grammars/LANGUAGE.yaml``) has named ``lists`` of words and, per domain, templates
whose ``{slots}`` draw from them. A test sentence is thus made of words heard in training, in a
combination that was not. Text is a plain transcript: numbers in words, no punctuation. No two
words of a language sound alike to espeak-ng, so every sentence can be told from its audio.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
import yaml

DOMAINS = ("commands", "numbers", "dates", "names", "places", "statements")

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class GrammarInfo:
    """espeak: language code for ``data_prep.espeak``. spaced: words are separated by spaces."""

    espeak: str
    spaced: bool = True


# Keys are the language names of the released Qwen3-ASR models.
LANGUAGES: Mapping[str, GrammarInfo] = MappingProxyType(
    {
        "English": GrammarInfo("en-us"),
        "Chinese": GrammarInfo("cmn", spaced=False),
        "Spanish": GrammarInfo("es"),
        "German": GrammarInfo("de"),
        "French": GrammarInfo("fr"),
        "Russian": GrammarInfo("ru"),
        "Korean": GrammarInfo("ko"),
        "Arabic": GrammarInfo("ar"),
    }
)


@dataclass(frozen=True)
class _Grammar:
    lists: dict[str, list[str]]
    domains: dict[str, list[str]]


@cache
def _grammar(language: str) -> _Grammar:
    if language not in LANGUAGES:
        raise ValueError(f"no grammar for {language!r}, only for {', '.join(LANGUAGES)}")
    text = files("data_prep").joinpath("grammars", f"{language.lower()}.yaml").read_text("utf-8")
    return _Grammar(**yaml.safe_load(text))


def sentence(language: str, domain: str, rng: np.random.Generator) -> str:
    """A random sentence: 2 to 6 words, or 3 to 9 hanzi.

    A list gives each of its items at most once to a sentence. Raises ValueError: unknown
    language or domain.
    """
    grammar = _grammar(language)
    if domain not in grammar.domains:
        raise ValueError(f"no domain {domain!r}, only {', '.join(DOMAINS)}")
    taken: set[tuple[str, str]] = set()

    def fill(slot: re.Match) -> str:
        name = slot[1]
        item = _choice([item for item in grammar.lists[name] if (name, item) not in taken], rng)
        taken.add((name, item))
        return _SLOT.sub(fill, item)

    return _SLOT.sub(fill, _choice(grammar.domains[domain], rng))


def vocabulary(language: str) -> set[str]:
    """Every word (every hanzi, for Chinese) that ``sentence`` can emit.

    Raises ValueError: unknown language.
    """
    grammar = _grammar(language)
    words: set[str] = set()
    pending = [template for templates in grammar.domains.values() for template in templates]
    seen: set[str] = set()
    while pending:
        template = pending.pop()
        text = _SLOT.sub(" ", template)
        words.update(text.split() if LANGUAGES[language].spaced else text.replace(" ", ""))
        for name in set(_SLOT.findall(template)) - seen:
            seen.add(name)
            pending += grammar.lists[name]
    return words


def _choice(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[rng.integers(len(items))]
