"""The 30 languages and 22 Chinese dialects of the released models: names, codes, scoring.

Source: table 1 of the Qwen3-ASR report (arXiv 2601.21337), the same as the README of
github.com/QwenLM/Qwen3-ASR at 7c6daf7, and `SUPPORTED_LANGUAGES` in qwen_asr/inference/utils.py
there.

Which language the models write for a dialect is not documented. What is: the 22 are called Chinese
dialects; the languages that can be forced (`validate_language` in the same file) are the 30 alone,
with Cantonese as one of them. So the two Cantonese accents are taken to be written `Cantonese` and
the other 20 `Chinese`, and a model that does write the name of a dialect is read in the same way.
"""

import re
from dataclasses import dataclass
from typing import Literal

from qwen3asr_train.errors import UserError

Unit = Literal["char", "word", "mixed"]
Normaliser = Literal["english", "basic", "turkish"]


class UnknownLanguageError(UserError, ValueError):
    """No such language or dialect; the message lists those there are."""


@dataclass(frozen=True)
class Language:
    """`name` as the models write it, `code` ISO 639, `unit` of the error rate, `normaliser` as in
    `text.normalise`: `english` (Whisper's English one), `basic`, or `turkish` (basic after Turkish
    lower-casing)."""

    name: str
    code: str
    unit: Unit = "word"
    normaliser: Normaliser = "basic"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """A Chinese dialect: `name` as in the report, `code` well-formed BCP 47.

    The codes of provinces follow Azure's `zh-CN-sichuan`; IANA has registered no such variants.
    `output_language`: see the module.
    """

    name: str
    code: str
    output_language: str
    aliases: tuple[str, ...] = ()

    @property
    def unit(self) -> Unit:
        """Scoring unit, that of the output language."""
        return LANGUAGE_TABLE[self.output_language].unit


# Characters: written without spaces between words or, as Korean, with spaces that vary from writer
# to writer. The report names Chinese, Cantonese and Korean as examples.
LANGUAGE_TABLE: dict[str, Language] = {language.name: language for language in (
    Language("Arabic", "ar"),
    Language("Cantonese", "yue", "char"),
    Language("Chinese", "zh", "char", aliases=("cmn", "mandarin")),
    Language("Czech", "cs"),
    Language("Danish", "da"),
    Language("Dutch", "nl"),
    Language("English", "en", normaliser="english"),
    Language("Filipino", "fil"),
    Language("Finnish", "fi"),
    Language("French", "fr"),
    Language("German", "de"),
    Language("Greek", "el"),
    Language("Hindi", "hi"),
    Language("Hungarian", "hu"),
    Language("Indonesian", "id"),
    Language("Italian", "it"),
    Language("Japanese", "ja", "char"),
    Language("Korean", "ko", "char"),
    Language("Macedonian", "mk"),
    Language("Malay", "ms"),
    Language("Persian", "fa"),
    Language("Polish", "pl"),
    Language("Portuguese", "pt"),
    Language("Romanian", "ro"),
    Language("Russian", "ru"),
    Language("Spanish", "es"),
    Language("Swedish", "sv"),
    Language("Thai", "th", "char"),
    Language("Turkish", "tr", normaliser="turkish"),
    Language("Vietnamese", "vi"),
)}
"""English name -> language."""

LANGUAGES: dict[str, str] = {language.code: name for name, language in LANGUAGE_TABLE.items()}
"""ISO code -> English name."""

CHARACTER_LANGUAGES = frozenset(
    name for name, language in LANGUAGE_TABLE.items() if language.unit == "char")
"""Names of the languages scored in characters."""


def _of_province(name: str, hanzi: str, *aliases: str) -> Dialect:
    key = name.lower()
    return Dialect(name, f"zh-CN-{key}", "Chinese", (
        f"zh-{key}", f"{key} dialect", f"{key} accent",
        hanzi, f"{hanzi}话", f"{hanzi}方言", *aliases))


DIALECTS: tuple[Dialect, ...] = (
    _of_province("Anhui", "安徽"),
    _of_province("Dongbei", "东北", "northeastern", "northeastern mandarin", "zh-cn-liaoning"),
    _of_province("Fujian", "福建"),
    _of_province("Gansu", "甘肃"),
    _of_province("Guizhou", "贵州"),
    _of_province("Hebei", "河北"),
    _of_province("Henan", "河南"),
    _of_province("Hubei", "湖北"),
    _of_province("Hunan", "湖南"),
    _of_province("Jiangxi", "江西"),
    _of_province("Ningxia", "宁夏"),
    _of_province("Shandong", "山东"),
    _of_province("Shaanxi", "陕西"),
    _of_province("Shanxi", "山西"),
    _of_province("Sichuan", "四川", "sichuanese"),
    _of_province("Tianjin", "天津"),
    _of_province("Yunnan", "云南"),
    _of_province("Zhejiang", "浙江"),
    Dialect("Cantonese (Hong Kong accent)", "yue-HK", "Cantonese",
            ("cantonese (hong kong)", "hong kong cantonese", "香港粤语")),
    Dialect("Cantonese (Guangdong accent)", "yue-CN", "Cantonese",
            ("cantonese (guangdong)", "guangdong cantonese", "广东粤语")),
    Dialect("Wu language", "wuu", "Chinese",
            ("wu", "wu chinese", "wu dialect", "shanghainese", "吴语", "上海话")),
    Dialect("Minnan language", "nan", "Chinese",
            ("minnan", "min nan", "min-nan", "minnan dialect", "southern min", "hokkien",
             "闽南语")),
)

_NAME_BY_ALIAS = {alias.lower(): language.name for language in LANGUAGE_TABLE.values()
                  for alias in (language.name, language.code, *language.aliases)}
_DIALECT_BY_ALIAS = {alias.lower(): dialect for dialect in DIALECTS
                     for alias in (dialect.name, dialect.code, *dialect.aliases)}
_SEVERAL = re.compile(r"[,+/&;，、]")
_SCRIPT_SUBTAG = re.compile(r"(?<=-)[a-z]{4}(?=-|$)-?")
_EMPTY_CELL = "nan"  # also the code of Minnan, but in a manifest it is what pandas makes of nothing


def languages_in(value: str | None) -> tuple[str, ...]:
    """Names of the languages of a label, each once, in order; () for none, that is, no speech.

    One utterance may be in several: `"Chinese+English"`, `"zh/en"`, and `"Chinese,English"`, as the
    official client joins the languages of the pieces of a long clip (`merge_languages` in
    qwen_asr/inference/utils.py). The released models name one language in an answer; nothing
    published shows a list there. Languages that the released models lack keep the name given.
    """
    parts = [part.strip() for part in _SEVERAL.split(value or "")]
    names = [_known(part) for part in parts if part.lower() not in ("", "none")]
    return tuple(dict.fromkeys(names))


def _known(value: str) -> str:
    alias = value.lower().replace("_", "-")
    if alias == _EMPTY_CELL:
        return value
    for key in (alias, alias.split("-")[0]):
        if key in _NAME_BY_ALIAS:
            return _NAME_BY_ALIAS[key]
        if key in _DIALECT_BY_ALIAS:
            return _DIALECT_BY_ALIAS[key].output_language
    return value


def known_language(value: str | None) -> str | None:
    """Name of `value` if the released models know it, `value` itself if not, None for no language.

    The lenient twin of `language_name`, for scoring: a corpus in a language that the released
    models lack can still be scored under its own name.
    """
    return ",".join(languages_in(value)) or None


def language_name(value: str | None) -> str | None:
    """English name of a language given by code or name, in any case.

    `"en"`, `"english"` and `"en-GB"` are `"English"`; a region or script subtag is ignored
    (`"zh-CN"` and `"zh_Hant"` are `"Chinese"`). A Chinese dialect is its output language
    (`"Sichuan"`, `"wuu"`: `"Chinese"`), several languages are joined by commas (`"zh+en"`:
    `"Chinese,English"`; the official client forces one language, never several). None, `""` and
    `"None"` are None: no speech.

    Raises:
        UnknownLanguageError: the released models lack a language of `value`.
    """
    if any(name not in LANGUAGE_TABLE for name in languages_in(value)):
        known = ", ".join(f"{name} ({code})" for code, name in sorted(LANGUAGES.items()))
        raise UnknownLanguageError(
            f"unknown language {value!r}; known are: {known}; and the Chinese dialects "
            + ", ".join(each.name for each in DIALECTS))
    return known_language(value)


def names_language(predicted: str | None, reference: str | None) -> bool:
    """Whether a predicted language is right: it names languages of the reference and no other.

    For a reference in one language that is equality, None (no speech) included. For a code-switched
    reference any of its languages is right, since the released models name one an answer.
    """
    heard, said = set(languages_in(predicted)), set(languages_in(reference))
    return heard <= said and bool(heard) == bool(said)


def dialect(value: str) -> Dialect:
    """The dialect of a name, alias or code: `"Sichuan"`, `"四川话"`, `"zh-CN-sichuan"`, `"wuu"`.

    Raises:
        UnknownLanguageError: none of the 22, such as a language without a dialect (`"Cantonese"`).
    """
    alias = value.strip().lower().replace("_", "-")
    tag = _SCRIPT_SUBTAG.sub("", alias).rstrip("-")
    for key in (alias, tag, tag.split("-")[0]):
        if key in _DIALECT_BY_ALIAS:
            return _DIALECT_BY_ALIAS[key]
    known = ", ".join(f"{each.name} ({each.code})" for each in DIALECTS)
    raise UnknownLanguageError(f"unknown Chinese dialect {value!r}; known are: {known}")
