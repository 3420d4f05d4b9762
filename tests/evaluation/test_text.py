"""Tags, language names and normalisers."""

import pytest
from transformers.models.qwen3_asr.processing_qwen3_asr import _parse_single_output

from qwen3asr_train.evaluation.text import (
    LANGUAGES,
    language_name,
    normalise,
    scoring_unit,
    split_output,
    units,
)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("en", "English"),
        ("EN", "English"),
        ("english", "English"),
        (" English ", "English"),
        ("zh-CN", "Chinese"),
        ("zh_Hant", "Chinese"),
        ("yue", "Cantonese"),
        ("None", None),
        ("", None),
        (None, None),
    ],
)
def test_language_name(value, name):
    assert language_name(value) == name


def test_every_code_and_name_is_known():
    assert len(LANGUAGES) == 30
    for code, name in LANGUAGES.items():
        assert language_name(code) == language_name(name.upper()) == name


def test_unknown_language_says_what_is_known_in_one_line():
    with pytest.raises(ValueError, match=r"'Klingon'.*English \(en\)") as error:
        language_name("Klingon")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("language English<asr_text>two words", ("English", "two words")),
        ("language English<asr_text>two words<|im_end|>", ("English", "two words")),
        ("<|im_start|>language  Chinese <asr_text> 你好 <|im_end|>\n", ("Chinese", "你好")),
        ("language None<asr_text>", (None, "")),
        ("language None<asr_text><|im_end|><|endoftext|>", (None, "")),
        ("language None<asr_text>ghost", (None, "ghost")),
        ("no tag<|im_end|>", (None, "no tag")),
        ("language is a word", (None, "language is a word")),
        ("language Klingon<asr_text>qapla'", ("Klingon", "qapla'")),
        ("language English<asr_text>one<asr_text>\ntwo", ("English", "one\ntwo")),
        ("language English<asr_text>no no no no no no", ("English", "no no no no no no")),
        ("", (None, "")),
    ],
)
def test_split_output(text, expected):
    assert split_output(text) == expected


@pytest.mark.parametrize("text", ["language German<asr_text>ja", "language None<asr_text>", "ja"])
def test_split_output_agrees_with_transformers(text):
    theirs = _parse_single_output(text)
    language, words = split_output(text)
    assert words == theirs["transcription"]
    assert language == language_name(theirs["language"])


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Mr. Smith's colour, twenty-one!", "English", "mister smith is color 21"),
        ("um", "English", ""),
        ("नमस्ते दुनिया।", "Hindi", "नमस्ते दुनिया"),
        ("مرحبا بالعالم؟", "Arabic", "مرحبا بالعالم"),
        ("Việt Nam.", "Vietnamese", "việt nam"),
        ("İstanbul, IŞIK", "Turkish", "istanbul ışık"),
        ("Ça va - été?", "French", "ça va été"),
        ("１２３　ＡＢＣ。", "Chinese", "123 abc"),
        ("Bore da!", "Welsh", "bore da"),
        ("[noise] Text", None, "text"),
    ],
)
def test_normalise(text, language, expected):
    assert normalise(text, language) == expected


def test_marks_that_carry_vowels_survive():
    assert normalise("กำ", "Thai") != normalise("กา", "Thai")
    assert units("नमस्ते", "hi") == ["नमस्ते"]


def test_normalise_is_idempotent_outside_english():
    for text, language in [("Größe; Maß", "de"), ("日本語 テスト。", "ja"), ("İĞNE", "tr")]:
        once = normalise(text, language)
        assert normalise(once, language) == once


def test_scoring_unit_and_units():
    characters = {name for name in LANGUAGES.values() if scoring_unit(name) == "char"}
    assert characters == {"Chinese", "Cantonese", "Japanese", "Korean", "Thai"}
    assert scoring_unit("ko") == "char"
    assert scoring_unit(None) == "word"
    assert units("你好， 世界！", "Chinese") == ["你", "好", "世", "界"]
    assert units("Hello,  World!", "English") == ["hello", "world"]
    assert units("", "Chinese") == []


def test_basic_english_keeps_number_words_apart():
    assert units("Seven, three nine!", "English") == ["739"]
    assert units("Seven, three nine!", "English", "basic") == ["seven", "three", "nine"]
    with pytest.raises(ValueError, match="whisper or basic"):
        units("x", "English", "none")
