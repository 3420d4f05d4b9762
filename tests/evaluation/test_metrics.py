"""Error rates against jiwer and against a brute-force edit distance."""

from functools import cache

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr_train.evaluation.metrics import (
    Utterance,
    align,
    bootstrap_interval,
    edit_counts,
    score,
)

WORDS = st.sampled_from(["a", "b", "c", "dd", "ee", "fff"])
PAIRS = st.lists(
    st.tuples(st.lists(WORDS, min_size=1, max_size=8), st.lists(WORDS, max_size=8)),
    min_size=1,
    max_size=6,
)


def utterance(reference, hypothesis, language="German", predicted="same", duration=1.0):
    predicted = language if predicted == "same" else predicted
    return Utterance("key", reference, hypothesis, language, predicted, duration)


def brute_force(ref, hyp):
    @cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (ref[i - 1] != hyp[j - 1]),
        )

    return distance(len(ref), len(hyp))


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_corpus_rates_agree_with_jiwer(pairs):
    references, hypotheses = (
        [" ".join(side) for side in sides] for sides in zip(*pairs, strict=True)
    )
    metrics = score([utterance(r, h) for r, h in zip(references, hypotheses, strict=True)])
    assert metrics["wer"] == pytest.approx(jiwer.wer(references, hypotheses))
    without_spaces = [[text.replace(" ", "") for text in side] for side in (references, hypotheses)]
    assert metrics["cer"] == pytest.approx(jiwer.cer(*without_spaces))


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6))
def test_edits_are_minimal_and_the_alignment_adds_up(ref, hyp):
    counts, rows = edit_counts(ref, hyp), align(ref, hyp)
    assert counts.errors == brute_force(tuple(ref), tuple(hyp))
    assert counts.reference_units == len(ref)
    assert [r for r, _, _ in rows if r is not None] == ref
    assert [h for _, h, _ in rows if h is not None] == hyp
    ops = [op for _, _, op in rows]
    assert counts.substitutions == ops.count("substitute")
    assert counts.deletions == ops.count("delete")
    assert counts.insertions == ops.count("insert")
    assert counts.hits == ops.count("equal")
    assert all((r == h) == (op == "equal") for r, h, op in rows)


def test_rates_are_of_the_corpus_not_averages_of_averages():
    metrics = score([utterance("x", "y"), utterance("a b c d e f g h i", "a b c d e f g h i")])
    assert metrics["wer"] == pytest.approx(1 / 10)
    assert metrics["sentence_accuracy"] == 0.5
    parts = metrics["substitutions"] + metrics["deletions"] + metrics["insertions"]
    assert parts == pytest.approx(metrics["wer"])


def test_languages_have_their_own_units_and_equal_weight_in_the_macro_mean():
    metrics = score(
        [
            utterance("你好 世界", "你好世间", "Chinese"),
            utterance("eins zwei", "eins zwei", "de"),
            utterance("eins zwei", "eins zwei", "German"),
            utterance("the colour", "The color.", "English"),
        ]
    )
    assert metrics["wer/Chinese"] == pytest.approx(1 / 4)
    assert metrics["wer/German"] == metrics["wer/English"] == 0.0
    assert metrics["wer"] == pytest.approx(1 / (4 + 4 + 2))
    assert metrics["wer_macro"] == pytest.approx(1 / 12)
    assert "wer/de" not in metrics


def test_language_identification():
    metrics = score(
        [
            utterance("a", "a", "German", "de"),
            utterance("a", "a", "German", "English"),
            utterance("", "", None, None),
            utterance("", "", None, "English"),
        ]
    )
    assert metrics["lid_accuracy"] == 0.5
    assert metrics["lid_accuracy/German"] == metrics["lid_accuracy/None"] == 0.5


@pytest.mark.parametrize(
    ("reference", "predicted", "right"),
    [
        ("Chinese+English", "Chinese", 1.0),
        ("Chinese+English", "English,Chinese", 1.0),
        ("Chinese+English", "Chinese,Japanese", 0.0),
        ("Chinese+English", None, 0.0),
        ("Chinese", "Chinese,English", 0.0),
        ("Sichuan", "Chinese", 1.0),
        ("Chinese", "Wu language", 1.0),
        ("yue-HK", "Chinese", 0.0),
        (None, "Chinese,English", 0.0),
    ],
)
def test_language_identification_of_code_switching_and_dialects(reference, predicted, right):
    assert score([utterance("我 go", "我 go", reference, predicted)])["lid_accuracy"] == right


PIECES = st.sampled_from(["我", "想", "学校", "go", "to", "한", "3"])


def mixed_by_hand(text):
    found = []
    for word in text.split():
        start = True
        for character in word:
            if character in "我想学校한":
                found.append(character)
                start = True
            elif start:
                found.append(character)
                start = False
            else:
                found[-1] += character
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(PIECES, max_size=6).map(" ".join),
            st.lists(PIECES, max_size=6).map(" ".join),
            st.sampled_from(["Chinese", "Korean", "German", "Chinese,German", None]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_mixed_error_rate_against_brute_force(cases):
    pairs = [(tuple(mixed_by_hand(r)), tuple(mixed_by_hand(h))) for r, h, _ in cases]
    errors, length = sum(brute_force(*pair) for pair in pairs), sum(len(r) for r, _ in pairs)
    metrics = score([utterance(*case) for case in cases])
    mixes = any({"我", "想", "学", "校", "한"} & set(r) and {"go", "to"} & set(r) for r, _ in pairs)
    assert ("mer" in metrics) == mixes
    if mixes:
        assert metrics["mer"] == pytest.approx(errors / length)
    switched = [p for p, case in zip(pairs, cases, strict=True) if case[2] == "Chinese,German"]
    if length := sum(len(r) for r, _ in switched):
        rate = sum(brute_force(*pair) for pair in switched) / length
        assert metrics["wer/Chinese,German"] == pytest.approx(rate)


def test_mixed_error_rate_beside_the_others():
    metrics = score(
        [utterance("我想 go home", "我想 go hame", "Chinese"), utterance("你好", "你好", "zh")]
    )
    assert metrics["wer"] == metrics["cer"] == pytest.approx(1 / 10)
    assert metrics["mer"] == pytest.approx(1 / 6)
    assert "mer" not in score([utterance("你好 3", "go", "zh"), utterance("go", "你好", "en")])


def test_bootstrap_interval_of_the_mixed_error_rate_keeps_resamples_without_code_switching():
    sample = [utterance("我 go", "我", "Chinese"), *[utterance("你好", "你好", "Chinese")] * 3]
    assert bootstrap_interval(sample, "mer", samples=200)[0] == 0.0


def test_empty_references_count_insertions_and_false_alarms():
    metrics = score(
        [utterance("a b", "a b"), utterance("", "boo hoo", None), utterance(" ", "", None)]
    )
    assert metrics["wer"] == 1.0
    assert metrics["insertions"] == 1.0
    assert metrics["nonspeech_false_rate"] == 0.5
    assert "wer/None" not in metrics
    assert metrics["wer_macro"] == 0.0


def test_without_any_reference_unit_the_rate_is_jiwers():
    metrics = score([utterance("", "boo hoo", None)])
    assert metrics["wer"] == jiwer.wer("", "boo hoo") == 2
    assert "wer_macro" not in metrics


def test_speech_only_sets_have_no_false_alarm_rate_and_amounts_add_up():
    metrics = score([utterance("a", "a", duration=1.5), utterance("b", "", duration=2.0)])
    assert "nonspeech_false_rate" not in metrics
    assert metrics["audio_seconds"] == 3.5
    assert metrics["utterances"] == 2
    assert all(type(value) is float for value in metrics.values())


def test_nothing_to_score():
    for function in (score, bootstrap_interval):
        with pytest.raises(ValueError, match="empty list"):
            function([])


def test_bootstrap_interval_covers_the_estimate_and_repeats():
    sample = [utterance("a b c d", "a b c d" if n % 3 else "a x c") for n in range(60)]
    low, high = bootstrap_interval(sample, samples=200)
    assert low < score(sample)["wer"] < high
    assert (low, high) == bootstrap_interval(sample, samples=200)
    narrow = bootstrap_interval(sample, samples=200, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_of_a_rare_language_and_of_an_unknown_metric():
    sample = [utterance("a", "a")] * 5 + [utterance("b", "x", "French")]
    assert bootstrap_interval(sample, "wer/French", samples=50) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no metric 'per'"):
        bootstrap_interval(sample, "per")
