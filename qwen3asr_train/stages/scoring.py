"""Test sets to transcripts: offline in batches, or as streams, under a condition."""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase, Qwen3ASRProcessor

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.context import DrawnContext
from qwen3asr_train.data.dataset import Sample, SpeechDataset, Windows, loader, naming
from qwen3asr_train.data.plan import evaluation_cells
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.decoding.generate import (
    Generated,
    Model,
    autocast,
    generate,
    load,
    prompts_for,
)
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.live import LiveTranscriber, transcript_of
from qwen3asr_train.decoding.transcriber import Transcriber, Transcript, check_pieces, read_answer
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.languages import known_language
from qwen3asr_train.evaluation.metrics import Utterance
from qwen3asr_train.evaluation.text import check_normaliser
from qwen3asr_train.models.aut import AuT
from qwen3asr_train.runtime.progress import show_progress
from qwen3asr_train.runtime.strategies import rank_and_size
from qwen3asr_train.stages.conditions import Condition

log = logging.getLogger(__name__)

Results = list[tuple[Utterance, Entry]]
"""Transcribed test samples and where they lie."""

AS_IT_IS = Condition()


def score_entries(model: Model, processor: Qwen3ASRProcessor, entries: list[Entry],
                  config: DictConfig, rank: int = 0, ranks: int = 1,
                  condition: Condition = AS_IT_IS) -> Results:
    """Transcribe every entry; all ranks share the work and all get every result.

    Clips beyond ``stage.decoding.max_piece_seconds`` are cut at quiet places or pauses, one clip at
    a time.
    """
    if not entries:
        raise UserError("the test shards hold no samples")
    model = model.to(scoring_device(config)).eval()
    decoding = config.stage.decoding
    limit = decoding.max_piece_seconds
    check_pieces(decoding.min_piece_seconds, limit, decoding.pause_seconds)
    check_normaliser(config.data.english_normaliser)
    short = [entry for entry in entries if entry.duration <= limit]
    long = [entry for entry in entries if entry.duration > limit]
    results, skipped = _score_batches(model, processor, short, config, rank, ranks, condition) \
        if short else ([], [])
    more, more_skipped = _score_long(model, processor, long[rank::ranks], config, rank, condition) \
        if long else ([], [])
    return of_all_ranks(results + more, skipped + more_skipped, config)


def _score_batches(model: Model, processor: Qwen3ASRProcessor, entries: list[Entry],
                   config: DictConfig, rank: int, ranks: int, condition: Condition
                   ) -> tuple[Results, list[str]]:
    """Results of this rank's share, and messages of what could not be used."""
    device = model.device.type
    cells = evaluation_cells(entries, config.data.evaluation_seconds, rank, ranks)
    batches = loader(test_samples(model, processor, condition), cells, config.data.workers)
    results, skipped = [], []
    for batch in show_progress(batches, f"scoring, {condition.name}", len(cells), rank):
        skipped += batch["meta"]["skipped"]
        inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
        with autocast(device):
            generated = generate(model, inputs, config.stage.decoding.max_new_tokens)
        results += read_batch(processor.tokenizer, generated, batch["meta"], config,
                              condition.force_language)
    return results, skipped


def _score_long(model: Model, processor: Qwen3ASRProcessor, entries: list[Entry],
                config: DictConfig, rank: int, condition: Condition
                ) -> tuple[Results, list[str]]:
    """The same for clips that are heard in pieces."""
    decoding = config.stage.decoding

    def transcribe(sample: Sample) -> Transcript:
        transcriber = Transcriber(
            model, processor, window=condition.window,
            context="" if isinstance(model, AuT) else sample.context.text,
            language=told_language(sample.record) if condition.force_language else None,
            max_new_tokens=decoding.max_new_tokens, max_piece_seconds=decoding.max_piece_seconds,
            min_piece_seconds=decoding.min_piece_seconds, pause_seconds=decoding.pause_seconds,
            batch_seconds=config.data.evaluation_seconds,
            guard=RepetitionGuard(**config.stage.guard))
        return transcriber([sample.waveform])[0]

    return _one_by_one(test_samples(model, processor, condition), entries, transcribe, config,
                       f"scoring long clips, {condition.name}", rank)


def _one_by_one(samples: SpeechDataset, entries: list[Entry],
                transcribe: Callable[[Sample], Transcript], config: DictConfig, label: str,
                rank: int) -> tuple[Results, list[str]]:
    """Results of these entries, and messages of what could not be used."""
    results, skipped = [], []
    for entry in show_progress(entries, label, len(entries), rank):
        try:
            sample = samples.sample(entry)
            with naming(entry):
                found = transcribe(sample)
        except DataError as error:
            skipped.append(str(error))
            continue
        results.append((utterance_of(entry, sample.record, sample.context, found.language,
                                     found.text, config.data.english_normaliser), entry))
    return results, skipped


def score_live(model: Model, processor: Qwen3ASRProcessor, entries: list[Entry],
               config: DictConfig, condition: Condition, live: DictConfig, rank: int = 0,
               ranks: int = 1) -> tuple[Results, list[list[float]]]:
    """Transcribe every entry as a stream, one chunk after the other, with the options ``live``.

    Also returns the seconds that each chunk of each stream took.
    """
    options = OmegaConf.to_container(live, resolve=True)
    if condition.window:
        options["window_seconds"] = condition.window
    model = model.to(scoring_device(config)).eval()
    times: list[list[float]] = []

    def transcribe(sample: Sample) -> Transcript:
        stream = LiveTranscriber(
            model, processor, context=sample.context.text,
            language=told_language(sample.record) if condition.force_language else None,
            guard=RepetitionGuard(**config.stage.guard), **options)
        events, seconds = [], []
        step = round(stream.chunk_seconds * SAMPLE_RATE)
        for start in range(0, len(sample.waveform), step):
            began = time.perf_counter()
            events += stream.accept(sample.waveform[start:start + step])
            seconds.append(time.perf_counter() - began)
        events += stream.finish()
        times.append(seconds)
        return transcript_of(events)

    results, skipped = _one_by_one(test_samples(model, processor, condition), entries[rank::ranks],
                                   transcribe, config, f"scoring, {condition.name}", rank)
    return of_all_ranks(results, skipped, config), gather_lists(times)


def test_samples(model: Model, processor: Qwen3ASRProcessor, condition: Condition
                 ) -> SpeechDataset:
    """Test samples as ``model`` meets them under ``condition``."""
    return SpeechDataset(prompts_for(model, processor.tokenizer), with_prompts=True,
                         contexts=condition.contexts, augmentation=condition.augmentation,
                         told_language=told_language if condition.force_language else None,
                         windows=Windows((condition.window,)) if condition.window else None)


def told_language(record: dict) -> str | None:
    """The language that a model is told where it is forced; None: not told, for want of one."""
    return known_language(record.get("language"))


def of_all_ranks(results: Results, skipped: list[str], config: DictConfig) -> Results:
    """Results of all ranks, each under a key of its own; what could not be scored is logged.
    UserError for more of that than the config allows, and where it is everything."""
    results, skipped = gather_lists(results), gather_lists(skipped)
    tell_skipped(skipped, config)
    if not results:
        raise UserError(f"none of the samples could be scored; {skipped[0]}")
    counts = Counter(utterance.key for utterance, _ in results)
    return [(replace(utterance, key=entry.name) if counts[utterance.key] > 1 else utterance, entry)
            for utterance, entry in results]


def tell_skipped(skipped: list[str], config: DictConfig, earlier: int = 0) -> None:
    """Log what all ranks could not score. UserError when that, with what was told ``earlier``, is
    more than ``data.max_bad_samples``."""
    if rank_and_size()[0] == 0:
        for message in skipped:
            log.warning("not scored: %s", message)
    if skipped and earlier + len(skipped) > config.data.max_bad_samples:
        raise UserError(f"{earlier + len(skipped)} unusable samples to score, "
                        f"data.max_bad_samples={config.data.max_bad_samples}; {skipped[0]}")


def scoring_device(config: DictConfig) -> str:
    """This process's GPU if there is one, unless the config says otherwise; made the current one,
    which the Trainer does not do before it trains."""
    if not torch.cuda.is_available() or config.trainer.accelerator == "cpu":
        return "cpu"
    torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return "cuda"


def local_rank() -> int:
    """Which of the processes of its node this is, also before there is a process group."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def load_recogniser(config: DictConfig) -> tuple[Model, Qwen3ASRProcessor]:
    """``stage.init_from``, on the device for scoring."""
    model, processor = load(str(config.stage.init_from), config.model.attn_implementation)
    return model.to(scoring_device(config)).eval(), processor


def read_batch(tokenizer: PreTrainedTokenizerBase, generated: list[Generated], meta: dict,
               config: DictConfig, forced: bool = False) -> Results:
    """Generated ids and a batch's ``meta`` -> scored utterances and where they lie, read as
    ``stage=transcribe`` reads them.

    ``forced``: the language was given, and is taken from the record.
    """
    guard, found = RepetitionGuard(**config.stage.guard), []
    for entry, record, context, row in zip(meta["entries"], meta["records"], meta["contexts"],
                                           generated, strict=False):  # a blank has no entry
        language, text = read_answer(tokenizer, guard.cut(row.tokens, entry.duration))
        if forced:
            language = told_language(record) or language
        found.append((utterance_of(entry, record, context, language, text,
                                   config.data.english_normaliser), entry))
    return found


def utterance_of(entry: Entry, record: dict, context: DrawnContext, language: str | None,
                 text: str, english_normaliser: str) -> Utterance:
    """What was said beside what was written."""
    return Utterance(
        key=entry.key, reference=record["text"], hypothesis=text,
        language=record.get("language"), predicted_language=language, duration=entry.duration,
        source=record.get("source") or "", english_normaliser=english_normaliser,
        context=context.text, listed=context.names, entities=tuple(record.get("entities") or ()))


def gather_lists(mine: list) -> list:
    """Lists of all ranks joined, on every rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mine
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]
