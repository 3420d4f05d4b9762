"""Scores of an omni model by source: exact match, error rate, perplexity."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from qwen3asr_train.data import omni as data
from qwen3asr_train.data.context import DrawnContext
from qwen3asr_train.data.packing import Item, OmniCell
from qwen3asr_train.data.shards import Entry, read_entries
from qwen3asr_train.decoding.generate import autocast
from qwen3asr_train.errors import DataError
from qwen3asr_train.evaluation.metrics import Utterance, score
from qwen3asr_train.evaluation.text import split_output
from qwen3asr_train.models.omni import OmniModel
from qwen3asr_train.runtime.metrics import write_atomically
from qwen3asr_train.stages.scoring import scoring_device, tell_skipped, utterance_of

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """``figures``: ``SOURCE/exact_match``, ``/wer`` or ``/perplexity`` of each test source;
    ``SOURCE/TASK/…`` for a source of several tasks. ``transcripts`` of what is spoken; all other
    ``answers``, with what they should be."""

    figures: dict[str, float]
    transcripts: Sequence[tuple[Utterance, Entry]] = ()
    answers: Sequence[dict] = ()


def score_sources(model: OmniModel, tokenizer: PreTrainedTokenizerBase, reader: data.SampleReader,
                  sources: dict[str, list[str]], config: DictConfig
                  ) -> Scores:
    """All test sources.

    The first prompt of a task is asked, so that scores of different models compare. Unusable
    samples are counted, up to ``data.max_bad_samples``.
    """
    figures, transcripts, written, skipped = {}, [], [], []
    options = config.stage.evaluation
    training, home = model.training, model.device
    model.eval().to(scoring_device(config))
    for source, shards in sources.items():
        entries = [entry for path in shards for entry in read_entries(path)]
        drawn = random.Random(0).sample(entries, min(options.samples, len(entries)))
        known = len(skipped)
        by_task = usable(reader, drawn, skipped)
        tell_skipped(skipped[known:], config, earlier=known)
        for task_name, samples in by_task.items():
            task = reader.tasks.tasks[task_name]
            name = source if len(by_task) == 1 else f"{source}/{task_name}"
            if not task.prompts:
                figures[f"{name}/perplexity"] = perplexity(model, reader, samples, options)
                continue
            answers = answer_all(model, tokenizer, reader, samples, options)
            if task.spoken:
                rows = [(utterance_of(entry, record, DrawnContext(""), *split_output(said),
                                      config.data.english_normaliser), entry)
                        for entry, record, said in answers]
                figures[f"{name}/wer"] = score([utterance for utterance, _ in rows])["wer"]
                transcripts += rows
            else:
                right = [same(record["text"], said) for _, record, said in answers]
                figures[f"{name}/exact_match"] = sum(right) / len(right)
                written += [{
                    "source": source, "task": task_name, "key": entry.key,
                    "question": record.get("question"), "reference": record["text"],
                    "answer": said, "right": found}
                    for (entry, record, said), found in zip(answers, right, strict=True)]
    model.train(training).to(home)
    return Scores(figures, transcripts, written)


def usable(reader: data.SampleReader, entries: Sequence[Entry], skipped: list[str]
           ) -> dict[str, list[Entry]]:
    """Entries by their task; what is wrong with the others goes to ``skipped``."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        try:
            record, _ = reader.example(entry, 0)
        except DataError as error:
            skipped.append(str(error))
            continue
        found.setdefault(record.get("task", "asr"), []).append(entry)
    return found


def same(expected: str, found: str) -> bool:
    """Whether an answer is the expected one, but for case and spaces."""
    return found.casefold().split() == expected.casefold().split()


@torch.inference_mode()
def answer_all(model: OmniModel, tokenizer: PreTrainedTokenizerBase, reader: data.SampleReader,
               entries: Sequence[Entry], options: DictConfig) -> list[tuple[Entry, dict, str]]:
    """Each sample with its record and the model's greedy answer. That some are cut is logged; where
    most are, the model has not learned to end."""
    found, cut = [], 0
    ordered = sorted(entries, key=lambda entry: (entry.duration, entry.key))
    for start in range(0, len(ordered), options.batch):
        part = ordered[start:start + options.batch]
        read = [reader.example(entry, 0) for entry in part]
        batch = data.prompts([example for _, example in read], reader.tasks.pad_id, reader.picture)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with autocast(model.device.type):
            answers = model.answer(batch, options.max_new_tokens).tolist()
        for entry, (record, _), row in zip(part, read, answers, strict=True):
            ends = [i for i, token in enumerate(row) if token in model.config.eos_token_id]
            cut += not ends
            found.append((entry, record, tokenizer.decode(row[:ends[0]] if ends else row)))
    if 0 < cut < len(found) / 2:
        log.warning("%d of %d answers are cut at stage.evaluation.max_new_tokens=%d", cut,
                    len(found), options.max_new_tokens)
    return found


@torch.inference_mode()
def perplexity(model: OmniModel, reader: data.SampleReader, entries: Sequence[Entry],
               options: DictConfig) -> float:
    """exp of the mean loss of a text's token, its end included."""
    items = [Item(entry, 0, 0, reader.measure(entry)[0], "test") for entry in entries]
    dataset = data.OmniDataset(reader, max(options.row_tokens, *(i.tokens for i in items)))
    loss = tokens = 0
    for start in range(0, len(items), options.batch):
        batch = dataset[OmniCell(0, tuple(items[start:start + options.batch]))]
        inputs = {name: value.to(model.device) for name, value in batch["inputs"].items()}
        with autocast(model.device.type):
            loss += model.target_loss(inputs)[0].double()
        tokens += batch["meta"]["target_tokens"]
    return float((loss / tokens).exp())


def show(scores: dict[str, dict[str, float]]) -> None:
    """A table with a row for each source and a column for the start and each phase."""
    table = Table(title="test sources", title_justify="left")
    for name in ("figure", *scores):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for figure in next(iter(scores.values()), {}):
        table.add_row(figure, *(f"{values[figure]:.3g}" for values in scores.values()))
    Console().print(table)


def draw(scores: dict[str, dict[str, float]], path: Path) -> None:
    """The same as a picture (SVG)."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    rates, perplexities = figure.subplots(1, 2, width_ratios=(3, 1))
    for name in next(iter(scores.values()), {}):
        axes = perplexities if name.endswith("perplexity") else rates
        axes.plot(list(scores), [values[name] for values in scores.values()], marker="o",
                  label=name, linestyle="--" if name.endswith("wer") else "-")
    perplexities.set_yscale("log")
    for axes in (rates, perplexities):
        if axes.lines:
            axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    rates.set_ylim(bottom=0)
    file = io.StringIO()
    figure.savefig(file, format="svg")
    write_atomically(path, file.getvalue())
