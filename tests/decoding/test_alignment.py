"""Alignment of whole folders against transformers' own path."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from qwen3asr_train.decoding.alignment import ForcedAligner
from qwen3asr_train.decoding.alignment_long import cut_at_pauses
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aligner, asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer
from tests.models.conftest import SIZES

TEXTS = ["turn on the light, please.", "关上客厅的门。", "turn on. 关上 the light!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    processor = make_processor(train_tokenizer(TEXTS * 5, 400))
    head = {"num_labels": 120, "bias": True, "dropout": 0.0, "init": "random"}
    aligner.save(aligner.build(SIZES, processor, 0, head), aligner.with_slots(processor), path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return ForcedAligner(*aligner.load(str(folder)))


@pytest.fixture(scope="module")
def waveforms():
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(int(s * 16_000))).astype(np.float32) for s in (1.3, 7, 4)]


def test_times_equal_transformers(ours, folder, waveforms):
    model = Qwen3ASRForTokenClassification.from_pretrained(folder).eval()
    processor = Qwen3ASRProcessor.from_pretrained(folder)
    found = ours(waveforms, TEXTS, ["English", "Chinese", None])
    for waveform, text, words in zip(waveforms, TEXTS, found, strict=True):
        inputs, units = processor.prepare_forced_aligner_inputs([waveform], [text])
        theirs = processor.decode_forced_alignment(
            model(**inputs).logits, inputs["input_ids"], units, model.config.timestamp_token_id)[0]
        assert [word._asdict() for word in words] == [
            {"text": w["text"], "start": w["start_time"], "end": w["end_time"]} for w in theirs]


def test_sentences_are_as_written(ours, waveforms):
    sentences = ours([waveforms[2]], [TEXTS[2]], [None], level="sentence")[0]
    assert [s.text for s in sentences] == ["turn on.", "关上 the light!"]
    assert all(s.start <= s.end for s in sentences)
    whole = ours([waveforms[2]], ["turn on\n\nthe light"], [None], level="paragraph")[0]
    assert [s.text for s in whole] == ["turn on", "the light"]


def test_batches_do_not_change_times(ours, waveforms):
    alone = [ours([w], [t], [None])[0] for w, t in zip(waveforms, TEXTS, strict=True)]
    assert ours(waveforms, TEXTS, [None] * 3) == alone


def test_no_longer_than_its_classes(ours):
    assert ours.max_seconds == pytest.approx(9.6)
    long = np.zeros(16_000 * 25, np.float32)
    spans = ours.spans([long], [["turn", "on"] * 9])[0]
    assert len(spans) == 18


def test_coarse_times_tell_which_words_a_piece_holds(ours, waveforms):
    """Each piece by itself, and what a coarse aligner says is too short goes on without it."""
    long, units = np.concatenate(waveforms[:2] * 4), ["turn", "on", "the", "light"] * 4
    step = len(long) / 16_000 / 16
    coarse = [(i * step, (i + 1) * step) for i in range(16)]
    align = replace(ours, max_seconds=3.0, coarse=lambda waveforms, units: [coarse])
    pieces = cut_at_pauses(long, coarse, (1.5, 3.0))
    expected = [tuple(pytest.approx(min(piece.start + time, piece.end), abs=1e-3)
                      for time in (a, b))
                for piece in pieces
                for a, b in ours.spans([piece.of(long)], [units[piece.first:piece.stop]])[0]]
    assert len(pieces) > 2 and align.spans([long], [units])[0] == expected
    without = replace(ours, max_seconds=3.0)
    unsure = replace(without, coarse=lambda waveforms, units: [None])
    assert unsure.spans([long], [units]) == without.spans([long], [units])


@pytest.mark.parametrize("seconds", [0.0, 4.0])
def test_pieces_need_a_least_length_below_the_most(ours, seconds):
    with pytest.raises(UserError, match=f"min_seconds={seconds}: above 0, and at most"):
        replace(ours, max_seconds=3.0, min_seconds=seconds)


def test_recogniser_folders_are_refused(tmp_path):
    processor = make_processor(train_tokenizer(TEXTS * 5, 400))
    asr.save(asr.build(SIZES, processor, 0), processor, tmp_path)
    with pytest.raises(Exception, match="no forced aligner"):
        aligner.load(str(tmp_path))
