"""Cells of the batch plan to batches: read, decode, augment, tokenise, collate."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from qwen3asr_train.data import augment, features
from qwen3asr_train.data.audio import SAMPLE_RATE, decode
from qwen3asr_train.data.augment_join import concatenate
from qwen3asr_train.data.collate import Example, collate, padding_share
from qwen3asr_train.data.context import ContextBuilder, DrawnContext
from qwen3asr_train.data.joins import Joiner
from qwen3asr_train.data.packing import Layout, apart
from qwen3asr_train.data.partial import Part, Partial, own_places, with_mistakes
from qwen3asr_train.data.plan import Cell, sample_rng
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.data.questions import Questions
from qwen3asr_train.data.shards import Entry, ShardReader, is_text
from qwen3asr_train.errors import DataError, UserError

log = logging.getLogger(__name__)

NO_QUESTIONS = Questions()
WHOLE = Partial()


@dataclass(frozen=True)
class Sample:
    """One entry as it is met: its ``waveform`` ``(samples,)`` and ``features`` ``(frames, 128)``,
    what of it is ``part`` of the sample, the ``context``, and the ``question`` with its answer
    (None: to be transcribed)."""

    record: dict
    waveform: np.ndarray
    features: torch.Tensor
    part: Part
    question: tuple[str, str] | None
    context: DrawnContext


class SpeechDataset(Dataset):
    """Maps a :class:`Cell` to ``{"inputs": tensors, "meta": what is not for the model}``.

    ``meta``: ``entries``, ``records``, ``contexts`` and ``questions`` of the samples, ``padding``
    (share), ``target_tokens``, ``skipped`` (messages of samples that could not be used). A cell
    without a usable sample becomes half a second of silence without targets, so that every rank
    still takes part in the step.

    ``layout``: which samples share a row of the language model; None: each has its own.
    ``with_prompts``: also what generation starts from; that ends with what ``told_language`` says
    of the record, if it says a language. ``with_examples``: ``meta`` also has the ``examples`` that
    the batch was made of, to make others of them, and the ``waveforms``.
    """

    def __init__(self, prompts: PromptBuilder, *, seed: int = 0,
                 augmentation: augment.Augmentation = augment.IDENTITY,
                 questions: Questions = NO_QUESTIONS, contexts: ContextBuilder | None = None,
                 partial: Partial = WHOLE, joiner: Joiner | None = None,
                 windows: "Windows | None" = None, with_prompts: bool = False,
                 with_examples: bool = False,
                 layout: Layout | None = None,
                 told_language: Callable[[dict], str | None] | None = None):
        self.prompts = prompts
        self.seed, self.augmentation = seed, augmentation
        self.with_prompts, self.with_examples = with_prompts, with_examples
        self.layout = layout
        self.questions, self.contexts, self.joiner = questions, contexts, joiner
        self.partial, self.windows, self.told_language = partial, windows, told_language
        self._reader = ShardReader()

    def __getitem__(self, cell: Cell) -> dict:
        samples, kept, examples, skipped = [], [], [], []
        for entry in cell.entries:
            try:
                sample = self.sample(entry, cell.epoch)
                with naming(entry):
                    example = self._example(sample)
                examples.append(self._with_mistakes(example, entry, cell.epoch))
            except DataError as error:
                skipped.append(str(error))
                continue
            samples.append(sample)
            kept.append(entry)
        examples = examples or [self._blank()]
        sizes = [example.length for example in examples]
        rows = self.layout(sizes) if self.layout else None
        inputs = collate(examples, self.prompts.pad_id, rows, with_prompts=self.with_prompts)
        if self.windows is not None:
            inputs["window_chunks"] = torch.tensor(self.windows.draw(self.seed, cell.step))
        meta = {
            "entries": kept,
            "records": [sample.record for sample in samples],
            "contexts": [sample.context for sample in samples],
            "questions": [sample.question for sample in samples],
            "padding": padding_share(sizes, rows or apart(sizes)),
            "target_tokens": sum(len(example.target) for example in examples),
            "step": cell.step,
            "skipped": skipped,
        }
        if self.with_examples:
            meta |= {"examples": examples, "waveforms": [sample.waveform for sample in samples]}
        return {"inputs": inputs, "meta": meta}

    def sample(self, entry: Entry, epoch: int = 0) -> Sample:
        """Read, decode and draw one entry; all of it follows from (seed, epoch, key).

        Raises DataError, with the place, for what cannot be used.
        """
        record, waveform = self._read(entry)
        key = entry.drawn_as
        rng = sample_rng(self.seed, epoch, key)
        with naming(entry):
            if is_text(record):
                return self._written(record, waveform, rng)
            if self.joiner is not None:
                record, waveform = self._joined(entry, record, waveform,
                                                sample_rng(self.seed, epoch, f"{key}/join"))
            record, waveform = self.augmentation.clip(record, waveform, rng)
            part = Part(len(waveform) / SAMPLE_RATE, "", record["text"])
            if self.partial.on:
                part = self.partial.draw(record, part.heard,
                                         sample_rng(self.seed, epoch, f"{key}/partial"))
                waveform = waveform[:round(part.heard * SAMPLE_RATE)]
            mel = self.augmentation.features(features.log_mel(waveform), rng)
            question = self.questions.ask(record, rng)
            context = DrawnContext(record.get("context") or "")
            if question is None and self.contexts is not None:
                context = self.contexts.draw(record, rng)
            return Sample(record, waveform, mel, part, question, context)

    def _read(self, entry: Entry) -> tuple[dict, np.ndarray]:
        record, payload = self._reader.read(entry)
        if record.get("task") == "unlabelled":
            raise DataError(f"{entry.name}: no transcript yet (task 'unlabelled'); python -m "
                            "data_prep.pseudo_label writes one")
        if payload is None:
            if is_text(record):
                return record, np.zeros(0, dtype=np.float32)
            raise DataError(f"{entry.name}: no audio")
        return record, decode(payload, name=entry.name)

    def _written(self, record: dict, waveform: np.ndarray, rng: np.random.Generator) -> Sample:
        """A sample with words in place of audio."""
        if not isinstance(record.get("spoken"), str):
            raise DataError("a sample of task 'text' needs `spoken`, what stands in place of audio")
        context = self.contexts.draw(record, rng) if self.contexts is not None \
            else DrawnContext(record.get("context") or "")
        return Sample(record, waveform, torch.zeros(0, features.MEL_BINS),
                      Part(0.0, "", record["text"]), None, context)

    def _joined(self, entry: Entry, record: dict, waveform: np.ndarray, rng: np.random.Generator
                ) -> tuple[dict, np.ndarray]:
        """A sample and those that follow it; what cannot be used of these is left out, and counts
        where it comes by itself."""
        samples = [(record, waveform)]
        for other in self.joiner.following(entry, rng) if is_transcript(record) else ():
            try:
                sample = self._read(other)
            except DataError:
                continue
            if is_transcript(sample[0]):
                samples.append(sample)
        if len(samples) == 1:
            return record, waveform
        return concatenate(samples, rng, self.joiner.options.pause_seconds)

    def _example(self, sample: Sample) -> Example:
        mel, part = sample.features, sample.part
        if is_text(sample.record):
            return Example(mel, self.prompts.written_prompt(sample.record["spoken"],
                                                            sample.context.text),
                           self.prompts.target(part.text, sample.record.get("language")))
        tokens = features.audio_tokens(len(mel))
        if sample.question is not None:
            asked, answer = sample.question
            return Example(mel, self.prompts.prompt(tokens, question=asked),
                           self.prompts.answer(answer))
        prompt = self.prompts.prompt(tokens, sample.context.text)
        language = sample.record.get("language")
        told = self.told_language(sample.record) if self.told_language else None
        if part.written or told:
            return Example(mel, prompt + self.prompts.prefill(told or language, part.written),
                           self.prompts.answer(part.text))
        if self.partial.on and not part.text:
            language = None  # cut before the first word
        return Example(mel, prompt, self.prompts.target(part.text, language))

    def _with_mistakes(self, example: Example, entry: Entry, epoch: int) -> Example:
        """Some tokens of the transcript, as what the next stands behind, are others."""
        partial, target, marker = self.partial, example.target, self.prompts.marker
        first = target.index(marker) + 1 if marker in target else len(target)

        def rng(what: str) -> np.random.Generator:
            return sample_rng(self.seed, epoch, f"{entry.drawn_as}/{what}")

        if partial.wrong_token_share:
            example = example._replace(written=with_mistakes(
                target, first, partial.wrong_token_share, self.prompts.words, rng("mistakes")))
        if partial.own_token_share:
            example = example._replace(own=own_places(
                len(target), first, partial.own_token_share, rng("own")))
        return example

    def _blank(self) -> Example:
        mel = features.log_mel(np.zeros(features.MIN_SAMPLES, dtype=np.float32))
        return Example(mel, self.prompts.prompt(features.audio_tokens(len(mel))), [],
                       own=[] if self.partial.own_token_share else None)


@contextmanager
def naming(entry: Entry) -> Iterator[None]:
    """A DataError inside gets the place of the sample in front."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{entry.name}: {error}") from error


def is_transcript(record: dict) -> bool:
    """Whether a record's text is what is said in it."""
    return record.get("task", "asr") == "asr"


@dataclass(frozen=True)
class Windows:
    """The encoder's attention window of each step: ``seconds`` to draw from, by ``weights``."""

    seconds: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def draw(self, seed: int, step: int) -> int:
        """The window of a step in chunks of a second; the same on every rank."""
        rng = sample_rng(seed, 0, f"window/{step}")
        shares = None if self.weights is None else np.divide(self.weights, sum(self.weights))
        return int(rng.choice(self.seconds, p=shares))


def loader(dataset: SpeechDataset, cells: Iterable[Cell], workers: int) -> DataLoader:
    """A DataLoader that maps ``cells`` in order; ``workers`` = 0 works in this process."""
    return DataLoader(dataset, sampler=_Cells(cells), batch_size=None, num_workers=workers,
                      prefetch_factor=4 if workers else None,
                      pin_memory=torch.cuda.is_available())


class _Cells:
    """Cells as a sampler; DataLoader only iterates over it."""

    def __init__(self, cells: Iterable[Cell]):
        self.cells = cells

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)


class StepLoader:
    """Adds to every micro-batch what belongs to its whole step.

    Collects the ``accumulate`` micro-batches of a step, sums their target tokens over all ranks in
    one collective, and sets ``meta["step_tokens"]``: the loss of a step is the sum over its target
    tokens divided by their number, however the step is cut up. The same collective carries the
    count of skipped samples, so all ranks stop together once there are more than ``max_bad``. A
    rank logs and counts each of them once, however often it comes.
    """

    def __init__(self, batches: Iterable[dict], accumulate: int, max_bad: int):
        self.batches, self.accumulate, self.max_bad = batches, accumulate, max_bad
        self.skipped: dict[str, None] = {}  # a set in the order of meeting
        self.skipped_everywhere = 0

    def __iter__(self) -> Iterator[dict]:
        batches = iter(self.batches)
        while step := [batch for _, batch in zip(range(self.accumulate), batches, strict=False)]:
            met = dict.fromkeys(m for batch in step for m in batch["meta"]["skipped"])
            new = [message for message in met if message not in self.skipped]
            self.skipped |= dict.fromkeys(new)
            for message in new:
                log.warning("left out: %s", message)
            tokens, skipped = sum_over_ranks(
                sum(batch["meta"]["target_tokens"] for batch in step), len(new))
            self.skipped_everywhere += skipped
            if self.skipped_everywhere > self.max_bad:
                raise UserError(
                    f"{self.skipped_everywhere} unusable samples, data.max_bad_samples="
                    f"{self.max_bad}; {next(reversed(self.skipped), 'on another rank')}")
            for batch in step:
                batch["meta"]["step_tokens"] = tokens
                yield batch


def sum_over_ranks(*numbers: int | float) -> list[int | float]:
    """Each number (all int or all float) summed over the ranks in one collective."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    dtype = torch.int64 if isinstance(numbers[0], int) else torch.float64
    tensor = torch.tensor(numbers, dtype=dtype, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()
