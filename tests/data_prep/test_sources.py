"""Each source of samples, its formats, and its bad cases."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from data_prep import folder, huggingface, index, jsonl, kaldi, webdataset
from qwen3asr_train.data.audio import decode, encode
from qwen3asr_train.data.shards import (
    ShardReader,
    ShardWriter,
    find_shards,
    index_path,
    read_entries,
)

RATES = {"wav": 44100, "flac": 48000, "mp3": 32000, "ogg": 22050, "opus": 24000}


def stereo(rate: int, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([0.3 * np.sin(2800 * time), 0.2 * np.sin(1900 * time)], axis=1)


def audio_of(extension: str) -> bytes:
    return encode(stereo(RATES[extension]), extension, RATES[extension])


def bad_wavs() -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, part of the reason)"""
    nan = io.BytesIO()
    soundfile.write(nan, np.full(800, np.nan), 16000, format="WAV", subtype="FLOAT")
    return {"nan": (nan.getvalue(), "NaN"),
            "zero": (encode(np.zeros(0), "wav"), "zero length"),
            "junk": (b"no audio at all", "not readable")}


@pytest.fixture
def audio_folder(tmp_path):
    """One file of each format, and the bad ones."""
    where = tmp_path / "audio"
    where.mkdir()
    for extension in RATES:
        (where / f"{extension}.{extension}").write_bytes(audio_of(extension))
    for name, (payload, _) in bad_wavs().items():
        (where / f"{name}.wav").write_bytes(payload)
    return where


def run(main, *arguments, status: int = 0) -> None:
    assert main([*map(str, arguments), "--workers", "1"]) == status


def samples(out) -> dict[str, dict]:
    """key -> record, with the audio checked."""
    reader, found = ShardReader(), {}
    for shard in find_shards(str(out)):
        for entry in read_entries(shard):
            record, audio = reader.read(entry)
            assert len(decode(audio)) / 16000 == record["duration"] == pytest.approx(0.5, abs=0.1)
            found[entry.key] = record
    return found


def bad(out) -> dict[str, str]:
    """key -> "audio: reason" """
    rows = map(json.loads, (out / "bad.jsonl").read_text().splitlines())
    return {row["key"]: f"{row['audio']}: {row['reason']}" for row in rows}


def test_jsonl(tmp_path, audio_folder, monkeypatch):
    rows = [{"audio": f"audio/{e}.{e}", "text": f"language English<asr_text>{e}", "prompt": "x"}
            for e in RATES]
    rows += [{"audio": f"audio/{name}.wav", "text": name} for name in bad_wavs()]
    rows += [{"audio": "elsewhere.wav", "text": "in the working directory", "id": "cwd"},
             {"audio": None, "audio_filepath": str(audio_folder / "wav.wav"), "text": "a",
              "id": "abs", "speaker": 7, "prompt": None, "context": "c",
              "words": [["a", 0, 0.15]], "entities": ["b"], "meta": {"c": 1}, "language": "de"},
             {"audio": "audio/gone.wav", "text": "a"}, {"audio": "audio/wav.wav", "text": ""},
             {"audio": "audio/wav.wav"}, {"text": "a"}, {"audio": 5, "text": "a"}, [1], "x", None,
             {"audio": "audio/wav.wav", "text": "a", "start": "0"},
             {"audio": "audio/wav.wav", "text": "a", "meta": []}]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [b"", b"{", b"\xff\xfe\xfa", b'{"audio": "audio/wav.wav", "text": "\xff"}',
              b'{"audio": "audio/wav.wav", "text": "a", "start": NaN}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd/elsewhere.wav").write_bytes(audio_of("wav"))
    monkeypatch.chdir(tmp_path / "cwd")
    out = tmp_path / "out"
    run(jsonl.main, tmp_path / "rows.jsonl", "--out", out)
    found = samples(out)
    assert list(found) == [*(f"audio_{e}" for e in RATES), "cwd", "abs"]
    assert found["audio_mp3"] | {"duration": 0} == {
        "text": "mp3", "language": "English", "task": "asr", "source": "rows", "context": "x",
        "duration": 0}
    assert found["abs"] == {"text": "a", "language": "German", "task": "asr", "source": "rows",
                            "context": "c",
                            "entities": ["b"], "words": [["a", 0, 0.15]],
                            "meta": {"c": 1, "speaker": "7"}, "duration": 0.5}
    reasons = bad(out)
    for name, (_, reason) in bad_wavs().items():
        assert reason in reasons[f"audio_{name}"]
    assert "gone.wav (" in reasons["audio_gone"] and "no such audio file" in reasons["audio_gone"]
    for line, reason in {13: "no 'text'", 14: "no 'audio'", 15: "no 'audio'", 16: "a JSON list",
                         17: "a JSON str", 18: "a JSON NoneType", 19: "'start' must",
                         20: "'meta' must", 22: "not JSON", 23: "not JSON", 24: "not JSON",
                         25: "'start' must"}.items():
        assert f"rows.jsonl:{line}: {reason}" in reasons[f"line-{line}"]
    assert len(reasons) == 17


def test_jsonl_segments(tmp_path):
    (tmp_path / "long.wav").write_bytes(encode(stereo(16000, 3.0), "wav"))
    rows = [{"audio": "long.wav", "text": "a", "start": 1, "end": 1.5},
            {"audio_filepath": "long.wav", "text": "b", "offset": 2.5, "duration": 0.5}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(jsonl.main, tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    assert list(samples(tmp_path / "out")) == ["long-1000", "long-2500"]


def test_jsonl_errors_are_one_line(tmp_path, capsys):
    run(jsonl.main, tmp_path / "gone.jsonl", "--out", tmp_path / "out", status=2)
    assert capsys.readouterr().err == (f"error: cannot read {tmp_path}/gone.jsonl: No such file or "
                                       "directory\n")
    with pytest.raises(SystemExit) as stopped:
        jsonl.main(["x.jsonl", "--out", "y", "--workers", "0"])
    assert stopped.value.code == 2


def test_kaldi(tmp_path, audio_folder, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(tmp_path)
    (data / "wav.scp").write_text(
        "".join(f"s-{e} audio/{e}.{e}\n" for e in RATES) + "pipe touch hacked |\n"
        "mute audio/wav.wav\nempty audio/wav.wav\nlatin audio/wav.wav\ngone audio/gone.wav\n"
        + "".join(f"{name} {audio_folder}/{name}.wav\n" for name in bad_wavs()))
    names = [*(f"s-{e}" for e in RATES), "pipe", "gone", "orphan", *bad_wavs()]
    (data / "text").write_bytes("".join(f"{name} the  words\n" for name in names).encode()
                                + b"empty\nlatin caf\xe9\n")
    (data / "utt2spk").write_text("".join(f"s-{e} s\n" for e in RATES))
    (data / "spk2gender").write_text("s f\n")
    (data / "utt2lang").write_text("s-wav fr\n")
    out = tmp_path / "out"
    run(kaldi.main, data, "--out", out, "--language", "en")
    found = samples(out)
    assert list(found) == [f"s-{e}" for e in RATES]
    assert found["s-wav"] == {"text": "the  words", "language": "French", "task": "asr",
                              "source": "data", "meta": {"speaker": "s", "gender": "f"},
                              "duration": 0.5}
    assert found["s-mp3"]["language"] == "English"
    expected = {"pipe": "not executed", "mute": "no transcript", "empty": "empty text",
                "latin": "not valid UTF-8", "gone": "no such audio file", "orphan": "in text, but"}
    expected |= {name: reason for name, (_, reason) in bad_wavs().items()}
    reasons = bad(out)
    assert set(reasons) == set(expected)
    assert all(reason in reasons[key] for key, reason in expected.items())
    assert not (tmp_path / "hacked").exists()


def test_kaldi_segments(tmp_path, capsys):
    (tmp_path / "long.wav").write_bytes(encode(stereo(16000, 3.0), "wav"))
    (tmp_path / "wav.scp").write_text(f"rec {tmp_path}/long.wav\n")
    (tmp_path / "segments").write_text("a rec 0.5 1.0\nb rec 2.5 -1\nc other 0 1\nd rec 2 9\n"
                                       "e rec 2.5 3.2\n")
    (tmp_path / "text").write_text("a one\nb two\nc three\nd four\ne five\n")
    out = tmp_path / "out"
    run(kaldi.main, tmp_path, "--out", out)
    assert list(samples(out)) == ["a", "b", "e"]
    assert "'other' is not in wav.scp" in bad(out)["c"] and "has 3.00 s" in bad(out)["d"]
    (tmp_path / "segments").write_text("a rec 0.5\n")
    run(kaldi.main, tmp_path, "--out", tmp_path / "2", status=2)
    (tmp_path / "text").write_text("a one\na two\n")
    run(kaldi.main, tmp_path, "--out", tmp_path / "2", status=2)
    run(kaldi.main, tmp_path / "nowhere", "--out", tmp_path / "2", status=2)
    errors = capsys.readouterr().err.splitlines()[-3:]
    assert errors[0].endswith("segments: 'a' needs a recording, a start and an end")
    assert errors[1].endswith("text:2: 'a' comes twice")
    assert errors[2].startswith("error: no such folder")


def test_folder(tmp_path, audio_folder):
    for name in ("wav", "flac", "nan", "zero", "junk"):
        (audio_folder / f"{name}.txt").write_text(f"{name} words\n")
    (audio_folder / "opus.lab").write_text("lab words")
    chapter = audio_folder / "84" / "121123"
    chapter.mkdir(parents=True)
    (chapter / "84-121123-0000.FLAC").write_bytes(audio_of("flac"))
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001 NO AUDIO\n")
    (chapter / "x.m4a").write_bytes(b"unreadable")
    (chapter / "x.txt").write_text("text")
    (audio_folder / "ogg.txt").write_text(" \n")
    out = tmp_path / "out"
    run(folder.main, audio_folder, "--out", out, "--speaker-folder", 1)
    found = samples(out)
    assert {key: record["text"] for key, record in found.items()} == {
        "flac": "flac words", "opus": "lab words", "wav": "wav words",
        "84_121123_84-121123-0000": "GO ON"}
    assert found["84_121123_84-121123-0000"]["meta"] == {"speaker": "84"}
    expected = {"mp3": "no transcript", "ogg": "empty text", "84_121123_x": "not readable"}
    expected |= {name: reason for name, (_, reason) in bad_wavs().items()}
    reasons = bad(out)
    assert set(reasons) == set(expected)
    assert all(reason in reasons[key] for key, reason in expected.items())


def test_recordings_without_transcripts(tmp_path, audio_folder):
    (audio_folder / "wav.txt").write_text("words")
    run(folder.main, audio_folder, "--out", tmp_path / "out", "--unlabelled")
    found = samples(tmp_path / "out")
    assert found["wav"]["task"] == "asr" and set(found) == set(RATES)
    assert {(r["text"], r["task"]) for key, r in found.items() if key != "wav"} == {
        ("", "unlabelled")}


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def test_webdataset(tmp_path, capsys):
    tars = tmp_path / "tars"
    tars.mkdir()
    good = {"d/a.wav": audio_of("wav"), "d/a.txt": b"words of a\n", "b.mp3": audio_of("mp3"),
            "b.json": b'{"sentence": "words of b", "language": "fr", "speaker": 3}'}
    for key, (payload, _) in bad_wavs().items():
        good |= {f"{key}.wav": payload, f"{key}.txt": b"a"}
    good |= {"c.wav": audio_of("wav"), "c.json": b"[1]", "d.txt": b"no audio", "e.flac": b"",
             "f.wav": audio_of("wav"), "f.cls": b"5", "g.wav": audio_of("wav"), "g.json": b"{",
             "h.opus": audio_of("opus"), "h.txt": b"", "i.ogg": audio_of("ogg"), "i.txt": b"i"}
    write_tar(tars / "0.tar", good)
    write_tar(tars / "1.tar", {"a.wav": audio_of("wav"), "a.txt": b"a", "../b.txt": b"b"})
    write_tar(tars / "2.tar", {"a.wav": audio_of("wav"), "a.txt": b"a", "a.pyd": b"b"})
    write_tar(tars / "3.tar", good)
    payload = (tars / "3.tar").read_bytes()
    with tarfile.open(tars / "3.tar") as tar:
        third_header = tar.getmembers()[2].offset
    (tars / "3.tar").write_bytes(payload[:len(payload) // 2])
    (tars / "4.tar").write_bytes(payload[:third_header + 100])
    (tars / "5.tar").write_bytes(payload[:third_header])
    write_tar(tars / "6.tar", {"z.flac": audio_of("flac"), "z.txt": b"last"})
    out = tmp_path / "out"
    run(webdataset.main, tars, "--out", out, "--text-field", "sentence")
    assert {key: record["text"] for key, record in samples(out).items()} == {
        "d_a": "words of a", "b": "words of b", "i": "i", "z": "last"}
    reasons = bad(out)
    for key, reason in {"1": "leads outside", "2": "can carry code", "3": "truncated",
                        "4": "no end-of-archive", "5": "no end-of-archive"}.items():
        assert reason in reasons[key] and "the whole tar is left out" in reasons[key]
    for key, reason in {"c": "is a list", "d": "no audio member", "e": "no .txt member",
                        "f": "no .txt member", "g": "not JSON", "h": "empty text"}.items():
        assert reason in reasons[key]
    for key, (_, reason) in bad_wavs().items():
        assert reason in reasons[key]
    printed = capsys.readouterr().err
    assert printed.count("warning: ") == 6 and "warning: 3 transcripts have no language" in printed
    run(webdataset.main, tmp_path / "nothing*.tar", "--out", out, status=2)


def test_huggingface(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    rows = [{"audio": {"bytes": audio_of(e), "path": None}, "sentence": e, "locale": "it",
             "client_id": e} for e in RATES]
    rows += [{"audio": {"bytes": payload, "path": None}, "sentence": name, "locale": "it",
              "client_id": name} for name, (payload, _) in bad_wavs().items()]
    rows.append({"audio": rows[0]["audio"], "sentence": None, "locale": "it", "client_id": "x"})
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    table.to_parquet(tmp_path / "p" / "train.parquet")
    datasets.DatasetDict({"dev": table}).save_to_disk(tmp_path / "disk")
    for number, arguments in enumerate([[tmp_path / "p"], [tmp_path / "p" / "train.parquet"],
                                        [tmp_path / "disk", "--split", "dev"]]):
        out = tmp_path / f"out{number}"
        run(huggingface.main, *arguments, "--out", out)
        found = samples(out)
        assert [record["text"] for record in found.values()] == list(RATES)
        assert found["00000000"]["language"] == "Italian"
        assert found["00000000"]["meta"] == {"speaker": "wav"}
        reasons = bad(out)
        expected = ["NaN", "zero length", "not readable", "NoneType"]
        assert len(reasons) == len(expected)
        assert all(reason in reasons[f"{5 + i:08d}"] for i, reason in enumerate(expected))
    capsys.readouterr()
    for arguments, reason in (
            ([tmp_path / "disk"], "no split 'train', only dev"),
            ([tmp_path / "p", "--text-column", "words"], "no column for text called 'words'"),
            ([tmp_path / "p", "--split", "x"], "Bad split: x"),
            ([tmp_path / "x.parquet"], "x.parquet")):
        run(huggingface.main, *arguments, "--out", tmp_path / "no", status=2)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and reason in error and error.count("\n") == 1


def test_huggingface_folder_of_audio_and_csv(tmp_path):
    pytest.importorskip("datasets")
    where = tmp_path / "af"
    where.mkdir()
    (where / "a.wav").write_bytes(audio_of("wav"))
    (where / "metadata.csv").write_text("file_name,transcription\na.wav,hello\n")
    (tmp_path / "rows.csv").write_text("path,text\naf/a.wav,hello\ngone.wav,hello\n,hello\n")
    for name, source in (("1", where), ("2", tmp_path / "rows.csv")):
        run(huggingface.main, source, "--out", tmp_path / name)
        assert [record["text"] for record in samples(tmp_path / name).values()] == ["hello"]
    assert "no such audio file" in bad(tmp_path / "2")["00000001"]
    assert "the row has no audio" in bad(tmp_path / "2")["00000002"]


def test_index(tmp_path, capsys):
    with ShardWriter(tmp_path, max_samples=2) as writer:
        for i in range(6):
            writer.write(f"k{i}", {"text": "a", "duration": 0.5}, audio_of("wav"), "wav")
    before = index_path(tmp_path / "shard-000000.tar").read_bytes()
    for path in tmp_path.glob("*.index.jsonl"):
        path.unlink()
    whole = (tmp_path / "shard-000001.tar").read_bytes()
    (tmp_path / "shard-000001.tar").write_bytes(whole[:len(whole) // 2])
    write_tar(tmp_path / "theirs.tar", {
        "a.json": b'{"text": "a"}', "a.flac": audio_of("flac"), "b.json": b"[1]", "c.json": b"{",
        "d.json": b'{"text": ""}', "e.flac": audio_of("flac")})
    assert index.main([str(tmp_path), "--workers", "2"]) == 2
    assert index_path(tmp_path / "shard-000000.tar").read_bytes() == before
    assert [entry.key for entry in read_entries(tmp_path / "theirs.tar")] == ["a"]
    assert not index_path(tmp_path / "shard-000001.tar").exists()
    output = capsys.readouterr()
    assert "theirs.tar: 1 samples, 0.00 hours, 4 bad" in output.out
    assert "indexed 3 of 4 shards: 5 samples" in output.out
    assert output.err.splitlines()[-1] == f"error: not indexed: {tmp_path}/shard-000001.tar"
    assert output.err.count("bad: ") == 4 and "truncated" in output.err
    (tmp_path / "shard-000001.tar").write_bytes(whole)
    assert index.main([str(tmp_path), "--workers", "1"]) == 0
