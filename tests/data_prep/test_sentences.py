"""The embedded grammars: enough sentences, closed vocabularies, nothing that sounds alike."""

import unicodedata
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from data_prep.sentences import (
    DOMAINS,
    LANGUAGES,
    _spellings,
    sentence,
    spelled_sentence,
    vocabulary,
)


def sample(language: str, domain: str, count: int = 1500) -> list[str]:
    rng = np.random.default_rng(0)
    return [sentence(language, domain, rng) for _ in range(count)]


def units(language: str, text: str) -> list[str]:
    return text.split(" ") if LANGUAGES[language].spaced else list(text)


@pytest.fixture(scope="module")
def speaker():
    pytest.importorskip("espeakng_loader")
    from data_prep.espeak import Espeak

    return Espeak()


def test_a_generator_state_names_a_sentence():
    for language in LANGUAGES:
        assert sample(language, "dates", 20) == sample(language, "dates", 20)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_domain_makes_150_plain_short_sentences(language):
    low, high = (2, 6) if LANGUAGES[language].spaced else (3, 9)
    for domain in DOMAINS:
        distinct = set(sample(language, domain))
        assert len(distinct) >= 150, domain
        for text in distinct:
            assert low <= len(units(language, text)) <= high, text
            # Letters and marks only; "".isalpha() also keeps double spaces out.
            for word in units(language, text):
                assert word and all(unicodedata.category(c)[0] in "LM" for c in word), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_vocabulary_is_closed_and_every_word_is_frequent(language):
    words = vocabulary(language)
    low, high = {"English": (60, 90), "Chinese": (40, 90)}.get(language, (40, 80))
    assert low <= len(words) <= high
    counts = Counter(
        unit
        for domain in DOMAINS
        for text in set(sample(language, domain))
        for unit in set(units(language, text))
    )
    assert set(counts) == words
    assert min(counts.values()) >= 8, counts.most_common()[-5:]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_words_sound_alike(language, speaker):
    heard = defaultdict(list)
    for word in sorted(vocabulary(language)):
        phonemes = "".join(speaker.phonemes(word, LANGUAGES[language].espeak))
        # Stress marks fall away inside a sentence, so they may not be the only difference.
        heard[phonemes.translate(str.maketrans("", "", "',%="))].append(word)
    offenders = [words for words in heard.values() if len(words) > 1]
    assert not offenders


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_last_about_a_second(language, speaker):
    rng = np.random.default_rng(1)
    durations = []
    for domain in DOMAINS * 3:
        text = sentence(language, domain, rng)
        speech = speaker.synthesize(text, LANGUAGES[language].espeak)
        assert [word for word, _, _ in speech.words] == units(language, text)
        durations.append(speech.duration)
    assert min(durations) > 0.4 and max(durations) < 3
    assert 0.8 < np.mean(durations) < 2


def test_unknown_names_are_value_errors():
    with pytest.raises(ValueError, match=r"'Klingon'.*English"):
        vocabulary("Klingon")
    with pytest.raises(ValueError, match=r"'poems'.*commands"):
        sentence("English", "poems", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"'poems'.*commands"):
        vocabulary("English", ("commands", "poems"))


@pytest.mark.parametrize("language", _spellings())
def test_names_of_several_spellings_do_not_sound_alike(speaker, language):
    heard, drawn = {}, set()
    for form in _spellings()[language]["forms"]:
        rows = [[group[0] for group in _spellings()[language]["names"][row]] for row in form]
        names = [LANGUAGES[language].joiner.join(parts) for parts in product(*rows)]
        for i in np.random.default_rng(0).permutation(len(names))[:100]:
            sounds = tuple(speaker.phonemes(names[i], LANGUAGES[language].espeak))
            assert heard.setdefault(sounds, names[i]) == names[i]
            drawn.add(names[i])
    assert len(heard) == len(drawn) >= 124


@pytest.mark.parametrize("language", _spellings())
def test_no_spelling_belongs_to_two_names(language):
    rows = _spellings()[language]["names"]
    for row in rows:
        for group in row:
            assert len(set(group)) == len(group) >= 2
    spelled = Counter(LANGUAGES[language].joiner.join(parts) for groups in product(*rows)
                      for parts in product(*groups))
    assert max(spelled.values()) == 1, spelled.most_common(5)
    if LANGUAGES[language].spaced:  # of hanzi, there are not enough
        parts = {part.casefold() for row in rows for group in row for part in group}
        assert not parts & {word.casefold() for word in vocabulary(language)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_spelled_sentences_name_what_else_they_could_be(language):
    rng = np.random.default_rng(0)
    for _ in range(100):
        found = spelled_sentence(language, rng)
        if language not in _spellings():
            assert found is None
            continue
        names = {found.entity, *found.others}
        assert found.said_entity in names and len(names) == len(found.others) + 1 >= 2
        assert found.said == found.text.replace(found.entity, found.said_entity)
        assert found.rare in (found.said_entity, found.said)
        assert "{" not in found.text and "<" not in found.text
