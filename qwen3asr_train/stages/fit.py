"""What training stages share: batches of speech for the Trainer, and the course of a run."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import lightning
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from qwen3asr_train.data import augment
from qwen3asr_train.data.context import ContextBuilder
from qwen3asr_train.data.dataset import SpeechDataset, StepLoader, Windows, loader
from qwen3asr_train.data.joins import Joiner, Joins
from qwen3asr_train.data.packing import Layout, in_one_row, together
from qwen3asr_train.data.partial import Partial
from qwen3asr_train.data.plan import BatchPlan, evaluation_cells
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.data.questions import Questions
from qwen3asr_train.data.shards import Entry, read_entries
from qwen3asr_train.decoding.generate import generate
from qwen3asr_train.decoding.transcriber import check_pieces
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.metrics import Utterance, score
from qwen3asr_train.evaluation.text import check_normaliser
from qwen3asr_train.options import as_arguments
from qwen3asr_train.runtime.checkpoint import refuse_used_folder, resume_from
from qwen3asr_train.runtime.metrics import read_history
from qwen3asr_train.runtime.training import TrainingModule, at_rates, build_trainer
from qwen3asr_train.stages.scoring import gather_lists, read_batch, tell_skipped
from qwen3asr_train.stages.setup import Splits, sample_entries

log = logging.getLogger(__name__)

JOINED_ENTRIES = 100_000
"""Samples that others are joined from, at most."""


LEAST_SAMPLES = 2
"""Of a rank and micro-batch, on average; with fewer there is a warning."""


class SpeechData(lightning.LightningDataModule):
    """Train and validation loaders over shards; training begins at the trainer's step."""

    def __init__(self, splits: Splits, prompts: PromptBuilder, config: DictConfig,
                 contexts: ContextBuilder | None = None):
        super().__init__()
        self._contexts = contexts
        self._config, self._prompts, self._splits = config, prompts, splits
        data = config.data
        self.plan = BatchPlan.from_paths(
            splits.train, batch_seconds=data.batch_seconds, seed=config.seed,
            max_seconds=data.max_seconds, shards_per_group=data.shards_per_group,
            length_jitter=data.length_jitter, shares=data.shares, temperature=data.temperature)
        self.steps: StepLoader | None = None

    def describe(self, ranks: int) -> None:
        """One line about the data, and a warning when steps are too short for the ranks."""
        plan, steps = self.plan, self._config.trainer.max_steps
        seconds = sum(shard.seconds for shard in plan.shards)
        log.info("data: %d samples, %.2f h, %d steps an epoch, %d steps to train (%.2g epochs)%s",
                 plan.samples, seconds / 3600, plan.steps_per_epoch, steps,
                 steps / plan.steps_per_epoch,
                 f"; {plan.dropped} samples longer than {plan.max_seconds:g} s left out"
                 if plan.dropped else "")
        parts = ranks * self._config.trainer.accumulate
        if plan.batch_seconds < LEAST_SAMPLES * parts * seconds / plan.samples:
            log.warning("data.batch_seconds=%g is %.1f s for each of %d ranks and micro-batches, "
                        "where a sample has %.1f s: some have nothing to do; raise it",
                        plan.batch_seconds, plan.batch_seconds / parts, parts,
                        seconds / plan.samples)

    def train_dataloader(self) -> StepLoader:
        """Micro-batches of this rank from the trainer's step to ``max_steps``."""
        config, trainer = self._config, self.trainer
        cells = self.plan.walk(trainer.global_rank, trainer.world_size, config.trainer.accumulate,
                               start=trainer.global_step, stop=trainer.max_steps)
        self.steps = StepLoader(loader(self._train_dataset(), cells, config.data.workers),
                                config.trainer.accumulate, config.data.max_bad_samples)
        return self.steps

    def _train_dataset(self) -> SpeechDataset:
        stage = self._config.stage
        return SpeechDataset(
            self._prompts, **self._drawn(), contexts=self._contexts,
            questions=Questions(stage.questions.share,
                                OmegaConf.to_container(stage.questions.ways)),
            partial=Partial(**stage.partial))

    def _validation_dataset(self) -> SpeechDataset:
        return SpeechDataset(self._prompts, with_prompts=True)

    def _drawn(self) -> dict:
        """What every kind of training sample is drawn with."""
        config, windows = self._config, self._config.stage.windows
        return {
            "seed": config.seed, "joiner": self._joiner(), "layout": self._layout(),
            "augmentation": augment.build(OmegaConf.to_container(config.data.augmentation)),
            "windows": Windows(tuple(windows.seconds), windows.weights and tuple(windows.weights))
            if windows.seconds else None,
        }

    def _layout(self) -> Layout | None:
        if not self._config.stage.get("packed"):  # not every stage has rows to pack
            return None
        # flash-attention is told of the samples in a row only where there is a single row
        flash = self._config.model.attn_implementation.startswith("flash")
        return in_one_row if flash else together

    def _joiner(self) -> Joiner | None:
        options = Joins(**as_arguments(self._config.data.joins))
        if not options.share:
            return None
        return Joiner(options, sample_entries(self._splits.all_train, JOINED_ENTRIES))

    def val_dataloader(self) -> DataLoader | list:
        """Every validation sample once, spread over the ranks."""
        if not self._splits.validation or not self._config.trainer.validate_every:
            return []
        cells = evaluation_cells(entries_of(self._splits.validation),
                                 self._config.data.evaluation_seconds,
                                 self.trainer.global_rank, self.trainer.world_size)
        return loader(self._validation_dataset(), cells, workers=0)


class RecogniserModule(TrainingModule):
    """Cross-entropy and CTC of a recogniser; validation by generating."""

    def __init__(self, model, tokenizer, config: DictConfig, *, lr: float, ctc_weight: float):
        optimizer = OmegaConf.to_container(config.stage.optimizer) | {"lr": lr}
        super().__init__(model, optimizer, OmegaConf.to_container(config.trainer), config.seed)
        self._tokenizer, self._ctc_weight = tokenizer, ctc_weight
        decoding = config.stage.decoding
        check_pieces(  # not after training
            decoding.min_piece_seconds, decoding.max_piece_seconds, decoding.pause_seconds)
        check_normaliser(config.data.english_normaliser)
        self._max_new_tokens = decoding.max_new_tokens
        self._utterances: list[tuple[Utterance, Entry]] = []
        self._losses: list[tuple[float, int]] = []
        self._skipped: list[str] = []
        self._told: set[str] = set()
        self._config = config

    def summed_losses(self, batch: dict) -> dict:
        """Cross-entropy summed over target tokens, and CTC where it is on."""
        loss, ctc = self.model.target_loss(batch["inputs"], with_ctc=self._ctc_weight > 0)
        losses = {"loss": (1.0, loss)}
        return losses if ctc is None else losses | {"ctc_loss": (self._ctc_weight, ctc)}

    def parameter_groups(self) -> list[tuple[list[str], dict]]:
        """Weight decay on matrices; the language model at its share of the learning rate."""
        groups, lr = super().parameter_groups(), self._optimizer["lr"]
        scale = self._optimizer.get("language_model_lr_scale", 1.0)  # not every stage has one
        return groups if scale == 1 else at_rates(
            groups, in_language_model, {False: lr, True: scale * lr})

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Loss and greedy transcripts of one batch."""
        self._skipped += batch["meta"]["skipped"]
        self._losses.append((float(self.model.target_loss(batch["inputs"])[0]),
                             batch["meta"]["target_tokens"]))
        generated = generate(self.model, batch["inputs"], self._max_new_tokens,
                             synced=getattr(self.trainer.strategy, "zero_stage_3", False))
        self._utterances += read_batch(self._tokenizer, generated, batch["meta"], self._config)

    def on_validation_epoch_end(self) -> None:
        """One row of val/* over all ranks."""
        utterances, losses = gather_lists(self._utterances), gather_lists(self._losses)
        skipped = gather_lists(self._skipped)
        new = [message for message in skipped if message not in self._told]
        tell_skipped(new, self._config, earlier=len(skipped) - len(new))
        self._told.update(new)
        self._utterances, self._losses, self._skipped = [], [], []
        if not utterances:
            raise UserError(f"none of the samples of data.validation could be used; {skipped[0]}")
        scores = score([utterance for utterance, _ in utterances])
        loss = sum(loss for loss, _ in losses) / max(1, sum(count for _, count in losses))
        self.log_row({"val/loss": loss, "val/wer": scores["wer"],
                      "val/lid_accuracy": scores["lid_accuracy"]})


def in_language_model(name: str) -> bool:
    """Whether a parameter is of the language model, tied embeddings and adapters included."""
    return ".language_model." in name or "lm_head." in name


@dataclass
class Fitted:
    """What training left: the trainer, the newest of every figure, the history, seconds spent."""

    trainer: lightning.Trainer
    metrics: dict[str, float]
    history: list[dict]
    timings: dict[str, float] = field(default_factory=dict)


def fit(config: DictConfig, run_dir: Path, module: TrainingModule, data: SpeechData,
        started: float) -> Fitted:
    """Train from the start or from ``resume``; ``started``: when the run began preparing."""
    trainer = build_trainer(config, run_dir)
    data.describe(trainer.world_size)
    checkpoint = resume_from(config.resume, run_dir)
    refuse_used_folder(run_dir, checkpoint)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
    prepared = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if checkpoint is not None and "loading state_dict" in str(error):
            raise UserError(f"resume={config.resume}: {checkpoint} holds weights of other sizes; "
                            "is it of another model=, or of other data, and so another vocabulary?"
                            ) from error
        raise
    seconds = time.perf_counter() - prepared
    metrics = {"train/seconds": seconds, "train/steps": float(trainer.global_step),
               "train/skipped_samples": float(data.steps.skipped_everywhere) if data.steps else 0.0}
    history = read_history(run_dir / "metrics.jsonl")
    for row in history:
        metrics |= {name: value for name, value in row.items() if name != "step"}
    return Fitted(trainer, metrics, history,
                  {"preparing": prepared - started, "training": seconds})


def scored_entries(splits: Splits, config: DictConfig) -> list[Entry]:
    """The samples to score a finished model on: test, else validation, else none."""
    if config.stage.test and splits.validation and not splits.test:
        log.info("data.test is not set: test/ figures are of the validation set")
    return entries_of(splits.test or splits.validation) if config.stage.test else []


def entries_of(shards: list[str]) -> list[Entry]:
    """All samples of some shards."""
    return [entry for shard in shards for entry in read_entries(shard)]
