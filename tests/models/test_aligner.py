"""Our aligner against transformers' model on the checkpoint folder that it writes."""

import pytest
import torch
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from qwen3asr_train.data import features
from qwen3asr_train.data.aligned import SlotExample, collate_slots
from qwen3asr_train.data.slots import SlotPrompts
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aligner, asr

HEAD = {"num_labels": 250, "bias": False, "dropout": 0.1, "init": "random"}
TEXTS = ["turn on", "关上客厅的门", "light", "please turn the light on now", "the"]


@pytest.fixture(scope="module")
def ours(model):
    return aligner.from_recogniser(model, 0, HEAD).eval()


@pytest.fixture(scope="module")
def folder(ours, model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    asr.save(model, processor, path / "sft")
    with_slots = aligner.with_slots(Qwen3ASRProcessor.from_pretrained(path / "sft"))
    aligner.save(ours, with_slots, path / "model")
    return path / "model"


def test_logits_equal_transformers(ours, folder, waveforms):
    theirs = Qwen3ASRForTokenClassification.from_pretrained(folder).eval()
    processor = Qwen3ASRProcessor.from_pretrained(folder)
    expected, words = [], []
    for waveform, text in zip(waveforms, TEXTS, strict=True):  # alone: their features leak
        inputs, found = processor.prepare_forced_aligner_inputs([waveform], [text])
        words += found
        with torch.no_grad():
            logits = theirs(**inputs).logits
        expected.append(logits[inputs["input_ids"] == ours.config.timestamp_token_id])
    expected = torch.cat(expected)
    prompts = SlotPrompts(processor, 250)
    examples = []
    for waveform, units in zip(waveforms, words, strict=True):
        mel = features.log_mel(waveform)
        ids = prompts.ids(features.audio_tokens(len(mel)), units, [2] * len(units))
        examples.append(SlotExample(mel, ids, [-100] * len(ids)))
    batch = collate_slots(examples, prompts.pad_id)
    with torch.no_grad():
        found = ours.slot_logits(batch, batch["input_ids"] == prompts.slot_id)
    assert found.shape == (2 * sum(map(len, words)), 250)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    rows = [[3, 1], [0, 2, 4]]
    packed = collate_slots(examples, prompts.pad_id, rows)
    with torch.no_grad():
        ordered = ours.slot_logits(packed, packed["input_ids"] == prompts.slot_id)
    parts = found.split([2 * len(units) for units in words])
    torch.testing.assert_close(ordered, torch.cat([parts[i] for row in rows for i in row]),
                               rtol=1e-4, atol=1e-4)


def test_what_it_is_made_of(ours, model, folder, processor):
    for name, value in model.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value)
    again, loaded = aligner.load(str(folder))
    assert all(torch.equal(value, ours.state_dict()[name])
               for name, value in again.state_dict().items())
    assert again.config.num_labels == 250 and again.dropout.p == 0.1
    assert loaded.chat_template == aligner.CHAT_TEMPLATE


def test_no_aligner(folder, tmp_path):
    with pytest.raises(UserError, match="no forced aligner but a"):
        aligner.load(str(folder.parent / "sft"))
    with pytest.raises(UserError, match="no such folder"):
        aligner.load(str(tmp_path / "none"))


def test_neighbouring_times_begin_alike(model):
    weight = torch.zeros(300, 40)
    aligner.place_on_circles(weight, 0.1)
    assert float(weight.std()) == pytest.approx(0.1, rel=0.15)
    close = torch.nn.functional.cosine_similarity(weight[100:101], weight[95:106])
    assert close.argmax() == 5 and (close[3:6].diff() > 0).all() and (close[5:8].diff() < 0).all()
    far = torch.nn.functional.cosine_similarity(weight[100:101], weight[[20, 60, 200, 299]])
    assert far.max() < close[3:8].min()
    with pytest.raises(UserError, match=r"stage\.head\.init=zeros"):
        aligner.from_recogniser(model, 0, HEAD | {"init": "zeros"})
