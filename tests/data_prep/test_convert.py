"""The conversion engine: determinism, resuming, bad items, full disks."""

import argparse
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import soundfile
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import jsonl, samples
from data_prep.command import guarded, shares
from data_prep.convert import Bad, Item, convert, make_key
from data_prep.samples import usable_cores
from qwen3asr_train.data.audio import SAMPLE_RATE, decode, encode
from qwen3asr_train.data.shards import ShardReader, find_shards, read_entries
from qwen3asr_train.errors import DataError, UserError


def tone(seconds: float = 0.2, rate: int = SAMPLE_RATE, hz: float = 440.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def wav(waveform: np.ndarray, rate: int = SAMPLE_RATE, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def some_items(count: int = 10) -> list[Item | Bad]:
    items: list[Item | Bad] = [
        Item(key=f"item/{i}", audio=wav(tone(0.05 + 0.01 * i, hz=100.0 * (i + 1))),
             text=f"text {i}", meta={"speaker": f"s{i % 3}"}) for i in range(count)]
    items[4] = Item(key="item/4", audio="/nowhere/4.wav", text="gone")
    items.insert(6, Bad("row-6", "rows.txt:6", "not a row"))
    return items


def tree(folder) -> dict[str, bytes]:
    """Everything below a folder, as {relative path: bytes}."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def bad_of(out) -> dict[str, str]:
    rows = map(json.loads, (out / "bad.jsonl").read_text().splitlines())
    return {row["key"]: row["reason"] for row in rows}


def records(out) -> list[dict]:
    reader = ShardReader()
    return [reader.read(entry)[0] for shard in find_shards(str(out))
            for entry in read_entries(shard)]


def test_samples_records_and_bad_list(tmp_path):
    summary = convert(some_items(), tmp_path, source="mine", shard_size=4)
    assert (summary.samples, summary.shards, summary.bad) == (9, 3, 2)
    assert bad_of(tmp_path) == {"item_4": "no such audio file", "row-6": "not a row"}
    rows = records(tmp_path)
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(10) if i != 4]
    assert rows[0] == {"text": "text 0", "language": None, "task": "asr", "source": "mine",
                       "meta": {"speaker": "s0"}, "duration": 0.05}
    assert summary.seconds == pytest.approx(sum(row["duration"] for row in rows))


def test_shards_open_with_webdataset(tmp_path):
    convert(some_items(), tmp_path, source="mine", shard_size=4)
    found = list(webdataset.WebDataset(find_shards(str(tmp_path)), shardshuffle=False))
    assert len(found) == 9
    assert json.loads(found[0]["json"])["text"] == "text 0"
    assert decode(found[0]["flac"]).shape == (800,)


def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (1, 2):
        convert(some_items(), tmp_path / str(workers), source="mine", shard_size=2,
                workers=workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, workers):
    def stopping():
        yield from some_items()[:7]
        raise KeyboardInterrupt

    convert(some_items(), tmp_path / "whole", source="mine", shard_size=2)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        convert(stopping(), out, source="mine", shard_size=2, workers=workers)
    (out / "shard-000007.tar.partial-99").write_bytes(b"left by a killed process")
    summary = convert(some_items(), out, source="mine", shard_size=2, workers=workers)
    assert summary.resumed > 0 or workers > 1  # Ctrl-C may come before a worker's first shard
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["tar", "index", "receipt", "cut"])
def test_what_is_missing_or_cut_is_written_again(tmp_path, damage):
    convert(some_items(), tmp_path, source="mine", shard_size=3)
    before = tree(tmp_path)
    victim = {"tar": "shard-000001.tar", "index": "shard-000001.index.jsonl",
              "receipt": "convert/000001.json", "cut": "shard-000001.tar"}[damage]
    if damage == "cut":
        os.truncate(tmp_path / victim, 1000)
    else:
        (tmp_path / victim).unlink()
    summary = convert(some_items(), tmp_path, source="mine", shard_size=3)
    assert summary.resumed == summary.shards - 1
    assert tree(tmp_path) == before


def test_other_items_or_settings_are_refused_and_overwrite_removes_only_ours(tmp_path):
    convert(some_items(), tmp_path, source="mine", shard_size=3)
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(UserError, match="shard_size"):
        convert(some_items(), tmp_path, source="mine", shard_size=4)
    with pytest.raises(UserError, match=r"shard-000000\.tar was made from other items"):
        convert(some_items()[1:], tmp_path, source="mine", shard_size=3)
    with pytest.raises(UserError, match="beyond the items"):
        convert(some_items()[:6], tmp_path, source="mine", shard_size=3)
    convert(some_items()[:1], tmp_path, source="mine", shard_size=3, resume=False)
    assert set(tree(tmp_path)) == {"shard-000000.tar", "shard-000000.index.jsonl", "notes.txt",
                                   "convert/settings.json", "convert/000000.json"}


def test_foreign_shards_are_left_alone(tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"someone's")
    for resume in (True, False):
        with pytest.raises(UserError, match="no data_prep command wrote"):
            convert(some_items(), tmp_path, source="mine", resume=resume)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"someone's"


def test_max_bad_and_nothing_written(tmp_path):
    with pytest.raises(UserError, match="more than the 1 allowed"):
        convert(some_items(), tmp_path / "a", source="mine", max_bad=1)
    assert len(bad_of(tmp_path / "a")) == 2
    with pytest.raises(UserError, match=r"nothing was written: all 1 items are bad"):
        convert([Item("k", "/nowhere.wav", "text")], tmp_path / "b", source="mine")
    with pytest.raises(UserError, match="the source holds no items"):
        convert([], tmp_path / "c", source="mine")


def test_equal_keys_become_unique_in_order(tmp_path):
    audio = wav(tone())
    items = [Item("a.b", audio, "1"), Item("a-b-2", audio, "2"), Item("a b", audio, "3"),
             Item("a_b", audio, "4"), Item("a_b-2", audio, "5")]
    convert(items, tmp_path, source="mine")
    keys = [entry.key for entry in read_entries(tmp_path / "shard-000000.tar")]
    assert keys == ["a_b", "a-b-2", "a_b-2", "a_b-3", "a_b-2-2"]


@settings(max_examples=50)
@given(st.text())
def test_keys_are_safe_and_stable(text):
    key = make_key(text)
    assert key and len(key) <= 100 and not set(key) & set("./\\ \0") and make_key(key) == key


AUDIO = wav(tone())


@pytest.mark.parametrize(("item", "reason"), [
    (Item("k", AUDIO, " "), "empty text"),
    (Item("k", AUDIO, 5), "not a string"),
    (Item("k", AUDIO, "a <|im_end|> b"), "special token"),
    (Item("k", AUDIO, "language English<asr_text>a<asr_text>b"), "special token"),
    (Item("k", AUDIO, "fine", context="<|im_start|>"), "special token"),
    (Item("k", AUDIO, "fine", entities=["<|im_end|>"]), "special token"),
    (Item("k", AUDIO, "hello<asr_text>b"), "not 'language NAME'"),
    (Item("k", AUDIO, "a", "Klingon"), "unknown language 'Klingon'"),
    (Item("k", AUDIO, "a", context=["x"]), "must be strings"),
    (Item("k", AUDIO, "a", entities="x"), "list of strings"),
    (Item("k", AUDIO, "a", words=[["a", 0]]), "'words' must be"),
    (Item("k", AUDIO, "a", words=[["a", 0.3, 0.1]]), "'words': 'a' from 0.3 to 0.1 s"),
    (Item("k", AUDIO, "a", words=[["a", -5, 0.3]]), "'words': 'a' from -5 to 0.3 s"),
    (Item("k", AUDIO, "a", words=[["a", 0.1, 70]]), "'words': 'a' ends at 70 s, the audio at"),
    (Item("k", AUDIO, "\ud800"), "not valid UTF-8"),
    (Item("k", AUDIO, "a", meta={"x": float("nan")}), "cannot be written as JSON"),
    (Item("k", wav(np.full(99, np.nan), subtype="FLOAT"), "a"), "NaN"),
    (Item("k", wav(np.zeros(0)), "a"), "zero length"),
    (Item("k", b"", "a"), "not readable"),
    (Item("k", AUDIO[:30], "a"), "not readable"),
    (Item("k", "/dev/zero", "a"), "no such audio file"),
    (Item("k", "/nowhere\0.wav", "a"), "no such audio file"),
    (Item("k", (np.zeros((2, 2, 2)), 16000), "a"), "1 or 2 axes"),
    (Item("k", (np.zeros(9), 0), "a"), "positive rate"),
    (Item("k", AUDIO, "a", start=1.0), "empty or reversed"),
    (Item("k", AUDIO, "a", start=0.1, end=0.1), "empty or reversed"),
    (Item("k", AUDIO, "a", start=0.0, end=9.0), "the recording has 0.20 s"),
])
def test_bad_items_are_listed_with_the_reason(tmp_path, item, reason):
    convert([Item("good", AUDIO, "good"), item], tmp_path, source="mine")
    assert reason in bad_of(tmp_path)["k"]


def test_a_header_that_lies_about_the_length_costs_no_memory():
    flac = bytearray(encode(tone(), "flac"))
    for high, low in ((0, b"\0" * 4), (15, b"\xff" * 4)):  # length left open, 2**36 - 1 samples
        flac[21] = flac[21] & 0xF0 | high
        flac[22:26] = low
        with pytest.raises(DataError):
            samples.load_audio(Item("k", bytes(flac), "a"), "flac")


def test_labels_come_out_in_the_released_names(tmp_path):
    items = [Item("a", AUDIO, "language german<asr_text> hallo <|im_end|>"),
             Item("b", AUDIO, "language None<asr_text>"),
             Item("c", AUDIO, "", "None"),
             Item("d", AUDIO, "hej", "sv"),
             Item("e", AUDIO, "hi"),
             Item("f", AUDIO, "language None<asr_text>unknown tongue", "en")]
    convert(items, tmp_path, source="mine", language="EN")
    assert [(row["text"], row["language"], row["task"]) for row in records(tmp_path)] == [
        ("hallo", "German", "asr"), ("", None, "nonspeech"), ("", None, "nonspeech"),
        ("hej", "Swedish", "asr"), ("hi", "English", "asr"), ("unknown tongue", None, "asr")]
    with pytest.raises(UserError, match="--language: unknown language 'Klingon'"):
        convert(items, tmp_path / "x", source="mine", language="Klingon")
    convert([Item("a", AUDIO, "nuqneH")], tmp_path / "y", source="mine", language="Klingon",
            any_language=True)
    assert records(tmp_path / "y")[0]["language"] == "Klingon"


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg", "opus"])
@pytest.mark.parametrize("rate", [8000, 48000])
def test_audio_of_any_kind_becomes_16_khz_mono(tmp_path, extension, rate):
    stereo = np.stack([tone(1.0, rate), tone(1.0, rate, 880.0)], axis=1)
    path = tmp_path / f"a.{extension}"
    path.write_bytes(encode(stereo, extension, rate))
    mono = decode(path)
    for audio_format, expected in (("flac", "flac"), ("wav", "wav"), ("keep", extension)):
        audio, found, seconds = samples.load_audio(Item("k", str(path), "a"), audio_format)
        assert found == expected
        assert seconds == len(decode(audio)) / SAMPLE_RATE == pytest.approx(1.0, abs=0.1)
        assert (audio == path.read_bytes()) == (audio_format == "keep")
        np.testing.assert_allclose(decode(audio), mono, atol=1e-4)
    segment = samples.load_audio(Item("k", str(path), "a", start=0.25, end=0.75), "keep")
    assert segment[1:] == ("flac", 0.5)
    np.testing.assert_allclose(decode(segment[0])[400:-400], mono[4000:12000][400:-400], atol=0.05)


def test_waveforms_and_overshooting_segments():
    loud = (tone() * 32767).astype(np.int16)
    audio, _, seconds = samples.load_audio(Item("k", (loud, SAMPLE_RATE), "a"), "flac")
    np.testing.assert_allclose(decode(audio), tone(), atol=1e-3)
    assert seconds == 0.2
    assert samples.load_audio(Item("k", AUDIO, "a", start=0.1, end=0.6), "wav")[2] == 0.1


def test_split_is_stable_and_keeps_speakers_together(tmp_path):
    items = [Item(f"k{i}", AUDIO, "a", meta={"speaker": f"s{i % 20}"}) for i in range(60)]
    splits = shares("validation=0.3, test=0.2")
    summary = convert(items, tmp_path / "a", source="mine", splits=splits)
    convert(items[::-1], tmp_path / "b", source="mine", splits=splits)

    def speakers(out):
        return {split: {row["meta"]["speaker"] for row in records(out / split)}
                for split in ("train", "validation", "test")}

    found = speakers(tmp_path / "a")
    assert found == speakers(tmp_path / "b") and all(found.values())
    assert sum(map(len, found.values())) == 20
    assert summary.splits == {split: len(records(tmp_path / "a" / split)) for split in found}


def test_a_split_without_samples_and_a_missing_language_are_said(tmp_path, capsys):
    rows, audio = tmp_path / "rows.jsonl", str(tmp_path / "a.wav")
    soundfile.write(audio, tone(), SAMPLE_RATE)
    rows.write_text("\n".join(json.dumps({"audio": audio} | row) for row in (
        {"text": "a"}, {"text": "b", "language": "de"}, {"text": "", "language": "None"})))
    arguments = [str(rows), "--out", str(tmp_path / "out"), "--split-by-hash", "test=0.000001"]
    assert jsonl.main(arguments) == 0
    printed = capsys.readouterr()
    assert "test 0, train 3" in printed.out and "no sample fell to 'test'" in printed.err
    assert "1 transcripts have no language" in printed.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_leaves_no_half_shard(tmp_path, workers):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    noise = np.random.default_rng(0).uniform(-1, 1, (8, 8000))
    try:
        with pytest.raises(UserError, match=f"{disk}/out: No space left on device"):
            convert([Item(f"k{i}", (row, SAMPLE_RATE), "a") for i, row in enumerate(noise)],
                    disk / "out", source="mine", shard_size=2, workers=workers)
        left = set(tree(disk / "out"))
        assert not [name for name in left if "partial" in name]
        for shard in find_shards(str(disk / "out")):
            assert len(read_entries(shard)) == 2
            with tarfile.open(shard) as tar:
                assert len(tar.getmembers()) == 4
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_failing_write_leaves_no_half_shard(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(samples.ShardWriter, "_add", full)
    with pytest.raises(UserError, match="No space left"):
        convert(some_items(), tmp_path, source="mine")
    assert set(tree(tmp_path)) == {"convert/settings.json"}


def test_sigterm_in_the_middle_leaves_whole_shards_and_resumes(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 160_000)
    (tmp_path / "a.wav").write_bytes(wav(noise))
    rows = [json.dumps({"audio": "a.wav", "text": "a", "id": f"k{i}"}) for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep.jsonl", str(tmp_path / "rows.jsonl"), "--out",
               str(out), "--shard-size", "40", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("shard-*.tar")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.count("\n") == 1 and "to go on" in errors
    whole = find_shards(str(out))
    assert 0 < len(whole) < 10 and not list(out.glob("*.partial-*"))
    assert all(len(read_entries(shard)) == 40 for shard in whole)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "wrote 400 samples (1.11 hours) in 10 shards" in done.stdout
    assert "shards were there" in done.stdout


def test_shares_and_errors_are_one_line(capsys):
    for text in ("train=0.1", "a=0.6,b=0.6", "a", "a=0.1,a=0.1", "a=x", "a=0"):
        with pytest.raises(argparse.ArgumentTypeError):
            shares(text)

    def fail() -> int:
        raise DataError("x.tar: broken")

    assert guarded(fail, "") == 2
    assert capsys.readouterr().err == "error: x.tar: broken\n"


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch):
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
