"""Tags, normalisers and scoring units."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_asr.processing_qwen3_asr import _parse_single_output

from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.languages import CHARACTER_LANGUAGES, LANGUAGE_TABLE, language_name
from qwen3asr_train.evaluation.text import (
    mixes_scripts,
    normalise,
    scoring_unit,
    split_output,
    units,
)


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
        ("language Chinese,English<asr_text>我 go", ("Chinese,English", "我 go")),
        ("language Chinese,english,Chinese<asr_text>我 go", ("Chinese,English", "我 go")),
        ("language Sichuan<asr_text>巴适", ("Chinese", "巴适")),
        ("language Cantonese (Hong Kong accent)<asr_text>係", ("Cantonese", "係")),
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
    characters = {name for name in LANGUAGE_TABLE if scoring_unit(name) == "char"}
    assert characters == CHARACTER_LANGUAGES == {
        "Chinese", "Cantonese", "Japanese", "Korean", "Thai"}
    assert scoring_unit("ko") == scoring_unit("Sichuan") == scoring_unit("zh+yue") == "char"
    assert scoring_unit(None) == scoring_unit("en,de") == "word"
    assert scoring_unit("Chinese+English") == "mixed"
    assert units("你好， 世界！", "Chinese") == ["你", "好", "世", "界"]
    assert units("Hello,  World!", "English") == ["hello", "world"]
    assert units("", "Chinese") == []


def test_basic_english_keeps_number_words_apart():
    assert units("Seven, three nine!", "English") == ["739"]
    assert units("Seven, three nine!", "English", "basic") == ["seven", "three", "nine"]
    with pytest.raises(UserError, match="one of whisper, basic"):
        units("x", "English", "none")


def test_the_table_says_which_normaliser_a_language_has():
    sample = "İI Mr. Smith's colour, twenty-one"
    for name, language in LANGUAGE_TABLE.items():
        expected = {"english": "ii mister smith is color 21",
                    "turkish": "iı mr smith s colour twenty one",
                    "basic": "i̇i mr smith s colour twenty one"}[language.normaliser]
        assert normalise(sample, name) == expected, name
    assert normalise(sample, "Chinese,English") == normalise(sample, "Chinese")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我想 go to 学校。", ["我", "想", "go", "to", "学", "校"]),
        ("T恤 iPhone15真好", ["t", "恤", "iphone15", "真", "好"]),
        ("NHKはニュース", ["nhk", "は", "ニ", "ュ", "ー", "ス"]),
        ("오늘 meeting 있어", ["오", "늘", "meeting", "있", "어"]),
        ("ก็โอเค very good", ["ก", "็", "โ", "อ", "เ", "ค", "very", "good"]),
        ("时々 𠮷野家", ["时", "々", "𠮷", "野", "家"]),
        ("privet мир नमस्ते", ["privet", "мир", "नमस्ते"]),
        ("", []),
    ],
)
def test_mixed_units(text, expected):
    assert units(text, "Chinese,English") == units(text, "Chinese", unit="mixed") == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["我", "学校", "go", "home", "ไทย", "한국", "かな", "3"])))
def test_mixed_units_do_not_depend_on_spaces_around_characters(pieces):
    """Words need a space between them; characters need none on either side."""
    spaced = " ".join(pieces)
    tight = spaced
    for character in "我校ไยกかな학국한":
        tight = tight.replace(f" {character}", character).replace(f"{character} ", character)
    assert units(tight, "zh", unit="mixed") == units(spaced, "zh", unit="mixed")
    joined = "".join(units(spaced, "zh", unit="mixed"))
    assert joined == "".join(units(spaced, "zh", unit="char")) == spaced.replace(" ", "")


def test_units_without_a_script_in_characters_are_the_words():
    for text, language in [("l'été à Paris", "fr"), ("Привет, мир", "ru"), ("abc 12", None)]:
        assert units(text, language, unit="mixed") == units(text, language, unit="word")
    assert units("ab c", "en", unit="char") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no scoring unit 'letter': char, word, mixed"):
        units("x", "en", unit="letter")


def test_character_blocks_hold_every_han_kana_hangul_and_thai_letter():
    scripts = ("CJK UNIFIED IDEOGRAPH", "HIRAGANA LETTER", "KATAKANA LETTER", "HANGUL SYLLABLE",
               "THAI CHARACTER")
    for codepoint in range(0x80, 0x32400):
        character = chr(codepoint)
        name = unicodedata.name(character, "")
        if not character.isalpha() or normalise(character, "zh") != character:
            continue
        in_characters = len(units(character * 2, "zh", unit="mixed")) == 2
        if name.startswith(scripts):
            assert in_characters, name
        elif name.startswith(("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI")):
            assert not in_characters, name


@pytest.mark.parametrize(
    ("text", "mixed"),
    [("我想 go", True), ("T恤", True), ("3月5日", False), ("go home 3", False), ("你好", False),
     ("", False), ("é 안", True), ("12 กา", False)],
)
def test_mixes_scripts(text, mixed):
    assert mixes_scripts(units(text, None, unit="mixed")) is mixed
