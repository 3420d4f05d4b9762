"""The forced aligner: trains a model that says when each word of a transcript is spoken.

Cross-entropy of time classes at ``<timestamp>`` slots alone, unshifted; which slots a sample has is
drawn. ``RUN/model`` is a transformers checkpoint folder (``Qwen3ASRForTokenClassification``), and
the test set is aligned with exactly that folder: AAS of short and joined, clean and noisy clips.
"""

import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from qwen3asr_train.data.aligned import AlignmentDataset
from qwen3asr_train.data.slots import SlotOptions, SlotPrompts
from qwen3asr_train.data.teacher_noise import TeacherNoise
from qwen3asr_train.decoding.timestamps import repair_times
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.alignment import clip_of, score_alignment
from qwen3asr_train.models import aligner
from qwen3asr_train.objectives.slot_cross_entropy import slot_cross_entropy
from qwen3asr_train.runtime.strategies import gather_weights, rank_and_size
from qwen3asr_train.runtime.training import TrainingModule
from qwen3asr_train.stages.alignment_scoring import check_ctc_models, score_aligner
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.fit import SpeechData, fit, scored_entries
from qwen3asr_train.stages.scoring import gather_lists
from qwen3asr_train.stages.setup import build_aligner, resolve_data

CONTINUED_LR_SHARE = 0.5
"""``stage.optimizer.lr=auto`` with an encoder or a recogniser to begin with."""

FINE_TUNING_LR = 2e-5
"""``stage.optimizer.lr=auto`` with an aligner to begin with."""


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train, save ``RUN/model``, align the test set, write report and metrics; returns these."""
    started = time.perf_counter()
    check_ctc_models(config)
    splits = resolve_data(config.data)
    model, processor = build_aligner(config, splits.all_train)
    prompts = SlotPrompts(processor, model.config.num_labels)
    check_length(config, prompts)
    module = AlignerModule(model, prompts, config, lr=learning_rate(config))
    data = AlignerData(splits, prompts, config)
    fitted = fit(config, run_dir, module, data, started)
    trained = time.perf_counter()

    weights = gather_weights(model)
    if fitted.trainer.is_global_zero:
        aligner.save(model, processor, run_dir / "model", weights)
    fitted.trainer.strategy.barrier()
    found = None
    if entries := scored_entries(splits, config):
        finished = aligner.load(str(run_dir / "model"), config.model.attn_implementation)
        found = score_aligner(*finished, entries, config, *rank_and_size())
    fitted.timings["testing"] = time.perf_counter() - trained
    if not fitted.trainer.is_global_zero:
        return {}
    metrics = fitted.metrics | (found.metrics if found else {})
    return finish_run(config, run_dir, metrics, [], fitted.history, fitted.timings,
                      alignment=found)


def learning_rate(config: DictConfig) -> float:
    """``stage.optimizer.lr``, or what ``auto`` stands for."""
    stage = config.stage
    if stage.optimizer.lr != "auto":
        return stage.optimizer.lr
    if stage.init_from is None and stage.init_from_encoder is None:
        return config.model.lr_from_scratch
    if stage.init_from is not None and aligner.is_aligner(str(stage.init_from)):
        return FINE_TUNING_LR
    return config.model.lr_from_scratch * CONTINUED_LR_SHARE


def check_length(config: DictConfig, prompts: SlotPrompts) -> None:
    """UserError when training clips may become longer than the classes reach."""
    data, limit = config.data, prompts.num_labels * prompts.class_seconds
    longest = {"data.max_seconds": data.max_seconds}
    if data.joins.share:
        longest["data.joins.seconds"] = data.joins.seconds[1]
    slower, silence = slowed(data.augmentation)
    for name, seconds in longest.items():
        if (most := seconds * slower + silence) > limit:
            made = f", {most:g} s after data.augmentation" if most > seconds else ""
            raise UserError(f"{name}={seconds:g}{made}: beyond the {prompts.num_labels} time "
                            f"classes, which end at {limit:g} s (stage.head.num_labels)")


def slowed(augmentation: DictConfig) -> tuple[float, float]:
    """How many times as long a clip may become, and how many seconds of silence it may get."""
    slower = 1.0
    for kind in ("speed", "tempo"):
        if augmentation[f"{kind}_share"]:
            slower /= min(1.0, augmentation[f"{kind}_range"][0])
    return slower, 2 * augmentation.edges_seconds[1] if augmentation.edges_share else 0.0


class AlignerData(SpeechData):
    """Training clips with drawn slots, validation clips with all of them."""

    def _train_dataset(self) -> AlignmentDataset:
        stage = self._config.stage
        return AlignmentDataset(self._prompts, **self._drawn(), options=SlotOptions(**stage.slots),
                                noise=TeacherNoise(**stage.teacher))

    def _validation_dataset(self) -> AlignmentDataset:
        return AlignmentDataset(self._prompts, with_units=True)


class AlignerModule(TrainingModule):
    """Cross-entropy at slots; validation aligns."""

    def __init__(self, model: aligner.Aligner, prompts: SlotPrompts, config: DictConfig, *,
                 lr: float):
        optimizer = OmegaConf.to_container(config.stage.optimizer) | {"lr": lr}
        super().__init__(model, optimizer, OmegaConf.to_container(config.trainer), config.seed)
        self._prompts = prompts
        self._smoothing = config.stage.label_smoothing_width, config.stage.outlier_likelihood
        self._clips: list = []
        self._losses: list[tuple[float, int]] = []

    def summed_losses(self, batch: dict) -> dict[str, tuple[float, Tensor]]:
        """Cross-entropy summed over the slots whose time is known."""
        labels = batch["inputs"]["labels"]
        is_target = labels >= 0
        logits = self.model.slot_logits(batch["inputs"], is_target)
        return {"loss": (1.0, slot_cross_entropy(logits, labels[is_target], *self._smoothing))}

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Loss and repaired times of one batch."""
        inputs, meta = batch["inputs"], batch["meta"]
        is_slot = inputs["input_ids"] == self._prompts.slot_id
        logits, labels = self.model.slot_logits(inputs, is_slot), inputs["labels"][is_slot]
        known = labels >= 0
        self._losses.append((float(slot_cross_entropy(logits[known], labels[known])),
                             int(known.sum())))
        rows = logits.argmax(-1).cpu().split(is_slot.sum(1).tolist())
        step = 1000 * self._prompts.class_seconds
        for entry, units, times, row in zip(meta["entries"], meta["units"], meta["times"], rows,
                                            strict=False):  # a blank has no entry
            found = [time / 1000 for time in repair_times((row.double() * step).tolist())]
            self._clips.append(clip_of(entry.key, entry.language, entry.duration, units,
                                       list(zip(found[::2], found[1::2], strict=True)), times))

    def on_validation_epoch_end(self) -> None:
        """One row of val/* over all ranks."""
        clips, losses = gather_lists(self._clips), gather_lists(self._losses)
        self._clips, self._losses = [], []
        figures = score_alignment(clips, self._prompts.class_seconds)
        loss = sum(loss for loss, _ in losses) / max(1, sum(count for _, count in losses))
        self.log_row({"val/loss": loss} | {f"val/{name}": figures[name] for name in (
            "aas_ms", "median_ms", "p90_ms", "within_80_ms") if name in figures})
