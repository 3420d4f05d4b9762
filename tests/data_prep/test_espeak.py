"""espeak-ng: the same samples everywhere, and word times that the waveform agrees with."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from data_prep import espeak
from data_prep.espeak import INTELLIGIBLE_VARIANTS, Espeak, EspeakNotInstalled

pytest.importorskip("espeakng_loader")

TEXTS = {
    "en-us": "open the red door and close the window",
    "cmn": "请打开红色的窗户",
    "es": "abre la puerta roja",
    "de": "öffne die große Tür",
    "fr": "ouvre le petit livre",
    "ru": "открой красную книгу",
    "ko": "문을 닫아 주세요 나는 학교에 간다",
    "ar": "افتح الباب الكبير",
}
CALLS = [*((text, code) for code, text in TEXTS.items()), (TEXTS["en-us"], "en-us", "klatt4")]


@pytest.fixture(scope="module")
def speaker() -> Espeak:
    return Espeak()


def digest(call: tuple[str, ...]) -> str:
    speech = Espeak().synthesize(*call)
    return hashlib.md5(speech.waveform.tobytes() + repr(speech.words).encode()).hexdigest()


def rms(speech: espeak.Speech, start: float, end: float) -> float:
    part = speech.waveform[round(start * speech.rate) : round(end * speech.rate)]
    return float(np.sqrt(np.mean(part.astype(float) ** 2)))


def test_same_samples_in_any_order_of_calls():
    first = [digest(call) for call in CALLS]
    again = [digest(call) for call in reversed(CALLS)]
    assert first == again[::-1]
    assert len(set(first)) == len(CALLS)


def test_same_samples_in_a_forked_worker_after_use_in_the_parent():
    here = [digest(call) for call in CALLS]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(digest, CALLS) == here


def test_same_samples_in_a_new_process_with_other_memory_contents():
    code = (
        "import json, sys; from data_prep.espeak import *; import hashlib\n"
        "def digest(call):\n"
        "    s = Espeak().synthesize(*call)\n"
        "    return hashlib.md5(s.waveform.tobytes() + repr(s.words).encode()).hexdigest()\n"
        "print(json.dumps([digest(call) for call in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(CALLS),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_PERTURB_": "165", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert json.loads(done.stdout) == [digest(call) for call in CALLS]


@pytest.mark.parametrize("code", TEXTS)
def test_words_cover_the_text_in_time_order(speaker, code):
    speech = speaker.synthesize(TEXTS[code], code)
    assert speech.rate == 22050 and speech.waveform.dtype == np.int16
    words, starts, ends = zip(*speech.words, strict=True)
    assert ("" if code == "cmn" else " ").join(words) == TEXTS[code]
    assert len(words) == (len(TEXTS[code]) if code == "cmn" else len(TEXTS[code].split()))
    assert starts[0] >= 0 and ends[-1] <= speech.duration
    assert all(start < end for start, end in zip(starts, ends, strict=True))
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert all(rms(speech, *word[1:]) > 300 for word in speech.words)


@pytest.mark.parametrize(
    ("text", "code", "before_pause"),
    [
        ("open the door, please bring the book", "en-us", 2),
        ("今天星期三，我们去学校", "cmn", 4),
        ("나는 학교에 간다. 물을 주세요.", "ko", 2),
    ],
)
def test_pauses_lie_outside_words(speaker, text, code, before_pause):
    speech = speaker.synthesize(text, code)
    pause = speech.words[before_pause][2], speech.words[before_pause + 1][1]
    assert pause[1] - pause[0] > 0.1
    assert rms(speech, *pause) < 0.02 * min(rms(speech, *word[1:]) for word in speech.words)


def test_word_boundaries_agree_with_silence_around_stops(speaker):
    """A closure belongs to the word it begins: speech falls silent at the boundary, not before."""
    speech = speaker.synthesize("大大大大", "cmn")
    for (_, _, end), (_, start, _) in zip(speech.words, speech.words[1:], strict=False):
        assert end == start
        assert rms(speech, start + 0.005, start + 0.03) < 0.2 * rms(speech, end - 0.04, end)


def test_merged_words_are_split_at_a_phoneme(speaker):
    merged = speaker.synthesize("out of the box", "en-us")
    (_, _, out), (_, of, of_end), *_ = merged.words
    assert 0.1 < out == of < of_end < 0.3


def test_punctuation_alone_has_no_length(speaker):
    assert [word for word, _, _ in speaker.synthesize("- - yes - no", "en-us").words] == [
        *("-", "-", "yes", "-", "no")
    ]
    words = speaker.synthesize("yes - no", "en-us").words
    assert words[1][1] == words[1][2]


def test_variants_speak_at_usual_length_and_level_in_two_languages(speaker):
    assert len(set(INTELLIGIBLE_VARIANTS)) == len(INTELLIGIBLE_VARIANTS) >= 24
    assert set(INTELLIGIBLE_VARIANTS) <= set(speaker.variants())
    for code in ("en-us", "cmn"):
        plain = speaker.synthesize(TEXTS[code], code)
        waveforms = {plain.waveform.tobytes()}
        for variant in INTELLIGIBLE_VARIANTS:
            speech = speaker.synthesize(TEXTS[code], code, variant)
            waveforms.add(speech.waveform.tobytes())
            assert 0.9 < speech.duration / plain.duration < 1.1, variant
            level = rms(speech, 0, speech.duration) / rms(plain, 0, plain.duration)
            assert 0.4 < level < 2, variant
        assert len(waveforms) == len(INTELLIGIBLE_VARIANTS) + 1


def test_parameters_change_the_speech(speaker):
    def spoken(**parameters) -> espeak.Speech:
        return speaker.synthesize("open the door", "en-us", **parameters)

    plain = spoken()
    assert spoken(rate=120).duration > 1.2 * plain.duration
    assert rms(spoken(volume=50), 0, 0.5) < 0.7 * rms(plain, 0, 0.5)
    assert not np.array_equal(spoken(pitch=80).waveform[:2000], plain.waveform[:2000])
    assert spoken(pitch_range=0).waveform.tobytes() != plain.waveform.tobytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": " ", "language": "en-us"}, "no text"),
        ({"text": "...", "language": "en-us"}, "nothing to say"),
        ({"text": "hi", "language": "tlh"}, "no espeak-ng voice 'tlh'"),
        ({"text": "hi", "language": "en-us", "variant": "zz"}, "no espeak-ng variant 'zz'"),
        ({"text": "hi", "language": "en-us", "rate": 500}, r"rate must be in \[80, 449\]"),
    ],
)
def test_what_cannot_be_spoken_is_a_value_error(speaker, call, message):
    with pytest.raises(ValueError, match=message):
        speaker.synthesize(**call)


def test_voices_name_languages_that_can_be_spoken(speaker):
    codes = {voice.language for voice in speaker.voices()}
    assert set(TEXTS) | {"fr-fr", "ja", "pt-br"} <= codes


def test_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(EspeakNotInstalled, match=r"pip install 'qwen3asr_train\[synth\]'"):
        Espeak()
