"""Samples of any modality to packed batches: measure, read, decode, tokenise, pack."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qwen3asr_train.data import features, pictures
from qwen3asr_train.data.audio import SAMPLE_RATE, decode
from qwen3asr_train.data.collate import IGNORE
from qwen3asr_train.data.dataset import naming
from qwen3asr_train.data.packing import Item, OmniCell, Sample, Source, pack
from qwen3asr_train.data.partial import with_mistakes
from qwen3asr_train.data.pictures import PictureFormat
from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.data.positions import Vision
from qwen3asr_train.data.shards import Entry, ShardReader, frame_times, read_entries
from qwen3asr_train.data.tasks import Given, TaskBuilder, TokenSequence, pad_positions
from qwen3asr_train.errors import DataError, UserError

log = logging.getLogger(__name__)

SHARDS_KEPT = 64
"""Shards whose samples stay measured, so that a small corpus is measured once for all passes."""

SHOWN = 3
"""Unusable samples of a source that are named in the log; all are counted."""


class Example(NamedTuple):
    """One sample ready for packing: tokens, features ``(frames, 128)`` (None: no audio), patches of
    its picture or film and how these lie in tokens and time (None: neither), ids of what is said
    (None: no transcript)."""

    tokens: TokenSequence
    mel: Tensor | None
    patches: Tensor | None
    seen: Vision | None
    transcript: list[int] | None


class SampleReader:
    """Entries to records and examples."""

    def __init__(self, tasks: TaskBuilder, picture: PictureFormat):
        self.tasks, self.picture, self._shards = tasks, picture, ShardReader()
        self.measure_shard = lru_cache(SHARDS_KEPT)(self._measure_shard)

    def _measure_shard(self, shard: str) -> tuple[list[Sample], list[str]]:
        """The samples of a shard that can be used, and why the others cannot."""
        usable, unusable = [], []
        for entry in read_entries(shard):
            try:
                usable.append((entry, self.measure(entry)))
            except DataError as error:
                unusable.append(str(error))
        return usable, unusable

    def measure(self, entry: Entry) -> list[int]:
        """Tokens of a sample for each of its prompts, from its record and headers; DataError for
        one that lacks what its task needs."""
        record = self._shards.read_record(entry)
        image = film = audio = None
        if entry.image_at:
            size = pictures.size_of(self._shards.read_image(entry), entry.name)
            image = Vision(*self.picture.grid(*size, entry.name))
        if entry.frames_at:  # the others are as large, or are found out when they are decoded
            first = pictures.size_of(next(self._shards.read_frames(entry)), f"{entry.name} frame 1")
            film = Vision(*self.picture.film.grid(*first, entry.name), self._times(entry, record))
        if entry.audio_at:
            samples = max(round(entry.duration * SAMPLE_RATE), features.MIN_SAMPLES)
            audio = features.audio_tokens(samples // features.HOP)
        with naming(entry):
            return self.tasks.lengths(record, Given(image, film, audio))

    def example(self, entry: Entry, way: int) -> tuple[dict, Example]:
        """The record, and the sample with its prompt of number ``way``."""
        record, payload = self._shards.read(entry)
        mel = image = film = patches = audio = None
        if payload is not None:
            mel = features.log_mel(decode(payload, name=entry.name))
            audio = features.audio_tokens(len(mel))
        if entry.image_at:
            picture = pictures.decode(self._shards.read_image(entry), entry.name)
            self.picture.grid(*picture.size, entry.name)  # refuses what is too narrow
            patches, grid = self.picture.patches(picture)
            image = Vision(*grid)
        if entry.frames_at:
            patches, grid = self.picture.film_patches(self._frames(entry))
            film = Vision(*grid, self._times(entry, record))
        with naming(entry):
            tokens = self.tasks.build(record, Given(image, film, audio), way)
            return record, Example(tokens, mel, patches, image or film,
                                   self.tasks.transcript(record))

    def _times(self, entry: Entry, record: dict) -> tuple[float, ...]:
        """When each patch of a film begins to be shown, in seconds."""
        return frame_times(record, len(entry.frames_at), entry.name)[::self.picture.frames]

    def _frames(self, entry: Entry) -> list[Image.Image]:
        """A film's frames; DataError for one that does not decode or is not as large as the first.
        """
        shown = []
        for number, payload in enumerate(self._shards.read_frames(entry), 1):
            name = f"{entry.name} frame {number}"
            shown.append(pictures.decode(payload, name))
            if shown[-1].size != shown[0].size:
                raise DataError(f"{name}: {shown[-1].width} x {shown[-1].height} pixels, the first "
                                f"frame has {shown[0].width} x {shown[0].height}")
        return shown


def measured(name: str, shards: Sequence[str], reader: SampleReader, most_tokens: int, seed: int,
             shards_per_group: int = 16, most_bad: float = math.inf) -> tuple[Source, list[str]]:
    """The source of all samples that can be used and have at most ``most_tokens``, and why others
    cannot be used. Longer ones wait for a phase with longer rows. Both are counted in the log.

    Reads every record and picture's header once, and keeps one number of each shard. UserError
    for more than ``most_bad`` samples that cannot be used.
    """
    def fitting(shard: str) -> list[Sample]:
        usable, _ = reader.measure_shard(shard)
        return [(entry, lengths) for entry, lengths in usable if max(lengths) <= most_tokens]

    tokens, unusable, samples, longer = {}, [], 0, 0
    for shard in shards:
        usable, bad = reader.measure_shard(shard)
        kept = fitting(shard)
        tokens[shard] = sum(sum(lengths) / len(lengths) for _, lengths in kept)
        samples, longer = samples + len(usable) + len(bad), longer + len(usable) - len(kept)
        unusable += bad
        if len(unusable) > most_bad:
            break
    if unusable:
        log.warning("data.sources.%s: %d of %d samples cannot be used: %s%s", name, len(unusable),
                    samples, "; ".join(unusable[:SHOWN]), " …" if len(unusable) > SHOWN else "")
    if len(unusable) > most_bad:
        raise UserError(f"data.sources.{name}: more unusable samples than data.max_bad_samples "
                        f"allows; {unusable[0]}")
    if longer:
        log.info("data.sources.%s: %d of %d samples are longer than row_tokens=%d", name, longer,
                 samples, most_tokens)
    return Source(name, tokens, fitting, seed, shards_per_group), unusable


class OmniDataset(Dataset):
    """Maps an :class:`OmniCell` to ``{"inputs": tensors, "meta": what is not for the model}``.

    ``meta`` as of ``SpeechDataset`` (``entries``, ``padding``, ``target_tokens``, ``step``,
    ``skipped``), and ``source_tokens``, how many tokens came from each source.
    ``wrong_token_share``: of the tokens of an answer about media, those that others, drawn from
    ``seed``, stand in place of when the next is to be told.
    """

    def __init__(self, reader: SampleReader, row_tokens: int, wrong_token_share: float = 0.0,
                 seed: int = 0):
        self.reader, self.row_tokens = reader, row_tokens
        self.wrong_token_share, self.seed = wrong_token_share, seed

    def __getitem__(self, cell: OmniCell) -> dict:
        kept: list[Item] = []
        examples: list[Example] = []
        skipped: list[str] = []
        for item in cell.items:
            try:
                _, example = self.reader.example(item.entry, item.way)
                if len(example.tokens.ids) > self.row_tokens:
                    raise DataError(f"{item.entry.name}: {len(example.tokens.ids)} tokens, "
                                    f"row_tokens={self.row_tokens}")
            except DataError as error:
                skipped.append(str(error))
                continue
            kept.append(item)
            examples.append(self._with_mistakes(example, item))
        sources = Counter()
        for item, example in zip(kept, examples, strict=True):
            sources[item.source] += len(example.tokens.ids)
        inputs = collate(examples, self.reader.tasks.pad_id, self.reader.picture, self.row_tokens)
        used = sum(sources.values())
        return {"inputs": inputs, "meta": {
            "entries": [item.entry for item in kept],
            "padding": 1 - used / inputs["input_ids"].numel(),
            "target_tokens": sum(len(example.tokens.labels) - example.tokens.labels.count(IGNORE)
                                 for example in examples),
            "source_tokens": dict(sources), "step": cell.step, "skipped": skipped}}

    def _with_mistakes(self, example: Example, item: Item) -> Example:
        """Some tokens of the answer, as what the next stands behind, are others."""
        tokens = example.tokens
        is_text_alone = example.mel is None and example.seen is None
        if not self.wrong_token_share or is_text_alone:
            return example
        ids = with_mistakes(
            tokens.ids, len(tokens.ids) - tokens.answer, self.wrong_token_share,
            self.reader.tasks.words,
            sample_rng(self.seed, item.epoch, f"{item.entry.drawn_as}/mistakes"))
        return example._replace(tokens=tokens._replace(ids=ids))


def collate(examples: Sequence[Example], pad_id: int, picture: PictureFormat, row_tokens: int
            ) -> dict[str, Tensor]:
    """Examples -> packed rows of at most ``row_tokens``, as :class:`models.omni.OmniModel` takes
    them; without any example, one padded place without a target."""
    rows = pack([len(example.tokens.ids) for example in examples], row_tokens)
    packed = [[examples[i] for i in row] for row in rows]
    length = max((sum(len(e.tokens.ids) for e in row) for row in packed), default=1)
    ids = torch.full((max(1, len(rows)), length), pad_id)
    labels = torch.full_like(ids, IGNORE)
    for number, row in enumerate(packed):
        joined = torch.tensor([token for e in row for token in e.tokens.ids])
        ids[number, :len(joined)] = joined
        labels[number, :len(joined)] = torch.tensor([t for e in row for t in e.tokens.labels])
    positions = torch.stack([pad_positions([e.tokens.positions for e in row], length)
                             for row in packed or [[]]], 1)
    return {"input_ids": ids, "labels": labels, "position_ids": positions} | media(
        [example for row in packed for example in row], picture)


def media(examples: Sequence[Example], picture: PictureFormat) -> dict[str, Tensor]:
    """Audio, transcripts, pictures and films in the order of the examples, as the model takes them;
    a silent clip and a grey picture where there is none."""
    heard = [example for example in examples if example.mel is not None]
    chunked = [features.chunk(example.mel) for example in heard] or \
        [features.chunk(torch.zeros(features.CHUNK_FRAMES, features.MEL_BINS))]
    seen = [(e.patches, e.seen) for e in examples if e.patches is not None] or \
        [(torch.zeros(picture.merge ** 2, 3 * picture.frames * picture.patch ** 2), Vision(1, 1))]
    spoken = [example.transcript for example in heard]
    return {
        "input_features": torch.cat([chunks for chunks, _ in chunked]),
        "chunk_lengths": torch.cat([lengths for _, lengths in chunked]),
        "clip_chunks": torch.tensor([len(lengths) for _, lengths in chunked]),
        "clip_tokens": torch.tensor([features.audio_tokens(len(e.mel)) for e in heard],
                                    dtype=torch.long),
        "transcripts": torch.tensor([token for ids in spoken for token in ids or ()],
                                    dtype=torch.long),
        "transcript_lengths": torch.tensor([-1 if ids is None else len(ids) for ids in spoken],
                                           dtype=torch.long),
        "pixel_values": torch.cat([patches for patches, _ in seen]),
        "grid_thw": torch.tensor([[len(times), picture.merge * rows, picture.merge * columns]
                                  for _, (rows, columns, times) in seen]),
    }


def prompts(examples: Iterable[Example], pad_id: int, picture: PictureFormat) -> dict[str, Tensor]:
    """What answers start from: ``prompt_ids``, ``prompt_mask`` ``(rows, length)`` padded on the
    left, ``prompt_positions`` ``(3, rows, length)``, and the media."""
    examples = list(examples)
    sizes = [len(e.tokens.ids) - e.tokens.answer for e in examples]
    length = max(sizes)
    ids = np.full((len(examples), length), pad_id)
    positions = torch.zeros(3, len(examples), length)
    for row, (example, size) in enumerate(zip(examples, sizes, strict=True)):
        ids[row, length - size:] = example.tokens.ids[:size]
        positions[:, row, length - size:] = example.tokens.positions[1:, :size]
    mask = torch.arange(length) >= length - torch.tensor(sizes)[:, None]
    return {"prompt_ids": torch.from_numpy(ids), "prompt_mask": mask.long(),
            "prompt_positions": positions} | media(examples, picture)
