"""The engine of every ``python -m data_prep.X``: a stream of items to shards, in parallel.

Items are cut into blocks in the order in which they come, and block *n* becomes shard *n*. So the
shards do not depend on the number of workers, each is written whole or not at all, and a run that
was stopped goes on by leaving out the blocks that have a receipt. In ``OUT``::

    shard-000000.tar, shard-000000.index.jsonl, …    (below train/, validation/ … when split)
    bad.jsonl                                        {"key", "audio", "reason"} per item left out
    convert/settings.json, convert/000000.json, …    settings and receipts, for resuming

A block whose items are all bad leaves a gap in the numbers. Two items with the same key: the later
one gets ``-2``, ``-3`` … in the order of the source. One run at a time may write into ``OUT``.
"""

import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_prep.samples import (
    Bad,
    Block,
    FileSpan,
    Item,
    Receipt,
    bad_item,
    holds,
    make_key,
    record_of,
    start_worker,
    write_atomically,
    write_block,
)
from qwen3asr_train.data.shards import index_path
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.languages import known_language, language_name

__all__ = ["AUDIO_FORMATS", "Bad", "FileSpan", "Item", "Summary", "convert", "make_key"]

AUDIO_FORMATS = ("flac", "wav", "keep")
BLOCK_BYTES = 128 * 1024 * 1024
"""A block is also closed by this much audio in memory (items that carry their own bytes)."""

_SPECIAL_TOKEN = re.compile(r"<\||<asr_text>|<timestamp>")


@dataclass(frozen=True)
class Summary:
    """What is in ``out`` now; ``resumed`` of the blocks were there before. ``splits``: samples of
    each; ``no_language``: transcripts without a language."""

    out: Path
    samples: int
    seconds: float
    shards: int
    bad: int
    resumed: int
    bad_list: Path | None  # None when nothing is bad
    splits: Mapping[str, int]
    no_language: int


def convert(items: Iterable[Item | Bad], out: str | Path, *, source: str, workers: int = 1,
            shard_size: int = 1000, audio_format: str = "flac", max_bad: int | None = None,
            resume: bool = True, language: str | None = None, any_language: bool = False,
            splits: Mapping[str, float] | None = None,
            progress: Callable[[Receipt], None] | None = None) -> Summary:
    """Write ``items`` as shards of at most ``shard_size`` samples into ``out``.

    A bad item is left out and listed. ``language`` is for items that name none; ``any_language``
    lets languages pass that the released models do not know. ``splits`` is ``{name: share}``: an
    item goes to a subfolder by a hash of its speaker (``meta["speaker"]``), else of its recording
    if it is a segment, else of its key; the rest goes to ``train``. ``progress`` is called after
    each block. ``resume=False`` first removes what an earlier conversion wrote to ``out``.

    Raises UserError when ``out`` holds something else, or shards from other items or settings;
    when it cannot be written; when more than ``max_bad`` items are bad; when no item is good.
    """
    out = Path(out)
    settings = {"source": source, "shard_size": shard_size, "audio_format": audio_format,
                "language": language, "any_language": any_language, "splits": dict(splits or {})}
    labels = _Labels(language, any_language)
    samples = seconds = shards = bad = resumed = no_language = 0
    receipts: set[Path] = set()
    of_splits = dict.fromkeys([*settings["splits"], "train"], 0) if splits else {}
    try:
        _prepare(out, settings, resume)
        cutter = _Cutter(out, settings, labels)
        with closing(_written(cutter.blocks(items), workers)) as results:
            for block, receipt, was_there in results:
                receipts.add(block.receipt)
                if splits:
                    of_splits[block.split] += receipt.samples
                samples, seconds = samples + receipt.samples, seconds + receipt.seconds
                shards, bad = shards + bool(receipt.samples), bad + len(receipt.bad)
                resumed, no_language = resumed + was_there, no_language + receipt.no_language
                if progress is not None:
                    progress(receipt)
                if max_bad is not None and bad > max_bad:
                    raise UserError(f"{bad} bad items, more than the {max_bad} allowed; they are "
                                    f"listed in {_list_bad(out)}")
        if left_over := set(_receipts(out)) - receipts:
            raise UserError(f"{out} holds {len(left_over)} shards of an earlier run beyond the "
                            "items of this one; choose another folder, or write all anew "
                            "with --overwrite")
        bad_list = _list_bad(out)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    if not samples:
        raise UserError(f"nothing was written: all {bad} items are bad, listed in {bad_list}"
                        if bad else "nothing was written: the source holds no items")
    return Summary(out, samples, seconds, shards, bad, resumed, bad_list, of_splits, no_language)


class _Labels:
    """Checks text and language of an item; the audio is the workers' part."""

    def __init__(self, default: str | None, any_language: bool):
        self._known: dict[str, str | None] = {}
        self._any = any_language
        try:
            self._default = self._name(default) if default else None
        except DataError as error:
            raise UserError(f"--language: {error}") from error

    def _name(self, value: str) -> str | None:
        if value not in self._known:
            try:
                self._known[value] = (known_language if self._any else language_name)(value)
            except ValueError as error:
                raise DataError(f"unknown language {value!r} (--any-language lets it pass)"
                                ) from error
        return self._known[value]

    def checked(self, item: Item) -> Item:
        """``item`` with plain text and an English language name. Raises DataError."""
        if not isinstance(item.text, str):
            raise DataError(f"the text is a {type(item.text).__name__}, not a string")
        if not isinstance(item.language, str | None):
            raise DataError(f"the language is a {type(item.language).__name__}, not a string")
        text, language = item.text.strip(), self._default
        says_none = False
        if item.language is not None and item.language.strip():
            language = self._name(item.language)
            says_none = language is None
        if "<asr_text>" in text:
            text, language = self._split(text)
            says_none = language is None
        if found := _SPECIAL_TOKEN.search(f"{text} {item.context or ''} {item.entities or ''}"):
            raise DataError(f"text, context or entities hold the special token {found[0]!r}")
        task = "nonspeech" if says_none and not text and item.task == "asr" else item.task
        return replace(item, text=text, language=language, task=task)

    def _split(self, text: str) -> tuple[str, str | None]:
        """The words and the language of ``language English<asr_text>the words``."""
        head, _, words = text.partition("<asr_text>")
        tag = head.strip().split(maxsplit=1)
        if len(tag) != 2 or tag[0] != "language":
            raise DataError("text in front of <asr_text> that is not 'language NAME'")
        return words.removesuffix("<|im_end|>").strip(), self._name(tag[1])


@dataclass
class _Open:
    """The block of one split that is being filled."""

    number: int = 0
    items: list[Item] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    audio_bytes: int = 0


class _Cutter:
    """Cuts a stream of items into blocks, by order alone."""

    def __init__(self, out: Path, settings: dict, labels: _Labels):
        self.out, self.settings, self.labels = out, settings, labels
        self._keys: set[int] = set()  # 64-bit hashes: half the memory of the keys
        self._repeats: dict[str, int] = {}

    def blocks(self, items: Iterable[Item | Bad]) -> Iterator[Block]:
        """All blocks, in the order in which they fill up."""
        filling: dict[str, _Open] = {}
        for item in items:
            split = self._split_of(item)
            current = filling.setdefault(split, _Open())
            checked = self._checked(item)
            if isinstance(checked, Bad):
                current.bad.append(checked)
                continue
            current.items.append(checked)
            current.audio_bytes += _held_bytes(checked)
            if (len(current.items) >= self.settings["shard_size"]
                    or current.audio_bytes >= BLOCK_BYTES):
                filling[split] = _Open(current.number + 1)
                yield self._block(split, current)
        for split, current in filling.items():
            if current.items or current.bad:
                yield self._block(split, current)

    def _checked(self, item: Item | Bad) -> Item | Bad:
        if isinstance(item, Bad):
            return item
        try:
            checked = self.labels.checked(item)
            record_of(checked, self.settings["source"])
        except DataError as error:
            return bad_item(item, error)
        return replace(checked, key=self._unique(make_key(item.key)))

    def _unique(self, key: str) -> str:
        unique = key
        while (digest := int.from_bytes(hashlib.blake2b(unique.encode("utf-8", "surrogatepass"),
                                                        digest_size=8).digest())) in self._keys:
            self._repeats[key] = self._repeats.get(key, 1) + 1
            unique = f"{key}-{self._repeats[key]}"
        self._keys.add(digest)
        return unique

    def _split_of(self, item: Item | Bad) -> str:
        if not self.settings["splits"]:
            return ""
        group = item.key
        if isinstance(item, Item):
            is_segment = item.start is not None and isinstance(item.audio, str)
            group = item.meta.get("speaker") or (item.audio if is_segment else item.key)
        digest = hashlib.sha256(str(group).encode("utf-8", "surrogatepass")).digest()
        position = int.from_bytes(digest[:8]) / 2**64
        for name, share in self.settings["splits"].items():
            if position < share:
                return name
            position -= share
        return "train"

    def _block(self, split: str, block: _Open) -> Block:
        folder = self.out / split
        return Block(split, block.number, tuple(block.items), tuple(block.bad), folder,
                     self.out / "convert" / split / f"{block.number:06d}.json",
                     self.settings["source"], self.settings["audio_format"], _digest(block))


def _held_bytes(item: Item) -> int:
    if isinstance(item.audio, tuple):
        return np.asarray(item.audio[0]).nbytes
    return len(item.audio) if isinstance(item.audio, bytes) else 0


def _digest(block: _Open) -> str:
    """Says whether a block is the same as in an earlier run (a file is known by its path)."""
    digest = hashlib.sha256(repr(block.bad).encode("utf-8", "surrogatepass"))
    for item in block.items:
        audio = item.audio
        if isinstance(audio, tuple):
            digest.update(np.ascontiguousarray(audio[0]).tobytes())
            audio = audio[1]
        elif isinstance(audio, bytes):
            digest.update(audio)
            audio = len(audio)
        digest.update(repr(replace(item, audio=audio)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _written(blocks: Iterable[Block], workers: int) -> Iterator[tuple[Block, Receipt, bool]]:
    """Blocks as they are done, with their receipts, and whether they were done before."""
    if workers <= 1:
        for block in blocks:
            earlier = _earlier(block)
            yield block, earlier or write_block(block), earlier is not None
        return
    # spawn: the main process may have threads (progress bar, pyarrow), which a fork can deadlock.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, start_worker, (stop,))
    pending = {}
    try:
        for block in blocks:
            if earlier := _earlier(block):
                yield block, earlier, True
                continue
            pending[pool.submit(write_block, block)] = replace(block, items=())
            if len(pending) > workers:  # one block waits, so that no worker does
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result(), False
        for future in as_completed(pending):
            yield pending[future], future.result(), False
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _earlier(block: Block) -> Receipt | None:
    """The receipt of an earlier run, when the shard is still whole; UserError if it is another."""
    receipt = Receipt.read(block.receipt)
    if receipt is None:
        return None
    shard = block.folder / f"shard-{block.number:06d}.tar"
    if receipt.digest != block.digest:
        raise UserError(f"{shard} was made from other items than those it would hold now (rows "
                        "added, removed or changed); choose another folder, or write all anew "
                        "with --overwrite")
    return receipt if holds(shard, receipt.samples) else None


def _prepare(out: Path, settings: dict, resume: bool) -> None:
    """Check that ``out`` is new or ours, and clear what a killed run left half done."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder to write shards to")
    path = out / "convert" / "settings.json"
    splits = ("train", *settings["splits"]) if settings["splits"] else ("",)
    if not path.is_file():
        for split in splits:
            if any((out / split).glob("shard-*.tar")):
                raise UserError(f"{out / split} holds shards that no data_prep command wrote; "
                                "choose another folder")
    elif not resume:
        _remove(out)
    elif (earlier := json.loads(path.read_text(encoding="utf-8"))) != settings:
        changed = [name for name in settings if settings[name] != earlier.get(name)]
        raise UserError(f"{out} was made with another {' and '.join(changed)}; use the same, "
                        "choose another folder, or write all anew with --overwrite")
    for split in splits:
        (out / "convert" / split).mkdir(parents=True, exist_ok=True)
        for partial in (*(out / split).glob("shard-*.partial-*"),
                        *(out / "convert" / split).glob("*.partial-*")):
            partial.unlink()
    write_atomically(path, json.dumps(settings))


def _receipts(out: Path) -> list[Path]:
    """All receipts, by split and number."""
    return sorted((out / "convert").glob("**/[0-9]*.json"))


def _remove(out: Path) -> None:
    """Remove what an earlier conversion wrote, by its receipts, and nothing else."""
    for receipt in _receipts(out):
        split = receipt.parent.relative_to(out / "convert")
        shard = out / split / f"shard-{receipt.stem}.tar"
        for path in (shard, index_path(shard), receipt):
            path.unlink(missing_ok=True)
    (out / "bad.jsonl").unlink(missing_ok=True)


def _list_bad(out: Path) -> Path | None:
    """Write ``bad.jsonl`` from the receipts; None, and no file, when nothing is bad."""
    path, partial = out / "bad.jsonl", out / "bad.jsonl.partial"
    listed = 0
    with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        for receipt in _receipts(out):
            for bad in Receipt.read(receipt).bad:
                file.write(json.dumps(bad, ensure_ascii=False) + "\n")
                listed += 1
    if not listed:
        partial.unlink()
        path.unlink(missing_ok=True)
        return None
    partial.replace(path)
    return path

