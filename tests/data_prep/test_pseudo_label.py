"""``python -m data_prep.pseudo_label``: records, resuming, splitting, broken shards."""

import json
import multiprocessing
import os
import re
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import pseudo_label, pseudo_pool, pseudo_shard
from data_prep.pseudo_filters import Filters
from data_prep.pseudo_label import Part, main, part_of_job
from data_prep.pseudo_models import open_labeller
from data_prep.pseudo_shard import Plan, label_shard
from qwen3asr_train.data.audio import decode, encode
from qwen3asr_train.data.shards import (
    ShardReader,
    ShardWriter,
    find_shards,
    index_path,
    read_entries,
)
from qwen3asr_train.decoding.transcriber import Transcript
from qwen3asr_train.errors import UserError

OPEN = ["--min-rate", "0", "--max-rate", "1e9", "--max-repetition", "1", "--max-compression", "1e9"]
"""Filters that let the babble of random weights pass."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked process hangs in OpenMP if its parent has used several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def label(text: str, language: str | None = "English", confidence: float = 0.9) -> Transcript:
    return Transcript(language, text, confidence, 5)


class Script:
    """A labeller that says what it is told, and remembers how many clips it was asked for."""

    names_language = True

    def __init__(self, *said: Transcript):
        self.said, self.asked = list(said), 0

    def label(self, waveforms):
        self.asked += len(waveforms)
        return [self.said.pop(0) for _ in waveforms]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 at 16 kHz."""
    return np.float32(0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000)))


def write_shards(folder: Path, shards: int = 3, samples: int = 3) -> list[str]:
    """Shards of unlabelled noise, in wav and mp3."""
    with ShardWriter(folder, max_samples=samples) as writer:
        for number in range(shards * samples):
            kind = "mp3" if number % 3 == 1 else "wav"
            clip = noise(0.6 + 0.1 * (number % 5), number)
            writer.write(f"k{number}", {"text": "", "language": None, "task": "unlabelled",
                                        "duration": len(clip) / 16_000, "source": "mine",
                                        "meta": {"speaker": f"s{number}"}},
                         encode(clip, kind), kind)
    return [str(path) for path in writer.paths]


def read_all(folder: Path) -> dict[str, tuple[dict, bytes]]:
    reader = ShardReader()
    return {entry.key: reader.read(entry) for shard in find_shards(str(folder))
            for entry in read_entries(shard)}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_records_and_audio_of_a_shard(tmp_path):
    old = {"text": "old", "language": "German", "words": [["old", 0, 1]], "context": "names",
           "duration": 1.0, "source": "theirs", "meta": {"speaker": "x"}}
    clip = encode(noise(1.0), "wav")
    with ShardWriter(tmp_path / "in") as writer:
        for key, meta in (("a", {}), ("again", {"pseudo_label": {}, "original_text": "first"})):
            writer.write(key, old | {"meta": old["meta"] | meta}, clip, "wav")
        for key in ("silent", "differs", "unsure"):
            writer.write(key, {"text": "", "task": "unlabelled", "duration": 1.0}, clip, "wav")
        writer.write("text", {"text": "only", "task": "text"})
        writer.write("junk", {"text": "x", "duration": 1.0}, b"no audio", "wav")
    first = Script(label("new words"), label("newer words"), label("", None), label("red box"),
                   label("unsure", confidence=0.2))
    second = Script(label("new word", confidence=0.7), label("newer words"), label("", None),
                    label("blue bag"))
    out = tmp_path / "out"
    (out / "pseudo_label" / "receipts").mkdir(parents=True)
    plan = Plan(out, "one", "two", Filters(min_confidence=0.5, min_agreement=0.5), "settings")
    reports = []
    receipt = label_shard(str(writer.paths[0]), plan, [first, second],
                          lambda *report: reports.append(report))
    found = read_all(out)
    assert list(found) == ["a", "again", "silent"] and second.asked == 4
    assert all(audio == clip for _, audio in found.values())
    assert found["a"][0] == {
        "text": "new words", "language": "English", "task": "asr", "context": "names",
        "duration": 1.0, "source": "theirs", "meta": {
            "speaker": "x", "original_text": "old", "pseudo_label": {
                "model": "one", "confidence": 0.9, "second": {
                    "model": "two", "language": "English", "text": "new word",
                    "confidence": 0.7, "agreement": 0.5}}}}
    assert found["again"][0]["meta"]["original_text"] == "first"
    silent = found["silent"][0]
    assert (silent["text"], silent["language"], silent["task"]) == ("", None, "nonspeech")
    assert {row["key"]: row["reason"] for row in receipt.rejected} == {
        "differs": "agreement", "unsure": "confidence", "text": "no audio", "junk": "undecodable"}
    assert receipt.rejected[0]["text"] == "red box"
    assert receipt.rejected[0]["second"]["text"] == "blue bag"
    assert (receipt.samples, receipt.seconds) == (3, 3.0)
    assert sum(kept for kept, _, _ in reports) == 3


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path / "in")
    return tmp_path / "in"


def command(shards: Path, model: Path, out: Path, *options: str) -> list[str]:
    return [str(shards), "--model", str(model), "--out", str(out), *OPEN, *map(str, options)]


def test_every_sample_is_kept_or_listed(shards, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(shards, checkpoint("ctc"), out, "--min-confidence", 0.7)) == 0
    before, kept, rejected = read_all(shards), read_all(out), rows(out / "rejected.jsonl")
    assert kept and rejected
    assert {*kept} | {row["key"] for row in rejected} == {*before}
    assert len(kept) + len(rejected) == len(before)
    expected = open_labeller(str(checkpoint("ctc"))).label(
        [decode(audio) for _, audio in before.values()])
    for key, label in zip(before, expected, strict=True):
        if key in kept:
            record, audio = kept[key]
            assert audio == before[key][1]
            assert (record["text"], record["task"], record["source"]) == (label.text, "asr", "mine")
            assert record["meta"]["pseudo_label"]["confidence"] == round(label.confidence, 4)
            assert label.confidence >= 0.7
        else:
            row, = (row for row in rejected if row["key"] == key)
            assert (row["text"], row["reason"]) == (label.text, "confidence")
            assert row["shard"].startswith(str(shards)) and label.confidence < 0.7
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"labelled {len(kept)} samples (0.00 hours) in 3 shards in {out}; "
                           f"rejected {len(rejected)} (confidence {len(rejected)}), listed in ")


def test_whisper_beside_our_model(shards, checkpoint, tmp_path):
    out = tmp_path / "out"
    options = ("--second", checkpoint("ours"), "--max-new-tokens", "6", "--language", "zh",
               "--require-language-agreement")
    assert main(command(shards, checkpoint("whisper"), out, *options)) == 0
    kept = read_all(out)
    assert len(kept) == 9 and not (out / "rejected.jsonl").exists()
    clips = [decode(audio) for _, audio in kept.values()]
    ours = open_labeller(str(checkpoint("ours")), language="Chinese", max_new_tokens=6).label(clips)
    for (record, _), second in zip(kept.values(), ours, strict=True):
        found = record["meta"]["pseudo_label"]["second"]
        assert record["language"] == found["language"] == "Chinese"
        assert (found["text"], found["confidence"]) == (second.text, round(second.confidence, 4))


@pytest.mark.parametrize("at", ["label", "index", "tar", "receipt"])
def test_a_killed_run_goes_on_to_the_same_bytes(shards, checkpoint, tmp_path, at):
    """SIGKILL at the second shard: while it is labelled, before its index, its tar, its receipt."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert main(command(shards, checkpoint("ctc"), whole)) == 0

    def run_and_die() -> None:
        real, calls = {"replace": os.replace, "ask": pseudo_shard._ask}, []

        def dying(name, is_it):
            def call(*arguments):
                calls.append(is_it(*arguments))
                if sum(calls) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real[name](*arguments)
            return call

        last = {"index": ".index.jsonl", "tar": ".tar", "receipt": ".json"}.get(at)
        if last is None:
            pseudo_shard._ask = dying("ask", lambda _, samples: bool(samples))
        else:
            os.replace = dying("replace", lambda _, to: re.sub(r".*shard-\d+", "", str(to)) == last
                               and "writing" not in str(to))
        main(command(shards, checkpoint("ctc"), out))

    child = multiprocessing.get_context("fork").Process(target=run_and_die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list((out / "pseudo_label" / "receipts").iterdir())) == 1
    assert main(command(shards, checkpoint("ctc"), out)) == 0
    assert tree(out) == tree(whole)


def test_the_same_command_twice_at_once(shards, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_label, "_POLL", 0.05)
    write_shards(shards, shards=8, samples=2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(shards, checkpoint("ctc"), whole)) == 0
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=lambda: os._exit(main(command(shards, checkpoint("ctc"), out))))
                for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert tree(out) == tree(whole)


def test_a_shard_of_another_process_is_waited_for(shards, checkpoint, tmp_path, monkeypatch,
                                                  capsys):
    monkeypatch.setattr(pseudo_label, "_POLL", 0.05)
    out = tmp_path / "out"
    (out / "pseudo_label").mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    claimed, release = fork.Event(), fork.Event()

    def hold() -> None:
        with pseudo_shard.Claims(out).claim("shard-000001.tar") as is_ours:
            assert is_ours
            claimed.set()
            release.wait(60)

    holder = fork.Process(target=hold)
    holder.start()
    assert claimed.wait(60)
    real, order = pseudo_pool.label_shard, []

    def ordered(shard, *arguments):
        order.append(shard[-10:-4])
        if len(order) == 2:
            release.set()
        return real(shard, *arguments)

    monkeypatch.setattr(pseudo_pool, "label_shard", ordered)
    assert main(command(shards, checkpoint("ctc"), out)) == 0
    holder.join(60)
    assert order == ["000000", "000002", "000001"]
    assert "waiting for 1 shards" in capsys.readouterr().err


def test_two_workers_write_what_one_writes(shards, checkpoint, tmp_path):
    for workers in (1, 2):
        assert main(command(shards, checkpoint("ctc"), tmp_path / str(workers), "--workers",
                            workers, "--min-confidence", 0.7)) == 0
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


def test_a_broken_shard_does_not_stop_the_others(shards, checkpoint, tmp_path, capsys):
    names = find_shards(str(shards))
    whole = Path(names[0]).read_bytes()
    os.truncate(names[0], len(whole) // 2)
    index_path(names[1]).unlink()
    out = tmp_path / "out"
    assert main(command(shards, checkpoint("ctc"), out)) == 1
    errors = capsys.readouterr().err
    assert f"error: {names[0]}: {len(whole) // 2} bytes" in errors
    assert f"error: {names[1]}: no index beside it" in errors
    assert "2 of 3 shards could not be labelled" in errors
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["shard-000002.tar"]
    Path(names[0]).write_bytes(whole)
    assert main(command(names[0], checkpoint("ctc"), out)) == 0


def test_other_settings_need_overwrite(shards, checkpoint, tmp_path, capsys):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    strict = ("--min-confidence", 0.7)
    assert main(command(shards, checkpoint("ctc"), out)) == 0
    assert main(command(shards, checkpoint("ctc"), out, *strict)) == 2
    assert "made with another --min-confidence; use the same" in capsys.readouterr().err
    assert main(command(shards, checkpoint("whisper"), out)) == 2
    assert "another --model" in capsys.readouterr().err
    assert main(command(shards, checkpoint("ctc"), out, "--batch-seconds", 5, "--workers", 1)) == 0
    assert "(3 were there)" in capsys.readouterr().out
    assert main(command(shards, checkpoint("ctc"), out, *strict, "--overwrite")) == 0
    assert main(command(shards, checkpoint("ctc"), fresh, *strict)) == 0
    assert tree(out) == tree(fresh)
    assert main(command(shards, checkpoint("ctc"), fresh, *strict, "--overwrite")) == 0
    assert "(3 were there)" in capsys.readouterr().out
    write_shards(shards, shards=1, samples=2)  # shard 0 now holds other samples
    assert main(command(shards, checkpoint("ctc"), out, *strict)) == 1
    assert "shard-000000.tar was made from other samples" in capsys.readouterr().err
    assert main(command(shards, checkpoint("ctc"), out, *strict, "--overwrite")) == 0
    assert len(read_entries(shards / "shard-000000.tar")) == 2


def test_errors_of_the_command(shards, checkpoint, tmp_path, capsys):
    ctc = checkpoint("ctc")
    for arguments, message in (
            (command(shards, ctc, shards), "lies in --out"),
            (command(tmp_path / "nothing", ctc, tmp_path / "o"), "no shards at"),
            (command(shards, tmp_path / "none", tmp_path / "o"), "no such folder"),
            (command(shards, ctc, tmp_path / "o", "--language", "Klingon"), "unknown language"),
            (command(shards, ctc, tmp_path / "o", "--min-agreement", "0.5"), "--second"),
            (command(shards, ctc, tmp_path / "o", "--device", "cuda:77"), "this machine has"),
            (command(shards, ctc, tmp_path / "p", "--second", checkpoint("whisper"),
                     "--require-language-agreement"), "does not tell languages")):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    write_shards(tmp_path / "more")
    twice = [str(tmp_path / "more"), *command(shards, ctc, tmp_path / "o")]
    assert main(twice) == 2
    assert "have the same name" in capsys.readouterr().err
    for options in (["--part", "0/2"], ["--part", "3/2"], ["--min-confidence", "nan"]):
        with pytest.raises(SystemExit):
            main(command(shards, ctc, tmp_path / "o", *options))


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 12))
def test_parts_cover_all_without_overlap(shards, parts):
    names = [f"s{i:03d}" for i in range(shards)]
    split = [Part(i, parts).of(names) for i in range(parts)]
    assert sorted(chain(*split)) == names
    assert max(map(len, split)) - min(map(len, split)) <= 1


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
def test_a_slurm_array_and_its_tasks_are_parts(first, count, step, tasks):
    array = {"SLURM_ARRAY_TASK_MIN": first, "SLURM_ARRAY_TASK_COUNT": count,
             "SLURM_ARRAY_TASK_MAX": first + (count - 1) * step, "SLURM_ARRAY_TASK_STEP": step,
             "SLURM_STEP_NUM_TASKS": tasks}
    found = [part_of_job({name: str(value) for name, value in array.items()} | {
        "SLURM_ARRAY_TASK_ID": str(first + i * step), "SLURM_PROCID": str(task)})
        for i in range(count) for task in range(tasks)]
    assert found == [Part(i, count * tasks) for i in range(count * tasks)]


def test_other_jobs_are_one_part():
    assert part_of_job({}) == Part(0, 1)
    # The batch script itself, of a job with four tasks.
    assert part_of_job({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Part(0, 1)
    assert part_of_job({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}) == Part(2, 4)
    gaps = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "3"}
    with pytest.raises(UserError, match="have gaps"):
        part_of_job(gaps | {"SLURM_ARRAY_TASK_ID": "3"})


def test_parts_write_what_one_run_writes(shards, checkpoint, tmp_path, monkeypatch, capsys):
    strict = ("--min-confidence", 0.7)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(shards, checkpoint("ctc"), whole, *strict)) == 0
    for number in range(2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number + 4))
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "4")
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        assert main(command(shards, checkpoint("ctc"), parts, *strict)) == 0
        assert f"part {number + 1} of 2" in capsys.readouterr().out
    lists = [parts / f"rejected.{i}-of-2.jsonl" for i in (1, 2)]
    assert sorted(row["key"] for row in chain(*map(rows, lists))) == sorted(
        row["key"] for row in rows(whole / "rejected.jsonl"))
    assert main(command(shards, checkpoint("ctc"), parts, *strict, "--part", "1/1")) == 0
    assert tree(parts) == tree(whole)
