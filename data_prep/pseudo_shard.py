"""One shard of audio to the shard of its pseudo-labels: claimed, written whole, with a receipt.

In ``OUT``::

    NAME.tar, NAME.index.jsonl      named as the shards they were made from
    rejected.jsonl                  one row a sample left out; rejected.I-of-N.jsonl of a part
    pseudo_label/settings.json, receipts/NAME.json, lock      for resuming

A process claims a shard before it touches it, so the same command may run twice at once. The
claims are locks, which end with the process, however it ends.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.pseudo_filters import Filters, agreement
from data_prep.samples import Cancelled, holds
from qwen3asr_train.data.audio import SAMPLE_RATE, decode
from qwen3asr_train.data.shards import (
    Entry,
    ShardReader,
    ShardWriter,
    index_path,
    read_entries,
    read_summary,
)
from qwen3asr_train.errors import DataError, UserError

if TYPE_CHECKING:  # loads torch
    from data_prep.pseudo_models import Labeller
    from qwen3asr_train.decoding.transcriber import Transcript

_GROUP_BATCHES = 8  # batches whose audio is in memory at once, so that clips of like length meet


@dataclass(frozen=True)
class Plan:
    """How shards are labelled. ``settings`` stands for all that makes labels what they are."""

    out: Path
    model: str
    second: str | None
    filters: Filters
    settings: str
    overwrite: bool = False
    language: str | None = None
    max_new_tokens: int = 256
    max_piece_seconds: float = 30.0
    batch_seconds: float = 120.0

    @property
    def models(self) -> list[str]:
        """One folder or hub name, or two."""
        return [self.model, *([self.second] if self.second else [])]


@dataclass(frozen=True)
class Labelled:
    """What became of a shard; on disk, in ``OUT/pseudo_label/receipts``, what a resumed run goes
    by. ``source`` stands for the samples it was made from."""

    settings: str
    source: str
    samples: int
    seconds: float
    rejected: list[dict] = field(default_factory=list)
    silent: int = 0  # of the samples, those in which no words were heard


Report = Callable[[int, float, list[dict]], None]
"""Called after each group of samples: how many were kept, their seconds, and the rejected."""


class Claims:
    """Claims shards of one folder for this process. POSIX locks, which NFS carries too.

    They end when the process closes the file anywhere: one object at a time.
    """

    def __init__(self, out: Path):
        self._file = open(out / "pseudo_label" / "lock", "ab")  # noqa: SIM115 - as long as it lives

    @contextmanager
    def claim(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether ``name`` is this process's within the block; False when it is another's."""
        # A byte of the (empty) file stands for a name. Two names on one byte would only wait.
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):  # either, says POSIX
            yield False
            return
        except OSError as error:
            raise UserError(f"{self._file.name}: this file system cannot lock files "
                            f"({error.strerror}); choose an --out on another") from error
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)


def receipt_path(out: Path, shard: str) -> Path:
    """Where the receipt of a shard is kept."""
    return out / "pseudo_label" / "receipts" / f"{Path(shard).stem}.json"


def earlier(shard: str, plan: Plan) -> Labelled | None:
    """The receipt of an earlier run, when its shard is still whole.

    Raises DataError when the shard was made from other samples or with other settings, unless
    they may be overwritten, and when ``shard`` itself cannot be read.
    """
    try:
        text = receipt_path(plan.out, shard).read_text(encoding="utf-8")
        receipt = Labelled(**json.loads(text))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    target = plan.out / Path(shard).name
    changed = "with other settings" if receipt.settings != plan.settings else \
        f"from other samples than {shard} has now" if receipt.source != _fingerprint(shard) else ""
    if changed:
        if plan.overwrite:
            return None
        raise DataError(f"{target} was made {changed}; choose another folder, or write it anew "
                        "with --overwrite")
    return receipt if holds(target, receipt.samples) else None


def _fingerprint(shard: str) -> str:
    """Stands for the samples of a shard: their keys and places, by its index."""
    places = [(entry.key, entry.json_at, entry.audio_at) for entry in read_entries(shard)]
    return hashlib.sha256(repr(places).encode()).hexdigest()


def label_shard(shard: str, plan: Plan, labellers: list["Labeller"], report: Report,
                stopped: Callable[[], bool] = lambda: False) -> Labelled:
    """Label a shard that this process has claimed.

    Raises DataError when the shard cannot be read, UserError when the output cannot be written,
    Cancelled when it was ``stopped`` before the end.
    """
    read_summary(shard)  # a cut tar is found before hours are spent on it
    entries = read_entries(shard)
    target = plan.out / Path(shard).name
    writing = plan.out / "pseudo_label" / "writing" / target.stem
    samples, seconds, rejected, silent = 0, 0.0, [], 0
    try:
        shutil.rmtree(writing, ignore_errors=True)  # left by a process that was killed
        with ShardWriter(writing, max_samples=len(entries) + 1) as writer:
            for group in _loaded(_groups(entries, _GROUP_BATCHES * plan.batch_seconds)):
                if stopped():
                    raise Cancelled(f"{shard} given up")
                kept, kept_seconds, refused = 0, 0.0, []
                for sample, record, refusal in _labelled(group, plan, labellers):
                    if refusal is not None:
                        refused.append({"key": sample.entry.key, "shard": shard} | refusal)
                        continue
                    writer.write(sample.entry.key, record, sample.audio,
                                 sample.entry.audio_extension)
                    kept, kept_seconds = kept + 1, kept_seconds + sample.entry.duration
                    silent += record["task"] == "nonspeech"
                samples, seconds = samples + kept, seconds + kept_seconds
                rejected += refused
                report(kept, kept_seconds, refused)
        receipt = Labelled(plan.settings, _fingerprint(shard), samples, round(seconds, 6), rejected,
                           silent)
        _put_in_place(writing, target)
        (writing / "receipt").write_text(json.dumps(asdict(receipt), ensure_ascii=False),
                                         encoding="utf-8", errors="backslashreplace")
        os.replace(writing / "receipt", receipt_path(plan.out, shard))
        shutil.rmtree(writing)
    except OSError as error:
        raise UserError(f"cannot write to {plan.out}: {error.strerror or error}; whole shards are "
                        "kept, so mend this and run the same command again") from error
    return receipt


def _put_in_place(writing: Path, target: Path) -> None:
    """Move the finished shard, if any sample was kept, to its name; index first."""
    written = writing / "shard-000000.tar"
    if written.is_file():
        os.replace(index_path(written), index_path(target))
        os.replace(written, target)
    else:  # what other settings made
        target.unlink(missing_ok=True)
        index_path(target).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Sample:
    """One sample as it is read; ``waveform`` or ``problem`` is None."""

    entry: Entry
    record: dict
    audio: bytes
    waveform: np.ndarray | None
    problem: dict | None  # reason, detail


def _groups(entries: list[Entry], seconds: float) -> Iterator[list[Entry]]:
    """Consecutive entries of about so many seconds together."""
    group: list[Entry] = []
    for entry in entries:
        if group and sum(e.duration for e in group) + entry.duration > seconds:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _loaded(groups: Iterable[list[Entry]]) -> Iterator[list[_Sample]]:
    """Groups with their audio; the next is read and decoded while one is labelled."""
    reader = ShardReader()
    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for group in groups:
            behind, ahead = ahead, thread.submit(lambda g=group: [_load(reader, e) for e in g])
            if behind is not None:
                yield behind.result()
        if ahead is not None:
            yield ahead.result()
    reader.close()


def _load(reader: ShardReader, entry: Entry) -> _Sample:
    record, audio, waveform, problem = {}, None, None, None
    try:
        record, audio = reader.read(entry)
        if audio is None:
            problem = {"reason": "no audio"}
        else:
            waveform = decode(audio, name=entry.name)
    except DataError as error:
        problem = {"reason": "undecodable" if record else "unreadable",
                   "detail": str(error).removeprefix(f"{entry.name}: ")}
    except OSError as error:
        raise DataError(f"{entry.name}: {error.strerror or error}") from error
    return _Sample(entry, record, audio, waveform, problem)


def _labelled(group: list[_Sample], plan: Plan, labellers: list["Labeller"]
              ) -> Iterator[tuple[_Sample, dict | None, dict | None]]:
    """Each sample with its new record, or with why it is rejected, in order."""
    heard = [i for i, sample in enumerate(group) if sample.problem is None]
    labels = dict(zip(heard, _ask(labellers[0], [group[i] for i in heard]), strict=True))
    reasons = {i: plan.filters.reason(label, len(group[i].waveform) / SAMPLE_RATE,
                                      labellers[0].names_language)
               for i, label in labels.items()}
    passed = [i for i in heard if reasons[i] is None] if plan.second else []
    seconds = dict(zip(passed, _ask(labellers[-1], [group[i] for i in passed]), strict=True))
    for i, second in seconds.items():
        reasons[i] = plan.filters.disagreement(labels[i], second)
    for i, sample in enumerate(group):
        if sample.problem is not None:
            yield sample, None, sample.problem
            continue
        label, note = labels[i], _note(plan, labels[i], seconds.get(i))
        if reasons[i] is None:
            yield sample, new_record(sample.record, sample.entry, label, note), None
        else:
            said = {"reason": reasons[i], "language": label.language, "text": label.text}
            yield sample, None, said | note


def _ask(labeller: "Labeller", samples: list[_Sample]) -> list["Transcript"]:
    if not samples:
        return []
    import torch
    try:
        return labeller.label([sample.waveform for sample in samples])
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory is full; give the same command again with a smaller "
                        "--batch-seconds") from error


def _note(plan: Plan, label: "Transcript", second: "Transcript | None") -> dict:
    """Where a label comes from, and how sure it is."""
    note = {"model": plan.model, "confidence": round(label.confidence, 4)}
    if second is not None:
        note["second"] = {"model": plan.second, "language": second.language, "text": second.text,
                          "confidence": round(second.confidence, 4),
                          "agreement": round(agreement(label, second), 4)}
    return note


def new_record(record: dict, entry: Entry, label: "Transcript", note: dict) -> dict:
    """The record with its label in place of its text, which ``meta.original_text`` keeps.

    Word times, which are the old text's, go.
    """
    meta = dict(record["meta"]) if isinstance(record.get("meta"), dict) else {}
    if record["text"] and "pseudo_label" not in meta:
        meta["original_text"] = record["text"]
    meta["pseudo_label"] = note
    kept = {name: value for name, value in record.items() if name != "words"}
    return {"duration": entry.duration} | kept | {
        "text": label.text, "language": label.language, "meta": meta,
        "task": "asr" if label.text else "nonspeech"}
