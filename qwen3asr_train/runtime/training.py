"""The Lightning module's machinery that every training stage shares, and the Trainer.

A stage subclasses :class:`TrainingModule` and says how a batch becomes a summed loss and what
validation does; optimiser, normalisation, logging and guards are here.
"""

import math
import time
from collections.abc import Callable, Hashable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from qwen3asr_train.data.dataset import sum_over_ranks
from qwen3asr_train.data.plan import sample_seed
from qwen3asr_train.errors import UserError
from qwen3asr_train.runtime.checkpoint import AtomicCheckpointIO, SaveCheckpoints
from qwen3asr_train.runtime.metrics import MetricsFile
from qwen3asr_train.runtime.muon import MuonWithAdamW, is_layer_matrix
from qwen3asr_train.runtime.progress import TrainingProgress
from qwen3asr_train.runtime.schedule import SCHEDULES, lr_factor
from qwen3asr_train.runtime.strategies import build_strategy
from qwen3asr_train.runtime.tracking import wandb_logger

OPTIMIZERS = ("adamw", "muon")


class TrainingModule(lightning.LightningModule):
    """Optimiser, exact step-loss normalisation, logging and guards around ``self.model``.

    Subclasses implement :meth:`summed_losses`. ``latest`` is the newest row of metrics.
    """

    def __init__(self, model: nn.Module, optimizer: dict, trainer: dict, seed: int):
        super().__init__()
        for name, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if optimizer[name] not in known:
                raise UserError(f"stage.optimizer.{name}={optimizer[name]}: one of "
                                f"{', '.join(known)}")
        self.model = model.train()  # a loaded one is not in train mode
        self._optimizer, self._trainer_config, self._seed = optimizer, trainer, seed
        self.latest: dict[str, float] = {}
        self.nonfinite_steps = 0
        self._window = _Window()
        self._loaded: dict[str, dict] | None = None

    def summed_losses(self, batch: dict) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, loss summed over the micro-batch's targets); one is ``loss``. What has
        no weight is only logged."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Begin the history and the learning rate at this step, the optimiser where it was."""
        for logger in self.loggers:
            if isinstance(logger, MetricsFile) and self.trainer.is_global_zero:
                logger.rewind(self.global_step)
        self._restore_optimizer()

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int
                                 ) -> dict:
        """The tensors of ``inputs``; ``meta`` stays as it is."""
        return batch | {"inputs": {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch["inputs"].items()}}

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        """Seed what the forward pass draws (dropout) by the step: a resumed run draws the same."""
        torch.manual_seed(sample_seed(self._seed, batch_idx, f"rank/{self.global_rank}"))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Loss whose average over ranks and micro-batches is the mean over the step's targets."""
        losses, meta = self.summed_losses(batch), batch["meta"]
        self._window.add({name: loss.detach() for name, (_, loss) in losses.items()}, meta)
        total = sum(weight * loss for weight, loss in losses.values() if weight)
        # DDP and ZeRO divide by the ranks, Lightning by the micro-batches, DeepSpeed by them again
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if hasattr(self.trainer.strategy, "deepspeed_engine"):
            parts *= self.trainer.accumulate_grad_batches
        return total * (parts / max(1, meta["step_tokens"]))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None,
                                    gradient_clip_algorithm=None) -> None:
        """Clip by norm; drop the step when the norm is not finite. DeepSpeed clips by itself."""
        if hasattr(self.trainer.strategy, "deepspeed_engine"):
            return
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"))
        self._window.gradient_norm = norm
        if torch.isfinite(norm):
            return
        self.nonfinite_steps += 1
        limit = self._trainer_config["max_nonfinite_steps"]
        if self.nonfinite_steps > limit:
            raise UserError(
                f"the gradient was not finite in {self.nonfinite_steps} steps "
                f"(trainer.max_nonfinite_steps={limit}), last at step {self.global_step + 1} on "
                f"{', '.join(self._window.keys[:4])}; lower stage.optimizer.lr or look at the data")
        for parameter in parameters:
            parameter.grad = None

    def log_training(self, batch_idx: int) -> None:
        """Write a row of metrics every ``log_every`` steps."""
        boundary = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if not boundary or self.global_step % self._trainer_config["log_every"]:
            return
        row = self._window.close()
        engine = getattr(self.trainer.strategy, "deepspeed_engine", None)
        if engine is not None:
            row["train/gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
            if not math.isfinite(row["train/loss"]):
                raise UserError(f"the loss is not finite at step {self.global_step}; "
                                "lower stage.optimizer.lr or look at the data")
        row["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        row["train/nonfinite_steps"] = self.nonfinite_steps
        self.log_row(row)

    def log_row(self, row: dict[str, float], step: int | None = None) -> None:
        """Send one row to the loggers and keep it for the progress bar; ``step``: by default the
        number of steps taken."""
        step = self.global_step if step is None else step
        self.latest = self.latest | row | {"step": step}
        for logger in self.loggers:
            logger.log_metrics(row, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Optimiser state by parameter name: the same file for every strategy."""
        if hasattr(self.trainer.strategy, "deepspeed_engine"):
            return  # gathered by the strategy
        state = checkpoint["optimizer_states"][0]["state"]
        checkpoint["optimizer_states"] = [{"by_name": {
            name: state[i] for i, name in enumerate(self._optimizer_names()) if i in state}}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the optimiser's state until the optimiser exists; ZeRO loads its own part."""
        if not hasattr(self.trainer.strategy, "deepspeed_engine"):
            self._loaded = checkpoint["optimizer_states"][0]["by_name"]
            checkpoint["optimizer_states"] = []

    def _restore_optimizer(self) -> None:
        """Loaded state back into the optimiser, and the learning rate of this step."""
        optimizer = self.trainer.optimizers[0]
        if self._loaded is not None:
            state = optimizer.state_dict()
            state["state"] = {i: self._loaded[name]
                              for i, name in enumerate(self._optimizer_names())
                              if name in self._loaded}
            optimizer.load_state_dict(state)
            self._loaded = None
        for group in optimizer.param_groups:
            peak = group.get("initial_lr", self._optimizer["lr"])
            group["lr"] = peak * self._lr_factor(self.global_step)

    def parameter_groups(self) -> list[tuple[list[str], dict]]:
        """Names of trainable parameters with options of their own: weight decay on matrices."""
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        decay = self._optimizer["weight_decay"]
        return [([n for n, p in named if p.ndim > 1], {"weight_decay": decay}),
                ([n for n, p in named if p.ndim <= 1], {"weight_decay": 0.0})]

    def _optimizer_groups(self) -> list[tuple[list[str], dict]]:
        """:meth:`parameter_groups`, those of Muon last and with its learning rate."""
        groups, parameters = self.parameter_groups(), dict(self.named_parameters())
        if self._optimizer["name"] == "adamw":
            return groups
        scale, others, matrices = self._optimizer["muon_lr_scale"], [], []
        for names, own in groups:
            ours = [name for name in names if is_layer_matrix(name, parameters[name])]
            others.append(([name for name in names if name not in set(ours)], own))
            matrices.append((ours, own | {
                "muon": True, "lr": scale * own.get("lr", self._optimizer["lr"])}))
        return others + matrices

    def _optimizer_names(self) -> list[str]:
        """Trainable parameters in the optimiser's order."""
        return [name for names, _ in self._optimizer_groups() for name in names]

    def _lr_factor(self, step: int) -> float:
        options = self._optimizer
        return lr_factor(step, total=self.trainer.max_steps, warmup=options["warmup_steps"],
                         schedule=options["schedule"], final=options["final_lr_share"],
                         decay_share=options["decay_share"])

    def configure_optimizers(self) -> dict:
        """The optimiser over :meth:`parameter_groups`; the schedule per step."""
        options, parameters = self._optimizer, dict(self.named_parameters())
        groups = [{"params": [parameters[name] for name in names]} | own
                  for names, own in self._optimizer_groups() if names]
        shared = {"lr": options["lr"], "betas": tuple(options["betas"])}
        if options["name"] == "muon":
            optimizer = MuonWithAdamW(groups, **shared)
        else:
            optimizer = torch.optim.AdamW(groups, **shared, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def at_rates(groups: list[tuple[list[str], dict]], part_of: Callable[[str], Hashable],
             rates: dict[Hashable, float]) -> list[tuple[list[str], dict]]:
    """Groups of :meth:`TrainingModule.parameter_groups`, cut up by the part that each parameter's
    name belongs to; part by part, with the part's learning rate."""
    return [([name for name in names if part_of(name) == part], own | {"lr": rate})
            for part, rate in rates.items() for names, own in groups]


class _WriteRows(Callback):
    """Before a checkpoint of the same step: a run killed between the two has lost no row, and what
    goes beyond the checkpoint is dropped on resuming."""

    def on_train_batch_end(self, trainer, module: TrainingModule, outputs, batch, batch_idx: int
                           ) -> None:
        """A callback's turn comes before the module's own."""
        module.log_training(batch_idx)


class _Window:
    """Sums since the last row of metrics; losses stay on the device until the row is written."""

    def __init__(self) -> None:
        self.gradient_norm: Tensor | float = 0.0
        self._reset()

    def _reset(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._tokens, self._seconds, self._batches, self._padding = 0, 0.0, 0, 0.0
        self.keys: list[str] = []
        self._started = time.perf_counter()

    def add(self, losses: dict[str, Tensor], meta: dict) -> None:
        for name, loss in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + loss
        self._tokens += meta["target_tokens"]
        self._seconds += sum(entry.duration for entry in meta["entries"])
        self._padding += meta["padding"]
        self._batches += 1
        self.keys = [entry.key for entry in meta["entries"]]

    def close(self) -> dict[str, float]:
        """The row over all ranks; starts the next window."""
        elapsed = time.perf_counter() - self._started
        names = sorted(self._losses)
        *sums, tokens, seconds, padding, batches = sum_over_ranks(
            *(float(self._losses[name]) for name in names), float(self._tokens), self._seconds,
            self._padding, float(self._batches))
        row = {f"train/{name}": total / max(1.0, tokens)
               for name, total in zip(names, sums, strict=True)}
        row |= {
            "train/audio_seconds_per_second": seconds / elapsed,
            "train/padding_share": padding / max(1.0, batches),
            "train/gradient_norm": float(self.gradient_norm),
        }
        self._reset()
        return row


def freeze(model: nn.Module, patterns: list[str]) -> int:
    """Stop training the parameters whose names match; UserError for a pattern that matches none."""
    frozen = 0
    for pattern in patterns:
        matched = [p for name, p in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matched:
            example = next(iter(dict(model.named_parameters())))
            raise UserError(f"model.freeze: '{pattern}' matches no parameter (names look like "
                            f"'{example}')")
        for parameter in matched:
            frozen += parameter.requires_grad * parameter.numel()
            parameter.requires_grad = False
    return frozen


def splits_matrices(config) -> bool:
    """Whether a rank has matrices in parts, of which Muon needs the whole."""
    return config.strategy.name.startswith("zero")


def build_trainer(config, run_dir: Path) -> lightning.Trainer:
    """The Trainer of a run from the ``trainer``, ``strategy`` and ``logger`` groups."""
    options = config.trainer
    accelerator = options.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    precision = options.precision
    if precision == "auto":
        bf16 = accelerator == "gpu" and torch.cuda.is_bf16_supported()
        precision = "bf16-mixed" if bf16 else "32-true"
    if config.stage.optimizer.name == "muon" and splits_matrices(config):
        raise UserError(f"stage.optimizer.name=muon needs whole matrices, which strategy="
                        f"{config.strategy.name} has in parts: strategy=ddp or single")
    strategy, devices = build_strategy(config.strategy, accelerator)
    loggers = [MetricsFile(run_dir / "metrics.jsonl")]
    if config.logger.name == "wandb":
        loggers.append(wandb_logger(config, run_dir))
    callbacks = [_WriteRows(), SaveCheckpoints(
        run_dir / "checkpoints", options.checkpoint_every, options.keep_checkpoints)]
    if options.progress:
        callbacks.append(TrainingProgress())
    trainer = lightning.Trainer(
        accelerator=accelerator, devices=devices, num_nodes=config.strategy.num_nodes,
        strategy=strategy, precision=precision, logger=loggers, callbacks=callbacks,
        plugins=[AtomicCheckpointIO()] if config.strategy.name == "single" else None,
        max_steps=options.max_steps, max_epochs=-1, accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip or None, use_distributed_sampler=False,
        val_check_interval=options.validate_every * options.accumulate or None,
        check_val_every_n_epoch=None, limit_val_batches=1.0 if options.validate_every else 0,
        num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, deterministic=options.deterministic or None,
        log_every_n_steps=1, default_root_dir=run_dir)
    trainer._signal_connector._sigterm_notifier_fn = partial(note_sigterm, trainer)
    return trainer


def note_sigterm(trainer: lightning.Trainer, signum: int, _frame: FrameType | None) -> None:
    """On SIGTERM: pass it on to processes of our own, and stop behind the batch.

    In place of Lightning 2.6's handler, which also broadcasts, in the midst of whatever collective
    the ranks are in: they would wait for ever. Its loop shares the flag between batches anyway.
    """
    connector, launcher = trainer._signal_connector, trainer.strategy.launcher
    if not connector.received_sigterm and launcher is not None:
        launcher.kill(signum)
    connector.received_sigterm = True
