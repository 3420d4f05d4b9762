"""Pictures with text, and text alone, to shards."""

import json

import numpy as np
import pytest

from data_prep import pictures
from data_prep.image_text import main
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries


@pytest.fixture()
def source(tmp_path):
    folder, rng = tmp_path / "source", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.png").write_bytes(pictures.draw(pictures.single(rng), rng))
    (folder / "a.txt").write_text("a circle\n")
    (folder / "b.json").write_text(json.dumps({"caption": "a square", "url": "x"}))
    (folder / "d.txt").write_text("cut short")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:-60])
    return folder


def records(folder):
    reader = ShardReader()
    return [(reader.read_record(e), reader.read_image(e)) for path in find_shards(str(folder))
            for e in read_entries(path)]


def test_a_folder(source, tmp_path, capsys):
    assert main([str(source), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "wrote 2 samples" in printed.out and "left out 2" in printed.out
    assert "c.png: no .txt or .json" in printed.err and "d.png: a picture" in printed.err
    found = records(tmp_path / "out")
    assert [(r["text"], r["task"]) for r, _ in found] == [
        ("a circle", "image_caption"), ("a square", "image_caption")]
    assert found[0][1] == (source / "a.png").read_bytes()


def test_jsonl_of_pictures_questions_and_text(source, tmp_path, capsys):
    rows = [{"image": "a.png", "text": "red", "question": "what colour is it"},
            {"text": "only words"}, {"image": "gone.png", "text": "x"}, {"image": "a.png"},
            {"image": ["a.png"], "text": "x"}, {"text": "Paris", "question": "capital?"},
            {"image": "", "text": "red", "question": "what colour is it"}]
    file = source / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "{broken", "[1]"]))
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "wrote 2 samples" in printed.out and "left out 7" in printed.out
    for message in ("rows.jsonl:3: ", "rows.jsonl:4: no text", "rows.jsonl:5: 'image' is not",
                    "rows.jsonl:6: a question without a picture", "rows.jsonl:7: 'image' is not",
                    "rows.jsonl:8: unreadable JSON", "rows.jsonl:9: the JSON is not an object"):
        assert message in printed.err
    assert [r["task"] for r, _ in records(tmp_path / "out")] == ["visual_question", "text"]
    assert main([str(file), "--out", str(tmp_path / "out")]) == 2
    assert "holds shards of an earlier run" in capsys.readouterr().err


def test_lines_of_text_and_nothing(tmp_path, capsys):
    file = tmp_path / "lines.txt"
    file.write_text("one\n\ntwo\n")
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    assert [r["text"] for r, _ in records(tmp_path / "out")] == ["one", "two"]
    other = tmp_path / "captions.json"
    other.write_text("[]")
    assert main([str(other), "--out", str(tmp_path / "none")]) == 2
    assert "a folder, a .jsonl or a .txt file" in capsys.readouterr().err
    file.write_bytes("é".encode("latin-1"))
    assert main([str(file), "--out", str(tmp_path / "none")]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    file.write_text("\n")
    assert main([str(file), "--out", str(tmp_path / "none")]) == 2
    assert "nothing that can be used" in capsys.readouterr().err
