"""What several stages begin with: data to shards, config to model and processor."""

import logging
import random
from collections import Counter
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.context import Context, ContextBuilder, EntityTable
from qwen3asr_train.data.shards import Entry, ShardReader, find_shards, read_entries, read_summary
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aligner, asr, aut
from qwen3asr_train.models.encoder import WindowedEncoder
from qwen3asr_train.models.folder import load_processor
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer
from qwen3asr_train.options import as_arguments
from qwen3asr_train.runtime.training import freeze

log = logging.getLogger(__name__)

TOKENIZER_TEXTS = 200_000
"""Transcripts that a small tokenizer is trained on, at most."""

CONTEXT_TEXTS = 200_000
"""Transcripts that distractors and background are drawn from, at most."""


@dataclass(frozen=True)
class Splits:
    """Shard paths: of training by data set, of validation and test (either may be empty)."""

    train: dict[str, list[str]]
    validation: list[str]
    test: list[str]

    @property
    def all_train(self) -> list[str]:
        """Those of every training set."""
        return [path for paths in self.train.values() for path in paths]


def resolve_data(data: DictConfig) -> Splits:
    """Shards by split; the embedded corpus, made if need be, when no data is named."""
    if data.train is None:
        if "corpus" not in data:
            raise UserError("data.train is not set: name shards (data.train=shards/mine/train), or "
                            "use data=embedded")
        folders = embedded_folders(data)
    else:
        folders = {"train": data.train}
    folders |= {k: data[k] for k in ("validation", "test") if data[k] is not None}
    train = folders["train"] if isinstance(folders["train"], DictConfig) \
        else {"train": folders["train"]}
    splits = Splits({name: find_shards(as_list(patterns)) for name, patterns in train.items()},
                    *(find_shards(as_list(folders[k])) if k in folders else []
                      for k in ("validation", "test")))
    shared = [path for path, times in Counter(splits.all_train).items() if times > 1]
    if shared:
        raise UserError(f"data.train: {shared[0]} is in two data sets")
    for path in (*splits.all_train, *splits.validation, *splits.test):
        read_summary(path)  # a missing index or a truncated tar is better known now than at hour 3
    return splits


def embedded_folders(data: DictConfig, changes: dict | None = None) -> dict[str, str]:
    """The embedded corpus of ``data.corpus``, with some fields changed, as folders by split."""
    from data_prep.embedded import Corpus, ensure_corpus

    if "corpus" not in data:
        raise UserError("embedded speech is made with data=embedded")
    try:
        corpus = Corpus(**as_arguments(data.corpus) | as_arguments(changes or {}))
    except TypeError as error:
        raise UserError(f"corpus: {error}") from error
    return ensure_corpus(corpus, data.cache_dir)


def as_list(value) -> list[str]:
    """One pattern or a list of them -> a list."""
    return [value] if isinstance(value, str) else list(value)


def encoder_to_begin_with(config: DictConfig) -> WindowedEncoder | None:
    """The encoder of ``stage.init_from_encoder``."""
    folder = config.stage.get("init_from_encoder")  # stage=rl has none
    return folder and aut.load_encoder(str(folder), config.model.attn_implementation)


def build_recogniser(config: DictConfig, shards: list[str]
                     ) -> tuple[asr.Recogniser, Qwen3ASRProcessor]:
    """The model to train and its processor, as ``stage.init_from`` and ``model`` say."""
    options, encoder = config.model, encoder_to_begin_with(config)
    if config.stage.init_from is not None:
        model, processor = asr.load(str(config.stage.init_from), options.attn_implementation)
        if encoder is not None:
            asr.replace_encoder(model, encoder)
    else:
        processor = build_processor(options.tokenizer, shards)
        preset = OmegaConf.to_container(options, resolve=True)
        model = asr.build(preset, processor, config.seed, options.attn_implementation, encoder)
    model.lm_head.chunk_size = config.stage.loss_chunk
    if options.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    describe_model(model, freeze(model, list(options.freeze)), processor)
    return model, processor


def build_aut(config: DictConfig, shards: list[str]) -> tuple[aut.AuT, Qwen3ASRProcessor]:
    """The AuT to train and its processor."""
    options = config.model
    if config.stage.init_from is not None:
        model, processor = aut.load(str(config.stage.init_from), options.attn_implementation)
    else:
        processor = build_processor(options.tokenizer, shards)
        preset = OmegaConf.to_container(options, resolve=True)
        model = aut.build(preset, processor, config.seed, options.attn_implementation)
    model.decoder.head.chunk_size = config.stage.loss_chunk
    model.decoder.head.label_smoothing = config.stage.label_smoothing
    if options.activation_checkpointing:
        model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    describe_model(model, freeze(model, list(options.freeze)), processor)
    return model, processor


def build_aligner(config: DictConfig, shards: list[str]
                  ) -> tuple[aligner.Aligner, Qwen3ASRProcessor]:
    """The forced aligner to train and its processor: an aligner that goes on, a recogniser under a
    new head, or random weights."""
    options, stage = config.model, config.stage
    folder = stage.init_from and str(stage.init_from)
    head = OmegaConf.to_container(stage.head)
    if folder and aligner.is_aligner(folder):
        model, processor = aligner.load(folder, options.attn_implementation)
    elif folder:
        base, processor = asr.load(folder, options.attn_implementation)
        model = aligner.from_recogniser(base, config.seed, head)
    else:
        processor = build_processor(options.tokenizer, shards)
        model = aligner.build(OmegaConf.to_container(options, resolve=True), processor, config.seed,
                              head, options.attn_implementation, encoder_to_begin_with(config))
    if options.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    describe_model(model, freeze(model, list(options.freeze)), processor)
    return model, aligner.with_slots(processor)


def describe_model(model: nn.Module, frozen: int, processor: Qwen3ASRProcessor) -> None:
    """One line about the model."""
    total = sum(p.numel() for p in model.parameters())
    log.info("model: %.1f M parameters%s, vocabulary %d", total / 1e6,
             f", {frozen / 1e6:.1f} M frozen" if frozen else "", len(processor.tokenizer))


def build_processor(tokenizer: int | str, shards: list[str]) -> Qwen3ASRProcessor:
    """A BPE of ``tokenizer`` entries trained on the shards' texts, or one from a folder or hub."""
    if isinstance(tokenizer, int):
        return make_processor(train_tokenizer(_texts(shards), tokenizer))
    try:
        return load_processor(tokenizer)
    except OSError as error:
        raise UserError(f"model.tokenizer={tokenizer}: neither a local folder nor a hub name that "
                        f"can be reached ({str(error).splitlines()[0]})") from error


def _texts(shards: list[str]) -> list[str]:
    """Training samples as the tokenizer meets them: transcripts, and the words around each."""
    texts = []
    for record in sample_records(shards, TOKENIZER_TEXTS):
        texts += ["system", "user", "assistant", f"language {record.get('language')}",
                  record["text"]]
    return texts


def sample_records(shards: list[str], most: int) -> list[dict]:
    """Records of whole shards in a fixed random order, until there are ``most``."""
    reader = ShardReader()
    records = [reader.read_record(entry) for entry in sample_entries(shards, most)]
    reader.close()
    return records


def sample_entries(shards: list[str], most: int) -> list[Entry]:
    """Entries of whole shards in a fixed random order, until there are ``most``."""
    entries: list[Entry] = []
    for shard in random.Random(0).sample(shards, len(shards)):
        entries += read_entries(shard)
        if len(entries) >= most:
            break
    return entries


def build_contexts(config: DictConfig, shards: list[str]) -> ContextBuilder | None:
    """What draws the training samples' contexts, as ``stage.context`` says; None when off."""
    options = Context(**as_arguments(config.stage.contexts))
    if not options.on:
        return None
    if options.instructions and not options.orders:
        raise UserError("stage.contexts.instructions is on: give stage.contexts.orders")
    records = sample_records(shards, CONTEXT_TEXTS)
    table = EntityTable(((r["text"], r.get("entities")) for r in records), options.rare_share)
    log.info("contexts: %d entities to draw from", len(table.pool))
    return ContextBuilder(options, table, [record["text"] for record in records if record["text"]])


def add_lora(model: asr.Recogniser, options: DictConfig, seed: int) -> nn.Module | None:
    """Put LoRA adapters into ``model`` in place, drawn with ``seed``; returns peft's wrapper, None
    when off."""
    if not options.rank:
        return None
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapper = get_peft_model(model, LoraConfig(
            r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
            target_modules=options.target_modules))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("LoRA: %.2f M trainable parameters", trainable / 1e6)
    return wrapper

