"""From a model's raw output to the units that are scored: tags, languages, normalisers."""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Literal

from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

LANGUAGES: dict[str, str] = dict(LANGUAGE_CODE_TO_NAME)
"""ISO code -> English name of the 30 languages the released Qwen3-ASR models name."""

CHARACTER_LANGUAGES = frozenset({"Chinese", "Cantonese", "Japanese", "Korean", "Thai"})
"""Scored in characters: written without spaces between words or, as Korean, with spaces that
vary from writer to writer."""

_NAME_BY_ALIAS = {code: name for code, name in LANGUAGES.items()} | {
    name.lower(): name for name in LANGUAGES.values()
}
_OUTPUT = re.compile(r"\s*language\s+(?P<language>[^<]*?)\s*<asr_text>(?P<words>.*)", re.DOTALL)
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>|<asr_text>")
_TURKISH_LOWER = str.maketrans({"İ": "i", "I": "ı"})


def known_language(value: str | None) -> str | None:
    """Name of `value` if the released models know it, `value` itself if not, None for no language.

    The lenient twin of `language_name`, for scoring: a corpus in a language that the released
    models lack can still be scored under its own name.
    """
    if value is None or value.strip().lower() in ("", "none"):
        return None
    alias = value.strip().lower().replace("_", "-")
    primary_subtag = alias.split("-")[0]
    return _NAME_BY_ALIAS.get(alias) or _NAME_BY_ALIAS.get(primary_subtag) or value.strip()


def language_name(value: str | None) -> str | None:
    """English name of a language given by code or name, in any case.

    `"en"`, `"english"` and `"en-GB"` are `"English"`; a region or script subtag is ignored
    (`"zh-CN"` and `"zh_Hant"` are `"Chinese"`). None, `""` and `"None"` are None: no speech.

    Raises:
        ValueError: the released models have no such language.
    """
    name = known_language(value)
    if name is not None and name not in LANGUAGES.values():
        known = ", ".join(f"{name} ({code})" for code, name in sorted(LANGUAGES.items()))
        raise ValueError(f"unknown language {value!r}; known are: {known}")
    return name


def split_output(text: str) -> tuple[str | None, str]:
    """Language and words of one output (or target) of the model.

    `"language English<asr_text>two words<|im_end|>"` gives `("English", "two words")`,
    `"language None<asr_text>"` gives `(None, "")`, and text without the tag, as it comes when the
    language was forced in the prompt, gives `(None, text)`. Special tokens (`<|...|>` and repeated
    tags) are dropped and the ends stripped; repetitions and anything else the model wrote stay,
    so that they count. A language that the released models lack is returned as the model wrote it.
    """
    # Only tokens in front of the tag may hide it; those in the words are dropped afterwards.
    match = _OUTPUT.match(re.sub(r"<\|[^<>|]*\|>", "", text))
    if match is None:
        return None, _SPECIAL_TOKEN.sub("", text).strip()
    words = _SPECIAL_TOKEN.sub("", match["words"]).strip()
    return known_language(match["language"]), words


ENGLISH_NORMALISERS = ("whisper", "basic")
"""`basic` leaves number words apart, where `whisper` writes "seven three nine" as one "739"."""


@cache
def _normaliser(language: str | None, english: str) -> Callable[[str], str]:
    if english not in ENGLISH_NORMALISERS:
        raise ValueError(f"no English normaliser {english!r}: {' or '.join(ENGLISH_NORMALISERS)}")
    if language == "English" and english == "whisper":
        return EnglishTextNormalizer()
    return BasicTextNormalizer(remove_diacritics=False, preserve_marks=True)


# References come back at every validation and in the report.
@lru_cache(maxsize=1 << 16)
def normalise(text: str, language: str | None, english: str = "whisper") -> str:
    """Text as it is scored: Whisper's normaliser of its language, single spaces, ends stripped.

    English, if `english` is `"whisper"`: `EnglishTextNormalizer` (lower case, contractions and
    numbers written one way, British spelling made American, fillers such as "um" removed,
    diacritics dropped). Every other language, None, and English if `english` is `"basic"`:
    `BasicTextNormalizer(remove_diacritics=False, preserve_marks=True)`, that is, lower case, NFKC,
    anything in (), [] or <> removed, punctuation and symbols turned into spaces.
    Source: Radford et al. 2022, appendix C, in the packaging of PyPI's `whisper_normalizer`.

    Observed with whisper_normalizer 0.1.15:
      * Without `preserve_marks` (Whisper's own behaviour) every combining mark becomes a space:
        "नमस्ते" falls into "नमस त", "مَرْحَبًا" into single letters, a Thai word loses its vowels.
        So error rates here do not compare with figures made by Whisper's default in Hindi, Thai
        or vocalised Arabic.
      * Marks kept means that marks count: Arabic with and without short vowels differ. Harakat,
        alef and hamza variants, Persian zero-width non-joiners, Chinese variants (simplified and
        traditional) and number words are not unified.
      * Punctuation becomes a space, so "l'été" is two words.
      * Python lower-cases "İ" to "i" and a combining dot, and "I" to "i". Turkish is therefore
        lower-cased by its own rule first (İ → i, I → ı): the one step that is ours.
    """
    language = known_language(language)
    if language == "Turkish":
        text = text.translate(_TURKISH_LOWER)
    return " ".join(_normaliser(language, english)(text).split())


def scoring_unit(language: str | None) -> Literal["char", "word"]:
    """`"char"` for Chinese, Cantonese, Japanese, Korean and Thai (CER), else `"word"` (WER)."""
    return "char" if known_language(language) in CHARACTER_LANGUAGES else "word"


def units(text: str, language: str | None, english: str = "whisper") -> list[str]:
    """Normalised scoring units: the words, or the characters (code points) without spaces.

    Thai vowel signs and tone marks are code points of their own and count as characters.
    """
    words = normalise(text, language, english).split()
    return list("".join(words)) if scoring_unit(language) == "char" else words
