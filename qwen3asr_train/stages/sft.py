"""ASR SFT: trains a Qwen3-ASR model on audio -> ``language English<asr_text>words``.

Loss: cross-entropy on the answer's tokens only, summed over the step and divided by their number.
Validation generates. At the end ``RUN/model`` is a transformers checkpoint folder, and the test set
is scored with exactly that folder.
"""

import logging
import time
from pathlib import Path

import lightning
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data import augment
from qwen3asr_train.data.dataset import SpeechDataset, StepLoader, loader
from qwen3asr_train.data.plan import BatchPlan, evaluation_cells
from qwen3asr_train.data.shards import Entry, read_entries
from qwen3asr_train.decoding.generate import generate
from qwen3asr_train.evaluation.metrics import Utterance, score
from qwen3asr_train.models import asr
from qwen3asr_train.runtime.checkpoint import resume_from
from qwen3asr_train.runtime.metrics import read_history
from qwen3asr_train.runtime.strategies import gather_weights, rank_and_size
from qwen3asr_train.runtime.training import TrainingModule, build_trainer
from qwen3asr_train.stages.evaluate import finish_run, gather_lists, read_batch, score_entries
from qwen3asr_train.stages.setup import add_lora, build_recogniser, resolve_data

log = logging.getLogger(__name__)

CTC_FROM_SCRATCH = 1.0
"""``stage.ctc_weight=auto`` for random weights; 0 for a model that has learned to align."""

FINE_TUNING_LR = 2e-5
"""``stage.optimizer.lr=auto`` with ``init_from``: that of the released fine-tuning script."""

LORA_LR = 1e-4
"""``stage.optimizer.lr=auto`` with ``init_from`` when only adapters train."""


class SFT(TrainingModule):
    """Loss and validation of the stage."""

    def __init__(self, model: asr.Recogniser, processor: Qwen3ASRProcessor, config: DictConfig):
        optimizer = OmegaConf.to_container(config.stage.optimizer)
        if optimizer["lr"] == "auto":
            optimizer["lr"] = automatic_lr(config)
        super().__init__(model, optimizer, OmegaConf.to_container(config.trainer), config.seed)
        self._tokenizer = processor.tokenizer
        from_scratch = config.stage.init_from is None
        weight = config.stage.ctc_weight
        if weight == "auto":
            weight = CTC_FROM_SCRATCH if from_scratch else 0.0
        self._ctc_weight = weight
        self._english_normaliser = config.data.english_normaliser
        self._max_new_tokens = config.stage.decoding.max_new_tokens
        self._utterances: list[tuple[Utterance, Entry]] = []
        self._losses: list[tuple[float, int]] = []

    def summed_losses(self, inputs: dict[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        """Cross-entropy summed over target tokens, and CTC where it is on."""
        loss, ctc = self.model.target_loss(inputs, with_ctc=self._ctc_weight > 0)
        losses = {"loss": (1.0, loss)}
        return losses if ctc is None else losses | {"ctc_loss": (self._ctc_weight, ctc)}

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Loss and greedy transcripts of one batch."""
        self._losses.append((float(self.model.target_loss(batch["inputs"])[0]),
                             batch["meta"]["target_tokens"]))
        tokens = generate(self.model, batch["inputs"], self._max_new_tokens,
                          synced=self.trainer.strategy.strategy_name == "deepspeed_stage_3")
        self._utterances += read_batch(self._tokenizer, tokens, batch["meta"],
                                       self._english_normaliser)

    def on_validation_epoch_end(self) -> None:
        """One row of val/* over all ranks."""
        utterances, losses = gather_lists(self._utterances), gather_lists(self._losses)
        self._utterances, self._losses = [], []
        scores = score([utterance for utterance, _ in utterances])
        loss = sum(loss for loss, _ in losses) / max(1, sum(count for _, count in losses))
        self.log_row({"val/loss": loss, "val/wer": scores["wer"],
                      "val/lid_accuracy": scores["lid_accuracy"]})


def automatic_lr(config: DictConfig) -> float:
    """What ``stage.optimizer.lr=auto`` stands for."""
    if config.stage.init_from is None:
        return config.model.lr_from_scratch
    return LORA_LR if config.model.lora.rank else FINE_TUNING_LR


class SFTData(lightning.LightningDataModule):
    """Train and validation loaders; training begins at the trainer's step."""

    def __init__(self, shards: dict[str, list[str]], processor: Qwen3ASRProcessor,
                 config: DictConfig):
        super().__init__()
        self._config, self._tokenizer, self._shards = config, processor.tokenizer, shards
        data = config.data
        self.plan = BatchPlan.from_paths(
            shards["train"], batch_seconds=data.batch_seconds, seed=config.seed,
            max_seconds=data.max_seconds, shards_per_group=data.shards_per_group,
            length_jitter=data.length_jitter)
        self.steps: StepLoader | None = None

    def train_dataloader(self) -> StepLoader:
        """Micro-batches of this rank from the trainer's step to ``max_steps``."""
        data, trainer = self._config.data, self.trainer
        dataset = SpeechDataset(
            self._tokenizer, seed=self._config.seed,
            augmentation=augment.build(OmegaConf.to_container(data.augmentation)))
        accumulate = self._config.trainer.accumulate
        cells = self.plan.walk(trainer.global_rank, trainer.world_size, accumulate,
                               start=trainer.global_step, stop=trainer.max_steps)
        self.steps = StepLoader(loader(dataset, cells, data.workers), accumulate,
                                data.max_bad_samples)
        return self.steps

    def val_dataloader(self) -> DataLoader | list:
        """Every validation sample once, spread over the ranks."""
        if "validation" not in self._shards or not self._config.trainer.validate_every:
            return []
        entries = [entry for shard in self._shards["validation"] for entry in read_entries(shard)]
        cells = evaluation_cells(entries, self._config.data.evaluation_seconds,
                                 self.trainer.global_rank, self.trainer.world_size)
        return loader(SpeechDataset(self._tokenizer, with_prompts=True), cells, workers=0)


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train, save ``RUN/model``, score the test set, write report and metrics; returns these."""
    started = time.perf_counter()
    shards = resolve_data(config.data)
    model, processor = build_recogniser(config, shards["train"])
    adapters = add_lora(model, config.model.lora)
    data = SFTData(shards, processor, config)
    plan = data.plan
    log.info("data: %d samples, %.2f h, %d steps an epoch, %d steps to train%s", plan.samples,
             sum(shard.seconds for shard in plan.shards) / 3600, plan.steps_per_epoch,
             config.trainer.max_steps,
             f"; {plan.dropped} samples longer than {plan.max_seconds:g} s left out"
             if plan.dropped else "")
    module, trainer = SFT(model, processor, config), build_trainer(config, run_dir)
    checkpoint = resume_from(config.resume, run_dir)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
    prepared = time.perf_counter()
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    trained = time.perf_counter()

    weights = gather_weights(model)
    if trainer.is_global_zero:
        export(model, processor, adapters, weights, run_dir / "model")
    trainer.strategy.barrier()
    history = read_history(run_dir / "metrics.jsonl")
    metrics = {"train/seconds": trained - prepared, "train/steps": float(trainer.global_step),
               "train/skipped_samples": float(len(data.steps.skipped) if data.steps else 0)}
    for row in history:
        metrics |= {name: value for name, value in row.items() if name != "step"}
    utterances = []
    if config.stage.test and ("test" in shards or "validation" in shards):
        entries = [entry for shard in shards.get("test", shards.get("validation"))
                   for entry in read_entries(shard)]
        finished, processor = asr.load(str(run_dir / "model"))
        utterances = score_entries(finished, processor, entries, config, *rank_and_size())
    timings = {"preparing": prepared - started, "training": trained - prepared,
               "testing": time.perf_counter() - trained}
    if not trainer.is_global_zero:
        return {}
    return finish_run(config, run_dir, metrics, utterances, history, timings)


def export(model: asr.Recogniser, processor: Qwen3ASRProcessor, adapters,
           weights: dict[str, Tensor], folder: Path) -> None:
    """``RUN/model``; LoRA adapters are merged, and saved by themselves in ``RUN/adapter``."""
    if adapters is not None:
        adapters.save_pretrained(folder.with_name("adapter"))
        model, weights = adapters.merge_and_unload(), None
    asr.save(model, processor, folder, weights)
