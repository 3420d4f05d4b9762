"""Samples with word times to batches of the forced aligner."""

from typing import NamedTuple

import numpy as np
import torch

from qwen3asr_train.data import augment, features
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.collate import Example, collate, padding_share
from qwen3asr_train.data.dataset import Sample, SpeechDataset, Windows, naming
from qwen3asr_train.data.joins import Joiner
from qwen3asr_train.data.packing import Layout, apart
from qwen3asr_train.data.plan import Cell, sample_rng
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.data.slots import (
    EVERYWHERE,
    SlotOptions,
    SlotPrompts,
    Times,
    draw_slots,
    unit_times,
)
from qwen3asr_train.data.teacher_noise import TeacherNoise
from qwen3asr_train.errors import DataError

NO_NOISE = TeacherNoise()


class SlotExample(NamedTuple):
    """One clip: features ``(frames, 128)``, token ids, and for each of them the time class of a
    slot or -100."""

    features: torch.Tensor
    ids: list[int]
    labels: list[int]


def collate_slots(examples: list[SlotExample], pad_id: int, rows: list[list[int]] | None = None
                  ) -> dict[str, torch.Tensor]:
    """Examples -> ``input_ids``, ``labels`` ``(rows, length)`` padded on the right, and the rest as
    :func:`qwen3asr_train.data.collate.collate` has it."""
    batch = collate([Example(e.features, e.ids, []) for e in examples], pad_id, rows)
    for labels, row in zip(batch["labels"], rows or apart(examples), strict=True):
        found = [label for i in row for label in examples[i].labels]
        labels[:len(found)] = torch.tensor(found)
    return batch


class AlignmentDataset(SpeechDataset):
    """Maps a :class:`Cell` to ``{"inputs", "meta"}`` like :class:`SpeechDataset`, with slots as
    ``options`` draws them. ``target_tokens`` of ``meta`` counts slots whose time is known.

    ``noise`` is a teacher's on the times. ``with_units``: ``meta`` also has the ``units`` of each
    sample and their ``times``.
    """

    def __init__(self, prompts: SlotPrompts, *, seed: int = 0, options: SlotOptions = EVERYWHERE,
                 augmentation: augment.Augmentation = augment.IDENTITY,
                 joiner: Joiner | None = None, windows: Windows | None = None,
                 layout: Layout | None = None, noise: TeacherNoise = NO_NOISE,
                 with_units: bool = False):
        super().__init__(prompts, seed=seed, augmentation=augmentation, joiner=joiner,
                         windows=windows, layout=layout)
        self.options, self.noise, self.with_units = options, noise, with_units

    def __getitem__(self, cell: Cell) -> dict:
        examples, kept, units, times, skipped = [], [], [], [], []
        for entry in cell.entries:
            try:
                sample = self.sample(entry, cell.epoch)
                with naming(entry):
                    found = self.units_of(sample.record)
                    examples.append(self.example(sample, *found, self._slot_rng(entry, cell.epoch)))
            except DataError as error:
                skipped.append(str(error))
                continue
            kept.append(entry)
            units.append(found[0])
            times.append(found[1])
        examples = examples or [self._blank()]
        sizes = [len(example.ids) for example in examples]
        rows = self.layout(sizes) if self.layout else None
        inputs = collate_slots(examples, self.prompts.pad_id, rows)
        if self.windows is not None:
            inputs["window_chunks"] = torch.tensor(self.windows.draw(self.seed, cell.step))
        meta = {"entries": kept, "padding": padding_share(sizes, rows or apart(sizes)),
                "step": cell.step, "skipped": skipped,
                "target_tokens": int((inputs["labels"] >= 0).sum())}
        if self.with_units:
            meta |= {"units": units, "times": times}
        return {"inputs": inputs, "meta": meta}

    def _slot_rng(self, entry: Entry, epoch: int) -> np.random.Generator:
        return sample_rng(self.seed, epoch, f"{entry.drawn_as}/slots")

    def _read(self, entry: Entry) -> tuple[dict, np.ndarray]:
        record, waveform = super()._read(entry)
        if not record.get("words"):
            raise DataError(f"{entry.name}: no word times ('words')")
        seconds = len(waveform) / SAMPLE_RATE
        return self.noise.of(record, seconds, self.seed, entry.key), waveform

    def units_of(self, record: dict) -> tuple[list[str], list[Times]]:
        """What is aligned of a record, and when it is said."""
        units = self.prompts.units(record["text"], record.get("language"))
        return units, unit_times(self.prompts.processor, units, record["words"])

    def example(self, sample: Sample, units: list[str], times: list[Times],
                rng: np.random.Generator) -> SlotExample:
        """A sample with drawn slots."""
        if self.options.prefix_share and rng.random() < self.options.prefix_share:
            kept = int(rng.integers(1, len(units) + 1))
            units, times = units[:kept], times[:kept]
        slots = draw_slots(self.options, sample.record["text"], units, times, rng)
        tokens = features.audio_tokens(len(sample.features))
        ids = self.prompts.ids(tokens, units, slots)
        return SlotExample(sample.features, ids, self.prompts.labels(ids, times, slots))

    def _blank(self) -> SlotExample:
        mel = features.log_mel(np.zeros(features.MIN_SAMPLES, dtype=np.float32))
        ids = self.prompts.ids(features.audio_tokens(len(mel)), [], [])
        return SlotExample(mel, ids, [-100] * len(ids))
