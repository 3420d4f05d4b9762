"""The languages and dialects of the released models, and what a label names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.languages import (
    DIALECTS,
    LANGUAGE_TABLE,
    LANGUAGES,
    dialect,
    known_language,
    language_name,
    languages_in,
    names_language,
)

# README of github.com/QwenLM/Qwen3-ASR at 7c6daf7
README_DIALECTS = [
    "Anhui", "Dongbei", "Fujian", "Gansu", "Guizhou", "Hebei", "Henan", "Hubei", "Hunan", "Jiangxi",
    "Ningxia", "Shandong", "Shaanxi", "Shanxi", "Sichuan", "Tianjin", "Yunnan", "Zhejiang",
    "Cantonese (Hong Kong accent)", "Cantonese (Guangdong accent)", "Wu language",
    "Minnan language",
]
NAMES = st.sampled_from([*LANGUAGES.values(), "Klingon"])


def test_the_table_is_that_of_transformers():
    assert LANGUAGES == LANGUAGE_CODE_TO_NAME
    assert all(name == language.name for name, language in LANGUAGE_TABLE.items())


def test_every_code_and_name_is_known():
    assert len(LANGUAGES) == 30
    for code, name in LANGUAGES.items():
        assert language_name(code) == language_name(name.upper()) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("en", "English"),
        ("EN", "English"),
        ("english", "English"),
        (" English ", "English"),
        ("zh-CN", "Chinese"),
        ("zh_Hant", "Chinese"),
        ("cmn_hans_cn", "Chinese"),
        ("Mandarin", "Chinese"),
        ("yue", "Cantonese"),
        ("Sichuan", "Chinese"),
        ("Wu", "Chinese"),
        ("wuu-CN", "Chinese"),
        ("Minnan language", "Chinese"),
        ("cantonese (Guangdong accent)", "Cantonese"),
        ("zh+en", "Chinese,English"),
        ("English, Sichuan / zh", "English,Chinese"),
        ("Chinese,None", "Chinese"),
        ("None", None),
        ("", None),
        (",", None),
        (None, None),
    ],
)
def test_language_name(value, name):
    assert language_name(value) == known_language(value) == name


def test_unknown_language_says_what_is_known_in_one_line():
    for value in ("Klingon", "English+Klingon"):
        with pytest.raises(ValueError, match=r"Klingon'.*English \(en\).*Sichuan") as error:
            language_name(value)
        assert "\n" not in str(error.value)
        assert isinstance(error.value, UserError)
    assert known_language("English+ Klingon ") == "English,Klingon"


def test_an_empty_cell_of_pandas_is_no_minnan():
    assert dialect("nan").name == "Minnan language"
    with pytest.raises(UserError, match="'nan'"):
        language_name("nan")
    assert known_language(str(float("nan"))) == "nan"


def test_the_dialects_are_those_of_the_readme():
    assert [each.name for each in DIALECTS] == README_DIALECTS
    assert len(README_DIALECTS) == 22
    names = [alias.lower() for each in DIALECTS for alias in (each.name, each.code, *each.aliases)]
    assert len(set(names)) == len(names)
    assert not set(names) & {alias.lower() for each in LANGUAGE_TABLE.values()
                             for alias in (each.name, each.code, *each.aliases)}


@pytest.mark.parametrize("each", DIALECTS, ids=lambda each: each.code)
def test_every_dialect_is_found_and_has_a_language(each):
    for alias in (each.name, each.code, *each.aliases):
        for written in (alias, alias.upper(), f" {alias} ", alias.replace("-", "_")):
            assert dialect(written) is each
    assert each.unit == "char"
    cantonese = each.name.startswith("Cantonese")
    assert each.output_language == ("Cantonese" if cantonese else "Chinese")
    if each.code != "nan":
        assert language_name(each.name) == language_name(each.code) == each.output_language
    # RFC 5646: language, region, and variants of 5 to 8 letters
    assert re.fullmatch(r"[a-z]{2,3}(-[A-Z]{2}(-[a-z]{5,8})?)?", each.code)


def test_dialects_by_script_subtag_and_unknown():
    assert dialect("yue-Hant-HK").code == "yue-HK"
    assert dialect("zh-Hans-CN-sichuan").name == "Sichuan"
    assert dialect("nan-TW").name == "Minnan language"
    for value in ("Cantonese", "zh-CN", "Bavarian", ""):
        with pytest.raises(UserError, match=r"unknown Chinese dialect .*Wu language \(wuu\)"):
            dialect(value)


@given(st.lists(NAMES, max_size=4), st.sampled_from([",", "+", " / ", ", ", "&", "、"]))
def test_labels_of_several_languages(names, separator):
    found = languages_in(separator.join(names))
    assert found == tuple(dict.fromkeys(names))
    assert languages_in(known_language(separator.join(names))) == found


@given(st.lists(NAMES, max_size=3), st.lists(NAMES, max_size=3))
def test_a_prediction_is_right_within_the_reference(predicted, reference):
    right = names_language(",".join(predicted), "+".join(reference))
    assert right == (bool(set(predicted)) == bool(set(reference))
                     and all(name in reference for name in predicted))
    if len(set(reference)) < 2 and len(set(predicted)) < 2:
        assert right == (set(predicted) == set(reference))
