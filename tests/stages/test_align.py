"""``stage=align`` from the command line, against transformers' own path on the same folder."""

import json

import pytest
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from qwen3asr_train.command_line import quoted
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.models import aligner, asr


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """An aligner whose head has random weights: its times need repair."""
    base, processor = asr.load(str(finished_run / "model"))
    head = {"num_labels": 60, "bias": False, "dropout": 0.0, "init": "random"}
    model = aligner.from_recogniser(base, 0, head)
    path = tmp_path_factory.mktemp("aligner") / "model"
    aligner.save(model, aligner.with_slots(processor), path)
    return path


@pytest.fixture(scope="module")
def clip(corpus, tmp_path_factory):
    record, audio = ShardReader().read(read_entries(find_shards(corpus["test"])[0])[0])
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    path.write_bytes(audio)
    return record, path


def test_the_same_times_as_transformers(command_line, folder, clip, tmp_path):
    record, path = clip
    text = f"{record['text']}, isn't it? \"Yes\""
    done = command_line("stage=align", f"init_from={folder}", f"audio={path}", f"text={text}",
                        f"language={record['language']}", f"stage.picture={tmp_path}/p.html",
                        small=False)
    found = json.loads(done.stdout)
    model = Qwen3ASRForTokenClassification.from_pretrained(folder).eval()
    processor = Qwen3ASRProcessor.from_pretrained(folder)
    inputs, words = processor.prepare_forced_aligner_inputs(
        [decode(path)], [text], language=record["language"])
    expected = processor.decode_forced_alignment(model(**inputs).logits, inputs["input_ids"], words,
                                                 model.config.timestamp_token_id)[0]
    assert [tuple(word.values()) for word in found["words"]] == [
        tuple(word.values()) for word in expected]
    assert "data:image/png" in (tmp_path / "p.html").read_text()


def test_files_and_sentences(command_line, folder, clip, tmp_path):
    (tmp_path / "said.txt").write_text("Turn on the light. Now\n")
    command_line("stage=align", f"init_from={folder}", f"audio={clip[1]}",
                 f"text={tmp_path}/said.txt", "format=vtt", f"out={tmp_path}/sub/x.vtt",
                 small=False)
    assert "Turn on the light.\n\n" in (tmp_path / "sub" / "x.vtt").read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["text=a", "format=ass"], "stage.format=ass"), (["text=..."], "no words to align"),
    (["text=none.txt"], "stage.text=none.txt: No such file"), ([], "say stage.text="),
    (["text=a", "audio=no.wav"], "audio=no.wav: no such file")])
def test_mistakes_are_one_line(command_line, folder, clip, arguments, message):
    done = command_line("stage=align", f"init_from={folder}", f"audio={clip[1]}", *arguments,
                        small=False, check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["a, b: c=d", 'say "no"', "back\\slash\\", "it's {x} [y]", "a\nb",
                                  "$x", "", 'end\\"'])
def test_free_text_survives_hydras_grammar(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"stage.text={quoted(text)}")
    assert override.value() == text
