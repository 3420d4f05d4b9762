"""Shards: what webdataset reads of them, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset

from qwen3asr_train.data.audio import encode
from qwen3asr_train.data.shards import (
    ShardReader,
    ShardWriter,
    check_record,
    find_shards,
    index_path,
    read_entries,
    read_summary,
    write_index,
)
from qwen3asr_train.data.tars import entries_of_tar, scan_tar
from qwen3asr_train.errors import DataError, UserError


def record(text="hello", **more):
    return {"text": text, "language": "English", "duration": 0.5} | more


@pytest.fixture
def shard(tmp_path):
    audio = encode(np.zeros(8000, dtype=np.float32), "flac")
    with ShardWriter(tmp_path / "shards", max_samples=3) as writer:
        for i in range(5):
            writer.write(f"utt{i}" + "x" * 110 * (i == 4), record(f"text {i}"), audio, "flac")
    return writer.paths[0]


def tar_of(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def test_index_and_webdataset_agree(shard):
    shards = find_shards(str(shard.parent))
    assert len(shards) == 2 and sum(read_summary(s).samples for s in shards) == 5
    reader = ShardReader(max_open=1)
    ours = {e.key: reader.read(e) for s in shards for e in read_entries(s)}
    theirs = {s["__key__"]: s for s in webdataset.WebDataset(shards, shardshuffle=False)}
    assert ours.keys() == theirs.keys()
    for key, (found, audio) in ours.items():
        assert found == json.loads(theirs[key]["json"]) and audio == theirs[key]["flac"]


def test_reindexing_gives_the_same_index(shard):
    before = index_path(shard).read_bytes()
    entries, bad = entries_of_tar(shard)
    write_index(shard, entries, shard.stat().st_size)
    assert not bad and index_path(shard).read_bytes() == before


def test_an_interrupted_writer_leaves_no_half_shard(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path) as writer:
        writer.write("a", record(), b"x", "wav")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_truncated_tar_is_named(shard):
    payload = shard.read_bytes()
    for size in (len(payload) // 2, 700, len(payload) - 10_000):
        shard.write_bytes(payload[:size])
        with pytest.raises(DataError, match=r"shard-000000\.tar.*(truncated|whole)"):
            read_summary(shard)
        with pytest.raises(DataError, match=r"shard-000000\.tar.*(truncated|whole)"):
            list(scan_tar(shard))


def test_reading_behind_the_end_names_the_key(shard):
    entries = read_entries(shard)
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(DataError, match=r"shard-000000\.tar:utt2: truncated"):
        ShardReader().read(entries[2])


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../b.json"])
def test_a_path_outside_is_refused(tmp_path, name):
    path = tar_of(tmp_path / "x.tar", {name: b"{}"})
    with pytest.raises(DataError, match="leads outside"):
        list(scan_tar(path))


@pytest.mark.parametrize("name", ["a.pyd", "a.pickle", "a.x.pkl", "a.PTH"])
def test_members_that_can_carry_code_are_refused(tmp_path, name):
    path = tar_of(tmp_path / "x.tar", {"a.json": b"{}", name: b"\x80\x04."})
    with pytest.raises(DataError, match="can carry code"):
        list(scan_tar(path))


def test_bad_records_are_listed_with_their_reason(tmp_path):
    good = json.dumps(record()).encode()
    path = tar_of(tmp_path / "x.tar", {
        "ok.json": good, "list.json": b"[1]", "broken.json": b"{", "empty.json":
        json.dumps(record(" ")).encode(), "alone.wav": b"", "none.json": b'{"text": null}'})
    entries, bad = entries_of_tar(path)
    assert [e.key for e in entries] == ["ok"]
    reasons = dict(bad)
    assert "not an object" in reasons["list"] and "unreadable JSON" in reasons["broken"]
    assert "empty text" in reasons["empty"] and "no .json" in reasons["alone"]
    assert "'text' must be a string" in reasons["none"]


@pytest.mark.parametrize("duration", [float("nan"), float("inf"), -1.0, "long", None])
def test_a_duration_that_is_none_is_measured(tmp_path, duration):
    audio = encode(np.zeros(8000, dtype=np.float32), "wav")
    path = tar_of(tmp_path / "x.tar", {
        "a.json": json.dumps(record(duration=duration)).encode(), "a.wav": audio})
    assert entries_of_tar(path)[0][0].duration == pytest.approx(0.5)


def test_nonspeech_may_be_empty():
    check_record({"text": "", "task": "nonspeech"}, "x")


@pytest.mark.parametrize("key", ["a.b", "../a", "/a", ""])
def test_unsafe_keys_are_not_written(tmp_path, key):
    with pytest.raises(DataError, match="sample key"):
        ShardWriter(tmp_path).write(key, record())


def test_missing_index_and_missing_shards_say_what_to_do(shard, tmp_path):
    index_path(shard).unlink()
    with pytest.raises(DataError, match=r"python -m data_prep\.index"):
        read_summary(shard)
    with pytest.raises(UserError, match="no shards at"):
        find_shards(str(tmp_path / "nowhere"))
    index_path(shard).write_text("[]\n")
    with pytest.raises(DataError, match="not an index"):
        read_summary(shard)
