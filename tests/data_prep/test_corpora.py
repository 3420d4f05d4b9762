"""Public corpora in their original layouts become shards; the suites that score them are whole."""

import importlib
import json
import pkgutil
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep import corpora
from data_prep.corpora import _common
from qwen3asr_train.data.audio import decode, encode
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from tests.data_prep.corpora_miniatures import MINIATURES, lines, put, tone

SUITES = Path(__file__).parents[2] / "configs/suite"


def convert(name: str, root: Path, out: Path, *arguments: str) -> int:
    module = importlib.import_module(f"data_prep.corpora.{name}")
    return module.main([str(root), "--out", str(out), "--workers", "1", *arguments])


def records(out: Path) -> dict[str, dict[str, dict]]:
    """folder below ``out`` -> key -> record, with the audio checked to be the one clip's."""
    found, reader = {}, ShardReader()
    for shard in sorted(out.glob("**/*.tar")):
        for entry in read_entries(shard):
            record, audio = reader.read(entry)
            waveform = decode(audio)
            assert len(waveform) / 16000 == record["duration"] == pytest.approx(0.3, abs=0.08)
            assert np.abs(waveform).max() > 0.2
            found.setdefault(str(shard.parent.relative_to(out)), {})[entry.key] = record
    return found


def bad(out: Path) -> dict[str, dict[str, str]]:
    """folder below ``out`` -> key -> reason"""
    return {str(path.parent.relative_to(out)): {row["key"]: row["reason"] for row in map(
        json.loads, path.read_text().splitlines())} for path in sorted(out.glob("**/bad.jsonl"))}


def test_every_module_has_a_miniature():
    modules = {module.name for module in pkgutil.iter_modules(corpora.__path__)}
    assert modules - {"_common"} == set(MINIATURES)


@pytest.mark.parametrize("name", MINIATURES)
def test_corpus(name, tmp_path):
    miniature, out = MINIATURES[name], tmp_path / "out"
    miniature.build(tmp_path / "corpus")
    assert convert(name, tmp_path / "corpus", out, *miniature.arguments) == 0
    found = records(out)
    assert {folder: {key: (row["text"], row["language"], row.get("meta", {}))
                     for key, row in rows.items()} for folder, rows in found.items()
            } == miniature.records
    assert {(row["source"], row["task"]) for rows in found.values() for row in rows.values()
            } == {(name, "asr")}
    reasons = bad(out)
    assert {folder: set(rows) for folder, rows in reasons.items()
            } == {folder: set(rows) for folder, rows in miniature.bad.items()}
    for folder, rows in miniature.bad.items():
        for key, reason in rows.items():
            assert reason in reasons[folder][key]


@pytest.mark.parametrize("name", MINIATURES)
def test_help_has_the_layout_and_an_example(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert(name, tmp_path, tmp_path, "--help")
    text = capsys.readouterr().out
    assert "Download  https://" in text and "Layout    ROOT" in text
    assert text.count(f"\n  python -m data_prep.corpora.{name} ") == 1
    assert f"--out shards/{name}" in text


@pytest.mark.parametrize("name", MINIATURES)
def test_a_wrong_layout_is_one_error_that_names_what_is_missing(name, tmp_path, capsys):
    miniature = MINIATURES[name]
    miniature.build(tmp_path / "corpus")
    for path in tmp_path.glob(f"corpus/{miniature.broken}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert convert(name, tmp_path / "corpus", tmp_path / "out", *miniature.arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no ") and error.count(str(tmp_path / "corpus")) == 1
    assert str(tmp_path / "corpus" / miniature.broken) in error
    assert convert(name, tmp_path / "nowhere", tmp_path / "out2") == 2
    assert f"no such folder: {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_segments_are_cut_at_their_times(tmp_path):
    MINIATURES["gigaspeech"].build(tmp_path / "corpus")
    # The third segment lies at 1.0 to 1.3 s: mark it in the recording.
    waveform = tone(2.0)
    waveform[16000:20800] *= 3
    put(tmp_path / "corpus/audio/a/A.opus", encode(waveform, "opus"))
    assert convert("gigaspeech", tmp_path / "corpus", tmp_path / "out") == 0
    entries = {entry.key: ShardReader().read(entry) for shard in find_shards(str(
        tmp_path / "out/test")) for entry in read_entries(shard)}
    loudness = {key: float(np.median(np.abs(decode(audio)))) for key, (_, audio) in entries.items()}
    assert loudness["A_3"] > 2 * loudness["A_1"]


def test_a_second_run_goes_on_and_makes_the_same(tmp_path, capsys):
    MINIATURES["librispeech"].build(tmp_path / "corpus")
    assert convert("librispeech", tmp_path / "corpus", tmp_path / "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("**/*.tar")}
    assert convert("librispeech", tmp_path / "corpus", tmp_path / "out") == 0
    assert "1 shards were there" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("**/*.tar")} == before


def test_languages_that_the_models_do_not_know(tmp_path, capsys):
    MINIATURES["fleurs"].build(tmp_path / "corpus")
    assert convert("fleurs", tmp_path / "corpus", tmp_path / "out") == 0
    assert set(records(tmp_path / "out")) == {"en_us/test", "cmn_hans_cn/test", "yue_hant_hk/test"}
    assert "(--any-language takes them): af_za" in capsys.readouterr().err
    assert convert("fleurs", tmp_path / "corpus", tmp_path / "all", "--any-language") == 0
    assert records(tmp_path / "all")["af_za/test"]["af_za-1"]["language"] == "af_za"
    shutil.rmtree(tmp_path / "out")
    for folder in ("en_us", "cmn_hans_cn", "yue_hant_hk"):
        shutil.rmtree(tmp_path / "corpus" / folder)
    assert convert("fleurs", tmp_path / "corpus", tmp_path / "out") == 2
    assert "no folder of a language" in capsys.readouterr().err


def test_a_damaged_archive(tmp_path, capsys):
    MINIATURES["fleurs"].build(tmp_path / "corpus")
    archive = tmp_path / "corpus/cmn_hans_cn/audio/test.tar.gz"
    archive.write_bytes(archive.read_bytes()[:200])
    assert convert("fleurs", tmp_path / "corpus", tmp_path / "out", "--only", "cmn_hans_cn") == 2
    assert f"{archive} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [
    ('{"dataset": "D"}', "has no list 'audios'"), ('{"audios": [{"path": ', "ends, or is not JSON"),
    ("", "has no list 'audios'")])
def test_a_damaged_manifest(tmp_path, capsys, content, message):
    put(tmp_path / "corpus/WenetSpeech.json", content)
    put(tmp_path / "corpus/audio/x", "")
    assert convert("wenetspeech", tmp_path / "corpus", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_a_manifest_is_read_piece_by_piece(tmp_path, monkeypatch):
    rows = [{"path": "é" * size, "segments": [{"x": [size, {"audios": []}]}]}
            for size in (0, 3, 50, 700, 1)]
    put(tmp_path / "m.json", json.dumps({"a": 1, "audios": rows, "z": [2]}, indent=1))
    original = open

    class Dribble:
        def __init__(self, *arguments, **options):
            self.file = original(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, _):
            return self.file.read(7)

    monkeypatch.setattr(_common, "open", Dribble, raising=False)
    assert list(_common._json_list(tmp_path / "m.json", "audios")) == rows


def test_a_table_without_a_needed_column(tmp_path, capsys):
    put(tmp_path / "corpus/en/test.tsv", lines(("client_id", "path"), ("c", "a.mp3")))
    put(tmp_path / "corpus/en/clips/a.mp3", 0.3)
    assert convert("common_voice", tmp_path / "corpus", tmp_path / "out") == 2
    assert "no column 'sentence'" in capsys.readouterr().err


def test_an_unknown_split_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert("tedlium", tmp_path, tmp_path / "out", "--split", "test,nosuch")
    assert "'nosuch' is not one of test, dev, train" in capsys.readouterr().err


# those of public corpora
PUBLISHED = [path for path in sorted(SUITES.glob("*.yaml"))
             if path.stem not in ("alignment", "embedded", "embedded_noise", "mine")]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_suite(path):
    suite = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(suite) == ["name", "sets", "averages", "conditions"]
    assert suite["name"] == path.stem and suite["sets"]
    assert suite["conditions"] and set(suite["conditions"]) <= {"offline", "streaming"}
    for each in suite["sets"].values():
        assert set(each) == {"data", "paper"}
        shards, name, *language, split = each["data"].split("/")
        corpus = importlib.import_module(f"data_prep.corpora.{name}").CORPUS
        assert shards == "shards" and split in corpus.splits
        assert len(language) == bool(corpus.languages)
        assert all(0 < rate < 1 for rate in each["paper"].values())
    for members in suite["averages"].values():
        assert members and set(members) <= set(suite["sets"])
        assert len(set(members)) == len(members)


# Tables 5 and 8 of the report (arXiv 2601.21337), in percent: figures typed wrongly would not
# average to what it says. For FLEURS in 30 languages and the 1.7B model it says 12.60, but what
# stands in its table A.2 averages to 12.56.
AVERAGES = [
    ("mls", "mls", {"0.6B": 13.19, "1.7B": 8.55}),
    ("common_voice", "common_voice", {"0.6B": 12.75, "1.7B": 9.18}),
    ("fleurs", "fleurs_12", {"0.6B": 7.57, "1.7B": 4.90}),
    ("fleurs", "fleurs_20", {"0.6B": 10.37, "1.7B": 6.62}),
    ("fleurs", "fleurs_30", {"0.6B": 21.80, "1.7B": 12.56}),
    ("streaming", "streaming", {"0.6B": 3.48, "0.6B streaming": 4.40, "1.7B": 2.69,
                                "1.7B streaming": 3.33})]


@pytest.mark.parametrize(("suite", "average", "published"), AVERAGES)
def test_published_averages(suite, average, published):
    suite = yaml.safe_load((SUITES / f"{suite}.yaml").read_text(encoding="utf-8"))
    for model, percent in published.items():
        rates = [suite["sets"][name]["paper"][f"Qwen3-ASR-{model}"]
                 for name in suite["averages"][average]]
        assert 100 * sum(rates) / len(rates) == pytest.approx(percent, abs=0.015)


def test_suites_agree_where_they_have_the_same_shards():
    seen: dict[tuple[str, str], float] = {}
    for path in PUBLISHED:
        for each in yaml.safe_load(path.read_text(encoding="utf-8"))["sets"].values():
            for model, rate in each["paper"].items():
                # The report itself has 6.00 and 6.04 % for MLS in English and the 0.6B model.
                tolerance = 0.0004 if "mls_english" in each["data"] else 0
                assert seen.setdefault((each["data"], model), rate) == pytest.approx(
                    rate, abs=tolerance + 1e-9)
