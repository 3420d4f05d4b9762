"""Shards to the same shards with a teacher's word times: audio byte for byte, ``words`` replaced.

In ``OUT``: a shard ``shard-NNNNNN.tar`` with its index for the *n*-th of the source, whole or not
at all; ``align/NNNNNN.json``, its receipt, by which a stopped run goes on; and ``rejected.jsonl``,
one row a sample left out.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_prep.align_teachers.filters import TimeFilters, matched
from data_prep.align_teachers.times import Words
from data_prep.samples import holds, write_atomically
from qwen3asr_train.data.shards import (
    Entry,
    ShardReader,
    ShardWriter,
    find_shards,
    read_entries,
    read_summary,
)
from qwen3asr_train.errors import DataError, UserError


class Sample(NamedTuple):
    """What a teacher is given."""

    entry: Entry
    record: dict
    audio: bytes


Teacher = Callable[[Sequence[Sample]], Sequence[Words | str]]
"""Samples to their words, or to the reason why there are none."""


@dataclass
class Receipt:
    """What became of a shard. ``settings``: all that makes it what it is."""

    settings: dict
    source: str
    samples: int = 0
    words: int = 0
    doubts: dict[str, int] = field(default_factory=dict)
    rejected: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """All shards together: samples and words kept, doubted words and rejected samples by reason."""

    samples: int
    words: int
    doubts: Counter
    rejected: Counter

    def text(self, out: Path) -> str:
        """One line."""
        def listed(counts: Counter) -> str:
            return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"

        return (f"wrote times of {self.samples} samples ({self.words} words) to {out}; doubted "
                f"words: {listed(self.doubts)}; rejected samples: {listed(self.rejected)}"
                + (f", listed in {out / 'rejected.jsonl'}" if self.rejected else ""))


def relabel(patterns: Sequence[str], out: Path, teacher: Teacher, filters: TimeFilters,
            settings: dict, *, second: Teacher | None = None, group: int = 64,
            overwrite: bool = False, progress: Callable[[str], None] | None = None) -> Summary:
    """Every shard of ``patterns`` with the times of ``teacher``; ``second``: another one, whose
    agreement is asked for. ``group``: samples that a teacher is given at a time.

    Raises UserError when ``out`` was made with other settings.
    """
    receipts = []
    settings = settings | {"filters": asdict(filters)}
    for number, shard in enumerate(find_shards(patterns)):
        path = out / "align" / f"{number:06d}.json"
        receipt = None if overwrite else _earlier(path, shard, settings, out, number)
        if receipt is None:
            receipt = _write(shard, number, out, teacher, second, filters, settings, group)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(asdict(receipt), ensure_ascii=False))
        receipts.append(receipt)
        if progress is not None:
            progress(f"{shard}: {receipt.samples} samples, {len(receipt.rejected)} rejected")
    rejected = [row for receipt in receipts for row in receipt.rejected]
    _list_rejected(out / "rejected.jsonl", rejected)
    if not any(receipt.samples for receipt in receipts):
        reasons = Counter(row["reason"] for row in rejected)
        raise UserError(f"no sample has times: {reasons.most_common(3)}, listed in "
                        f"{out / 'rejected.jsonl'}")
    return Summary(sum(r.samples for r in receipts), sum(r.words for r in receipts),
                   sum((Counter(r.doubts) for r in receipts), Counter()),
                   Counter(row["reason"] for row in rejected))


def _earlier(path: Path, shard: str, settings: dict, out: Path, number: int) -> Receipt | None:
    """The receipt of an earlier run whose shard is whole."""
    if not path.is_file():
        if (out / f"shard-{number:06d}.tar").is_file():
            raise UserError(f"{out} holds shards that this command did not write; choose another "
                            "folder")
        return None
    receipt = Receipt(**json.loads(path.read_text(encoding="utf-8")))
    wanted = json.loads(json.dumps(settings))
    if receipt.settings != wanted or receipt.source != _source(shard):
        raise UserError(f"{out / f'shard-{number:06d}.tar'} was made with other settings or from "
                        "another shard; choose another folder, or write all anew with --overwrite")
    return receipt if holds(out / f"shard-{number:06d}.tar", receipt.samples) else None


def _source(shard: str) -> str:
    summary = read_summary(shard)
    return f"{Path(shard).name}, {summary.samples} samples, {summary.seconds:.3f} s"


def _write(shard: str, number: int, out: Path, teacher: Teacher, second: Teacher | None,
           filters: TimeFilters, settings: dict, group: int) -> Receipt:
    receipt, doubts = Receipt(settings, _source(shard)), Counter()
    entries = read_entries(shard)
    with ShardWriter(out, first=number, max_samples=len(entries) + 1) as writer:
        for samples in _groups(entries, group, receipt):
            others = second(samples) if second else [None] * len(samples)
            for sample, words, other in zip(samples, teacher(samples), others, strict=True):
                reason, kept = _judge(sample, words, other, filters, doubts)
                if reason is not None:
                    receipt.rejected.append({"key": sample.entry.key, "shard": shard,
                                             "reason": reason})
                    continue
                writer.write(sample.entry.key, sample.record | {"words": kept}, sample.audio,
                             sample.entry.audio_extension)
                receipt.samples += 1
                receipt.words += sum(start is not None for _, start, _ in kept)
    receipt.doubts = dict(doubts)
    return receipt


def _groups(entries: list[Entry], group: int, receipt: Receipt) -> Iterator[list[Sample]]:
    """Samples with speech and audio, so many at a time; others are rejected."""
    reader, samples = ShardReader(), []
    for entry in entries:
        try:
            record, audio = reader.read(entry)
            if audio is None or not record["text"].strip():
                raise DataError("no audio" if audio is None else "no text")
        except DataError as error:
            reason = str(error).removeprefix(f"{entry.name}: ")
            receipt.rejected.append({"key": entry.key, "shard": entry.shard, "reason": reason})
            continue
        samples.append(Sample(entry, record, audio))
        if len(samples) == group:
            yield samples
            samples = []
    if samples:
        yield samples
    reader.close()


def _judge(sample: Sample, words: Words | str, other: Words | str | None, filters: TimeFilters,
           doubts: Counter) -> tuple[str | None, Words]:
    """The reason to reject a sample (or None), and its words."""
    if isinstance(words, str):
        return words, []
    try:
        words = matched(words, sample.record["text"])
        if isinstance(other, str):
            return f"second teacher: {other}", []
        other = None if other is None else matched(other, sample.record["text"])
    except DataError as error:
        return str(error), []
    kept, doubted = filters.believed(words, sample.entry.duration, other)
    doubts.update(doubted)
    if filters.rejects(kept):
        return f"too many doubted words, most often {doubted.most_common(1)[0][0]}" if doubted \
            else "no words", []
    return None, kept


def _list_rejected(path: Path, rows: list[dict]) -> None:
    if rows:
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)
