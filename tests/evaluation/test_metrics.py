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
