"""What can label audio: the labels are those of transformers' own pipeline and ``generate``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from data_prep.pseudo_models import open_labeller
from qwen3asr_train.decoding.pauses import split_at_quiet
from qwen3asr_train.errors import UserError


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 at 16 kHz, louder and softer by turns."""
    samples = int(seconds * 16_000)
    loudness = 0.1 * (1 + np.sin(np.arange(samples) / 1500))
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


CLIPS = [noise(seconds, seed) for seed, seconds in enumerate((0.7, 1.2, 1.9, 1.7))]


def pipeline_texts(folder: Path, clips: list[np.ndarray] = CLIPS, **options) -> list[str]:
    pipe = transformers.pipeline("automatic-speech-recognition", model=str(folder))
    found = [pipe(clip.copy(), **options) for clip in clips]
    return [result["text"].strip() for result in found]


def test_whisper_labels_are_those_of_transformers_pipeline(checkpoint):
    labels = open_labeller(str(checkpoint("whisper")), max_new_tokens=10).label(CLIPS)
    generate = {"num_beams": 1, "max_new_tokens": 10, "task": "transcribe"}
    assert [label.text for label in labels] == pipeline_texts(
        checkpoint("whisper"), generate_kwargs=generate)
    pipe = transformers.pipeline("automatic-speech-recognition", model=str(checkpoint("whisper")))
    for clip, label in zip(CLIPS, labels, strict=True):
        told = pipe(clip.copy(), generate_kwargs=generate, return_language=True)["chunks"][0]
        assert label.language == {"english": "English", "chinese": "Chinese",
                                  "tagalog": "Filipino"}[told["language"]]


def test_whisper_confidence_is_the_mean_probability_of_its_tokens(checkpoint):
    model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint("whisper"))
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint("whisper"))
    inputs = extractor(CLIPS[0], sampling_rate=16_000, return_tensors="pt")
    output = model.generate(**inputs, task="transcribe", language="chinese", num_beams=1,
                            max_new_tokens=10, output_scores=True, return_dict_in_generate=True)
    logs = model.compute_transition_scores(output.sequences, output.scores,
                                           normalize_logits=True)[0]
    label, = open_labeller(str(checkpoint("whisper")), max_new_tokens=10,
                           language="Chinese").label(CLIPS[:1])
    assert label.confidence == pytest.approx(float(logs.mean().exp()), rel=1e-4)
    assert label.language == "Chinese"


def test_long_audio_is_cut_to_the_models_window(checkpoint):
    labeller = open_labeller(str(checkpoint("whisper")), max_new_tokens=6)
    pieces = split_at_quiet(noise(4.5, 9), 2.0)
    assert len(pieces) > 2
    whole, = labeller.label([np.concatenate(pieces)])
    parts = labeller.label(pieces)
    assert whole.text == " ".join(part.text for part in parts)
    assert whole.tokens == sum(part.tokens for part in parts)


@pytest.mark.parametrize("name", ["ctc", "ctc_unmasked"])
def test_ctc_labels_and_confidence(checkpoint, name):
    labels = open_labeller(str(checkpoint(name))).label(CLIPS)
    assert [label.text for label in labels] == pipeline_texts(checkpoint(name))
    assert all(label.text and label.language is None for label in labels)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(checkpoint(name))
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(checkpoint(name))
    for clip, label in zip(CLIPS, labels, strict=True):
        inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
        best, ids = model(**inputs).logits[0].softmax(-1).max(-1)
        chosen = best[ids != 0].detach().numpy()
        assert label.confidence == pytest.approx(np.exp(np.log(chosen).mean()), rel=1e-3)


@pytest.mark.parametrize("name", ["moonshine", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"])
def test_other_models_of_transformers(checkpoint, name):
    if name == "parakeet_rnnt" and not hasattr(transformers, "ParakeetForRNNT"):
        pytest.skip("this transformers lacks it")
    options = {"generate_kwargs": {"num_beams": 1, "max_new_tokens": 8}} if name == "moonshine" \
        else {}
    labels = open_labeller(str(checkpoint(name)), max_new_tokens=8).label(CLIPS[:2])
    assert [label.text for label in labels] == pipeline_texts(checkpoint(name), CLIPS[:2],
                                                              **options)
    assert any(label.text for label in labels)
    assert all(0 < label.confidence < 1 for label in labels)


def test_our_models(checkpoint):
    processor = transformers.Qwen3ASRProcessor.from_pretrained(checkpoint("ours"))
    model = transformers.Qwen3ASRForConditionalGeneration.from_pretrained(checkpoint("ours"))
    labels = open_labeller(str(checkpoint("ours")), language="English",
                           max_new_tokens=8).label(CLIPS)
    for clip, label in zip(CLIPS, labels, strict=True):
        inputs = processor.apply_transcription_request(audio=[clip])
        start = processor.tokenizer("language English<asr_text>", return_tensors="pt")["input_ids"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], start], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        found = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        words = processor.tokenizer.decode(found[0, inputs["input_ids"].shape[1]:])
        # half a character, as a random model writes it, is left out
        words = re.sub(r"<\|[^|]*\|>|<asr_text>", "", words).replace("\ufffd", "").strip()
        assert label.text == words
        assert label.language == "English"


def test_what_cannot_label(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"without the weights of a Wav2Vec2ForCTC \(lm_head"):
        open_labeller(str(checkpoint("headless")))
    with pytest.raises(UserError, match="no such folder"):
        open_labeller(str(tmp_path / "nowhere"))
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"no config\.json in it; did you mean .*model\?"):
        open_labeller(str(tmp_path))
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="a bert model; what can label is"):
        open_labeller(str(tmp_path / "model"))
    config.write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "run.Me"}}))
    (tmp_path / "model" / "run.py").write_text(f"open('{tmp_path}/ran', 'w')\nclass Me: pass\n")
    with pytest.raises(UserError):
        open_labeller(str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()
    config.write_text((checkpoint("ctc") / "config.json").read_text())
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")  # a pickle
    with pytest.raises(UserError, match="safetensors"):
        open_labeller(str(tmp_path / "model"))
