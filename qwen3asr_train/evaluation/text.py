"""From a model's raw output to the units that are scored: tags, normalisers, words, characters."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from typing import get_args

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.languages import (
    CHARACTER_LANGUAGES,
    LANGUAGE_TABLE,
    Unit,
    known_language,
    languages_in,
)

SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>|<asr_text>")
"""What no transcript holds."""

_OUTPUT = re.compile(r"\s*language\s+(?P<language>[^<]*?)\s*<asr_text>(?P<words>.*)", re.DOTALL)
_TURKISH_LOWER = str.maketrans({"İ": "i", "I": "ı"})


def split_output(text: str) -> tuple[str | None, str]:
    """Language and words of one output (or target) of the model.

    `"language English<asr_text>two words<|im_end|>"` gives `("English", "two words")`,
    `"language None<asr_text>"` gives `(None, "")`, and text without the tag, as it comes when the
    language was forced in the prompt, gives `(None, text)`. Special tokens (`<|...|>` and repeated
    tags) are dropped and the ends stripped; repetitions and anything else the model wrote stay,
    so that they count. A language that the released models lack is returned as the model wrote it,
    several are joined by commas (`"Chinese,English"`) and a dialect is its output language, as in
    `languages.known_language`.
    """
    # Only tokens in front of the tag may hide it; those in the words are dropped afterwards.
    match = _OUTPUT.match(re.sub(r"<\|[^<>|]*\|>", "", text))
    if match is None:
        return None, SPECIAL_TOKEN.sub("", text).strip()
    words = SPECIAL_TOKEN.sub("", match["words"]).strip()
    return known_language(match["language"]), words


ENGLISH_NORMALISERS = ("whisper", "basic")
"""`basic` leaves number words apart, where `whisper` writes "seven three nine" as one "739"."""


_WHISPER_ENGLISH = cache(EnglishTextNormalizer)
_WHISPER_BASIC = cache(partial(BasicTextNormalizer, remove_diacritics=False, preserve_marks=True))


def check_normaliser(english: str) -> None:
    """UserError for one of English that there is not."""
    if english not in ENGLISH_NORMALISERS:
        raise UserError(f"data.english_normaliser={english}: one of "
                        f"{', '.join(ENGLISH_NORMALISERS)}")


# References come back at every validation and in the report.
@lru_cache(maxsize=1 << 16)
def normalise(text: str, language: str | None, english: str = "whisper") -> str:
    """Text as it is scored: Whisper's normaliser of its language, single spaces, ends stripped.

    English, if `english` is `"whisper"`: `EnglishTextNormalizer` (lower case, contractions and
    numbers written one way, British spelling made American, fillers such as "um" removed,
    diacritics dropped). Every other language, None, and English if `english` is `"basic"`:
    `BasicTextNormalizer(remove_diacritics=False, preserve_marks=True)`, that is, lower case, NFKC,
    anything in (), [] or <> removed, punctuation and symbols turned into spaces. So are several
    languages at once (`"Chinese,English"`). Which language has which: `languages.LANGUAGE_TABLE`.
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
    check_normaliser(english)
    known = LANGUAGE_TABLE.get(known_language(language) or "")
    kind = known.normaliser if known else "basic"
    if kind == "turkish":
        text = text.translate(_TURKISH_LOWER)
    whisper = kind == "english" and english == "whisper"
    return " ".join((_WHISPER_ENGLISH if whisper else _WHISPER_BASIC)()(text).split())


# Han, kana, Hangul and Thai blocks; han also has 々 〆 〇 and the planes of rare characters.
_CHARACTER = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
    "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
    "\u0e01-\u0e7f"
)
_MIXED_UNIT = re.compile(rf"[{_CHARACTER}]|[^\s{_CHARACTER}]+")
_IN_CHARACTERS = re.compile(rf"[{_CHARACTER}]")


def scoring_unit(language: str | None) -> Unit:
    """`"char"` for Chinese, Cantonese, Japanese, Korean and Thai (CER), else `"word"` (WER).

    `"mixed"` (MER) for a label that names languages of both kinds, as `"Chinese,English"`.
    """
    names = languages_in(language)
    in_characters = [name in CHARACTER_LANGUAGES for name in names]
    if not any(in_characters):
        return "word"
    return "char" if all(in_characters) else "mixed"


def units(
    text: str, language: str | None, english: str = "whisper", unit: Unit | None = None
) -> list[str]:
    """Normalised scoring units, by default those of the language (`scoring_unit`).

    `"word"`: the words. `"char"`: the characters (code points) without spaces, Latin letters and
    digits too. `"mixed"`: each Han, kana, Hangul or Thai character, and each unbroken run of
    anything else as one word: "我想 go to 学校" is 我 / 想 / go / to / 学 / 校. Counting errors in
    these gives the mixed error rate of code-switching sets such as SEAME and ASCEND (Lovenia et
    al. 2022, arXiv 2112.06223).

    Thai vowel signs and tone marks are code points of their own and count as characters.
    """
    unit = unit or scoring_unit(language)
    text = normalise(text, language, english)
    if unit == "char":
        return list(text.replace(" ", ""))
    if unit == "mixed":
        return _MIXED_UNIT.findall(text)
    if unit == "word":
        return text.split()
    raise ValueError(f"no scoring unit {unit!r}: {', '.join(get_args(Unit))}")


def mixes_scripts(mixed_units: Sequence[str]) -> bool:
    """Whether `"mixed"` units hold both characters and words with letters; digits are no words."""
    in_characters = [bool(_IN_CHARACTERS.match(unit)) for unit in mixed_units]
    return any(in_characters) and any(
        any(map(str.isalpha, unit))
        for unit, is_character in zip(mixed_units, in_characters, strict=True)
        if not is_character)
