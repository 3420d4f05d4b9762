"""Times of teachers: files of every kind, filters by hand, a whole import, a fake MFA, CTC."""

import json
import os
import stat
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import ctc_align, import_times, mfa
from data_prep.align_teachers.filters import TimeFilters, matched
from data_prep.align_teachers.times import (
    audacity_words,
    ctm_words,
    json_words,
    read_times,
    textgrid_words,
)
from qwen3asr_train.data.shards import ShardReader, ShardWriter, find_shards, read_entries
from qwen3asr_train.errors import DataError

WORDS = [["it's", 0.1, 0.42], ["关", 0.5, 0.9], ["\"so\"", 0.9, 1.25]]


def grid(form: str, tier: str = "words", words=WORDS) -> str:
    praat = pytest.importorskip("praatio.textgrid")
    made = praat.Textgrid(0.0, 2.0)
    made.addTier(praat.IntervalTier("phones", [(0.1, 0.3, "I")], 0.0, 2.0))
    made.addTier(praat.IntervalTier(tier, [(a, b, w) for w, a, b in words], 0.0, 2.0))
    return made, form


@pytest.mark.parametrize("form", ["long_textgrid", "short_textgrid"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("tier", ["words", "Word", "speaker 1 - words"])
def test_textgrids(tmp_path, form, encoding, tier):
    made, _ = grid(form, tier)
    path = tmp_path / "a.TextGrid"
    made.save(str(path), format=form, includeBlankSpaces=True)
    path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode(encoding))
    assert read_times(path) == WORDS


def test_textgrids_without_words(tmp_path):
    made, _ = grid("long_textgrid", "phrases")
    path = tmp_path / "a.TextGrid"
    made.save(str(path), format="long_textgrid", includeBlankSpaces=True)
    with pytest.raises(DataError, match=r"a.TextGrid: no tier 'words'; there are 'phones', 'phr"):
        read_times(path)
    path.write_text("nothing of the kind")
    with pytest.raises(DataError, match=r"a\.TextGrid: no"):
        read_times(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="neither UTF-8 nor UTF-16"):
        read_times(path)


@settings(max_examples=60)
@given(st.text(max_size=80))
def test_garbage_is_a_data_error(text):
    for reader in (textgrid_words, ctm_words, audacity_words, json_words):
        try:
            reader(text, "x")
        except DataError as error:
            assert str(error).startswith("x")


def test_other_formats():
    assert ctm_words(";; a comment\na 1 0.5 0.25 so 0.9\nb A 1 1 on\na 1 0.1 0.2 <eps>\n", "x") == {
        "a": [["so", 0.5, 0.75]], "b": [["on", 1.0, 2.0]]}
    assert audacity_words("0,5\t1.0\tso long\n\\\t100\t200\n1.0\t1.5\tsil\n", "x") == [
        ["so long", 0.5, 1.0]]
    listed = [["so", 0.5, 1], ["on", 1, 2]]
    assert json_words(json.dumps(listed), "x") == listed
    assert json_words(json.dumps({"words": [
        {"text": "so", "start_time": 0.5, "end_time": 1}, {"word": "on", "start": 1, "end": 2}]}),
        "x") == listed
    with pytest.raises(DataError, match="x:1: no line of a CTM"):
        ctm_words("a 1 so 0.5", "x")
    with pytest.raises(DataError, match=r"x: 'so' from 2\.0 to 1\.0"):
        audacity_words("2\t1\tso", "x")


def test_filters():
    filters = TimeFilters(min_letter_seconds=0.02, max_letter_seconds=0.5)
    words = [["so", 0.0, 0.5], ["it", 0.3, 0.6], ["goes", 0.6, 0.61], ["on", 0.7, 3.0],
             ["关", 3.0, 4.0], ["off", 4.1, 5.5]]
    kept, doubts = filters.believed(words, 5.0)
    assert doubts == Counter({"overlap": 1, "too short": 1, "too long": 1, "beyond the audio": 1})
    assert [start for _, start, _ in kept] == [0.0, None, None, None, 3.0, None]
    assert filters.rejects(kept) and not filters.rejects(words)
    second = [["SO", 0.1, 0.5], ["it goes", 0.5, 1.2], ["on", 0.9, 1.0], ["关", 3, 4],
              ["off", 4, 5]]
    kept, doubts = TimeFilters(max_disagreement_seconds=0.15, max_overlap_seconds=1,
                               min_letter_seconds=0, max_letter_seconds=9).believed(
        words, 6.0, second)
    # "it" starts 0.2 s away, "goes" ends there, "on" 0.2 and 2 s away, "off" ends 0.5 s away
    assert doubts == Counter({"disagreement": 4})


def test_words_that_the_dictionary_lacks():
    words = [["the", 0, 1], ["<unk>", 1, 2], ["stops", 2, 3]]
    assert matched(words, "The Kyiv—bus stops.")[1] == ["Kyiv—bus", 1, 2]
    with pytest.raises(DataError, match="another number"):
        matched(words, "The bus never stops")
    with pytest.raises(DataError, match="other words"):
        matched([["a", 0, 1]], "b")


@pytest.fixture(scope="module")
def records(corpus):
    reader = ShardReader()
    return {entry.key: reader.read(entry) for shard in find_shards(corpus["test"])
            for entry in read_entries(shard)}


def written(folder) -> dict:
    reader = ShardReader()
    return {entry.key: reader.read(entry) for shard in find_shards(str(folder))
            for entry in read_entries(shard)}


def test_an_import(corpus, records, tmp_path, capsys):
    times = tmp_path / "times"
    times.mkdir()
    for number, (key, (record, _)) in enumerate(records.items()):
        words = [[w, a + 0.01, b + 0.01] for w, a, b in record["words"]]
        if number == 0:
            continue  # no file
        if number == 1:
            words[0][0] = "other"
        (times / f"{key}.json").write_text(json.dumps(words))
    command = [corpus["test"], "--times", str(times), "--out", str(tmp_path / "out"),
               "--max-overlap-seconds", "9"]
    assert import_times.main(command) == 0
    said = capsys.readouterr().out
    assert "no times 1" in said and "the times are of other words than the text's 1" in said
    found = written(tmp_path / "out")
    assert len(found) == len(records) - 2
    for key, (record, audio) in found.items():
        assert audio == records[key][1]
        for (_, start, _), (_, exact, _) in zip(record["words"], records[key][0]["words"],
                                                strict=True):
            assert start is None or start == pytest.approx(exact + 0.01)
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").open()]
    assert {row["reason"] for row in rejected} == {
        "no times", "the times are of other words than the text's"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    assert import_times.main(command) == 0  # goes on: nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")} == before
    assert import_times.main([*command, "--max-letter-seconds", "0.4"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert import_times.main([corpus["test"], "--times", "/none", "--out", str(tmp_path)]) == 2


def test_shards_as_teachers(corpus, records, tmp_path, capsys):
    """Shards with times as the second teacher, one word of which is doubted and one is elsewhere;
    and as the first."""
    times = tmp_path / "shards"
    with ShardWriter(times, max_samples=5) as writer:
        for number, (key, (record, audio)) in enumerate(records.items()):
            words = [list(word) for word in record["words"]]
            words[0][1:] = [None, None]
            words[1] = [words[1][0], *(time + 0.5 * (number == 1) for time in words[1][1:])]
            writer.write(key, record | {"words": words}, audio, "wav")
    options = ["--max-overlap-seconds", "9", "--max-doubted-share", "0.9"]
    assert import_times.main([str(times), "--times", corpus["test"], "--second", str(times),
                              "--out", str(tmp_path / "both"), *options]) == 0
    assert "doubted words: disagreement 1;" in capsys.readouterr().out
    both = written(tmp_path / "both")
    for number, (key, (record, _)) in enumerate(records.items()):
        expected = [list(word) for word in record["words"]]
        if number == 1:
            expected[1][1:] = [None, None]
        assert both[key][0]["words"] == expected
    assert import_times.main([corpus["test"], "--times", str(times), "--out",
                              str(tmp_path / "one"), *options]) == 0
    assert f"doubted words: without a time {len(records)}" in capsys.readouterr().out
    assert all(record["words"][0][1] is None for record, _ in written(tmp_path / "one").values())


FAKE_MFA = """#!{python}
import json, pathlib, sys
mode, corpus = sys.argv[1], pathlib.Path(sys.argv[2])
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
labs = sorted(corpus.rglob("*.lab"))
assert labs and all(lab.with_suffix(".wav").is_file() for lab in labs)
if mode == "train":
    pathlib.Path(sys.argv[4]).write_text("a model")
    sys.exit(0)
if sys.argv[3] == "broken":
    print("There was a problem\\nNo such dictionary"); sys.exit(1)
out = pathlib.Path(sys.argv[5])
for lab in labs[1:]:  # the first one has no alignment
    words = lab.read_text().split()
    rows = [(i * 0.2, i * 0.2 + 0.2, w.lower()) for i, w in enumerate(words)]
    place = out / lab.parent.name
    place.mkdir(parents=True, exist_ok=True)
    body = "".join(f"{{a}}\\n{{b}}\\n\\"{{w}}\\"\\n" for a, b, w in rows)
    (place / (lab.stem + ".TextGrid")).write_text(
        'File type = "ooTextFile"\\nObject class = "TextGrid"\\n'
        f'\\n0\\n{{rows[-1][1]}}\\n<exists>\\n1\\n"IntervalTier"\\n"words"\\n0'
        f'\\n{{rows[-1][1]}}\\n{{len(rows)}}\\n' + body)
"""


def test_mfa(corpus, records, tmp_path, monkeypatch, capsys):
    pytest.importorskip("praatio")
    command = [corpus["test"], "--out", str(tmp_path / "out"), "--dictionary", "english_mfa",
               "--max-doubted-share", "1", "--jobs", "1"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mfa.main([*command, "--acoustic", "english_mfa"]) == 2
    assert "mfa is not on PATH" in capsys.readouterr().err
    program, log = tmp_path / "mfa", tmp_path / "log"
    import sys

    program.write_text(FAKE_MFA.format(python=sys.executable, log=str(log)))
    os.chmod(program, program.stat().st_mode | stat.S_IXUSR)
    assert mfa.main(command) == 2
    assert "--train where there is no model" in capsys.readouterr().err
    assert mfa.main([*command, "--train"]) == 0
    said = capsys.readouterr().out
    assert "MFA found no alignment 1" in said
    calls = [json.loads(line) for line in log.open()]
    assert [call[0] for call in calls] == ["train", "align"]
    assert calls[1][2:4] == ["english_mfa", str(tmp_path / "out/align/acoustic.zip")]
    found = written(tmp_path / "out")
    assert 0 < len(found) < len(records)
    key, (record, _) = next(iter(found.items()))
    kept = [(w, a) for w, a, _ in record["words"] if a is not None]
    assert kept and all(a == pytest.approx(0.2 * round(a / 0.2)) for _, a in kept) and key
    broken = [corpus["test"], "--out", str(tmp_path / "b"), "--dictionary", "broken",
              "--acoustic", "x"]
    assert mfa.main(broken) == 2
    assert "mfa align failed (1): There was a problem / No such dictionary" in \
        capsys.readouterr().err


def test_ctc(corpus, records, tmp_path):
    from qwen3asr_train.models import aut
    from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

    processor = make_processor(train_tokenizer([r["text"] for r, _ in records.values()], 300))
    model = aut.build({"audio_config": dict(d_model=32, encoder_layers=1, encoder_attention_heads=2,
                                            encoder_ffn_dim=48, downsample_hidden_size=4),
                       "aut_decoder": dict(layers=1, d_model=32, heads=2, ffn_dim=48, dropout=0.0,
                                           tie_embeddings=True, initializer_range=0.1)},
                      processor, 0)
    aut.save(model, processor, tmp_path / "model")
    assert ctc_align.main([corpus["test"], "--model", str(tmp_path / "model"), "--out",
                           str(tmp_path / "out"), "--max-letter-seconds", "9",
                           "--max-doubted-share", "1", "--min-letter-seconds", "0"]) == 0
    for key, (record, audio) in written(tmp_path / "out").items():
        starts = [a for _, a, _ in record["words"]]
        assert starts == sorted(starts) and audio == records[key][1]
        assert [w for w, *_ in record["words"]] == processor.split_words_for_alignment(
            record["text"])
