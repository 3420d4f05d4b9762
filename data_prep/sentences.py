"""Short sentences over small closed vocabularies, for the embedded speech of eight languages.

A grammar (``grammars/LANGUAGE.yaml``) has named ``lists`` of words and, per domain, templates
whose ``{slots}`` draw from them. A test sentence is thus made of words heard in training, in a
combination that was not. Text is a plain transcript: numbers in words, no punctuation. No two
words of a language sound alike to espeak-ng, so every sentence can be told from its audio.

The exception is on purpose: sentences with a name that has several spellings
(``grammars/spellings.yaml``), for which a recogniser needs the context.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
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

    @property
    def joiner(self) -> str:
        """What stands between words."""
        return " " if self.spaced else ""


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
    return _Grammar(**yaml.safe_load(_grammar_file(language.lower()).read_text("utf-8")))


def _templates(language: str, domain: str) -> list[str]:
    domains = _grammar(language).domains
    if domain not in domains:
        raise ValueError(f"no domain {domain!r}, only {', '.join(DOMAINS)}")
    return domains[domain]


@cache
def _spellings() -> dict[str, dict[str, list]]:
    return yaml.safe_load(_grammar_file("spellings").read_text("utf-8"))


def _grammar_file(name: str) -> Traversable:
    return files("data_prep").joinpath("grammars", f"{name}.yaml")


def sentence(language: str, domain: str, rng: np.random.Generator) -> str:
    """A random sentence: 2 to 6 words, or 3 to 9 hanzi.

    A list gives each of its items at most once to a sentence. Raises ValueError: unknown
    language or domain.
    """
    return _filled(_choice(_templates(language, domain), rng), _grammar(language).lists, rng)


@dataclass(frozen=True)
class SpelledSentence:
    """``entity``: the name in ``text``, which could also be spelled as one of ``others``; the voice
    is given ``said``, where it is ``said_entity``. ``rare``: what another sentence hardly ever
    says: a name of all its parts, or, if it is one of a few, the sentence."""

    text: str
    entity: str
    others: tuple[str, ...]
    said: str
    said_entity: str
    rare: str


def named_languages() -> tuple[str, ...]:
    """The languages that have names of several spellings."""
    return tuple(_spellings())


def spelled_sentence(language: str, rng: np.random.Generator) -> SpelledSentence | None:
    """A sentence whose name could be spelled otherwise; None for a language without such names."""
    if language not in named_languages():
        return None
    spellings = _spellings()[language]
    rows = spellings["names"]
    form = _choice(spellings["forms"], rng)
    groups = [_choice(rows[row], rng) for row in form]
    names = [LANGUAGES[language].joiner.join(parts) for parts in product(*groups)]
    entity = _choice(names, rng)
    template = _filled(_choice(spellings["sentences"], rng).replace("{entity}", "<>"),
                       _grammar(language).lists, rng)
    said = template.replace("<>", names[0])
    return SpelledSentence(template.replace("<>", entity), entity,
                           tuple(name for name in names if name != entity), said,
                           names[0], names[0] if len(form) == len(rows) else said)


def _filled(template: str, lists: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    taken: set[tuple[str, str]] = set()

    def fill(slot: re.Match) -> str:
        name = slot[1]
        item = _choice([item for item in lists[name] if (name, item) not in taken], rng)
        taken.add((name, item))
        return _SLOT.sub(fill, item)

    return _SLOT.sub(fill, template)


def vocabulary(language: str, domains: Sequence[str] = DOMAINS) -> set[str]:
    """Every word (every hanzi, for Chinese) that ``sentence`` can emit in some domains.

    Raises ValueError: unknown language or domain.
    """
    lists = _grammar(language).lists
    words: set[str] = set()
    pending = [template for domain in domains for template in _templates(language, domain)]
    seen: set[str] = set()
    while pending:
        template = pending.pop()
        text = _SLOT.sub(" ", template)
        words.update(text.split() if LANGUAGES[language].spaced else text.replace(" ", ""))
        for name in set(_SLOT.findall(template)) - seen:
            seen.add(name)
            pending += lists[name]
    return words


def _choice(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[rng.integers(len(items))]
