"""Alignment of whole folders against transformers' own path; long recordings with an oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from qwen3asr_train.decoding.alignment import ForcedAligner, align_long
from qwen3asr_train.models import aligner, asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

SIZES = {
    "audio_config": dict(num_mel_bins=128, d_model=32, encoder_layers=2, encoder_attention_heads=2,
                         encoder_ffn_dim=48, downsample_hidden_size=8, initializer_range=0.2),
    "text_config": dict(hidden_size=40, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=12,
                        tie_word_embeddings=True, initializer_range=0.2),
}
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


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.1, 1.0)), min_size=1, max_size=120),
       st.floats(8.0, 30.0))
def test_long_recordings_with_an_oracle(words, max_seconds):
    """An aligner that is right about what it hears, and piles up the rest at the end."""
    place, truth = 0.0, []
    for pause, seconds in words:
        truth.append((place + pause, place + pause + seconds))
        place += pause + seconds
    waveform = np.arange(round(place * 16_000), dtype=np.float64)
    calls = 0

    def align(piece, units):
        nonlocal calls
        calls += 1
        start, end = piece[0] / 16_000, (piece[-1] + 1) / 16_000
        spans = [truth[unit] for unit in units]
        return [(min(max(a, start), end) - start, min(max(b, start), end) - start)
                for a, b in spans]

    class Unit(int):
        def __len__(self):
            return 4

    found = align_long(waveform, [Unit(i) for i in range(len(words))], max_seconds, align)
    assert len(found) == len(truth) and calls <= 3 + 4 * place / max_seconds
    assert np.mean(np.abs(np.array(found) - np.array(truth)) < 0.01) > 0.95


def test_cuts_are_where_it_is_quiet():
    """Words at whole seconds that an aligner finds 0.15 s too late: the cuts still miss them."""
    rng = np.random.default_rng(0)
    waveform = np.zeros(30 * 16_000, np.float32)
    for second in range(30):
        waveform[second * 16_000:][:9_600] = rng.standard_normal(9_600)

    def align(piece, units):
        offset = np.flatnonzero(np.abs(piece) > 0)[0] / 16_000
        assert offset < 0.45  # from inside a pause of 0.4 s
        return [(offset + i + 0.15, offset + i + 0.75) for i in range(len(units))]

    found = align_long(waveform, ["word"] * 30, 8.0, align)
    assert [round(a - 0.15, 2) for a, _ in found] == pytest.approx(list(range(30)), abs=0.02)


def test_recogniser_folders_are_refused(tmp_path):
    processor = make_processor(train_tokenizer(TEXTS * 5, 400))
    asr.save(asr.build(SIZES, processor, 0), processor, tmp_path)
    with pytest.raises(Exception, match="no forced aligner"):
        aligner.load(str(tmp_path))
