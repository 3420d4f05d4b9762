"""Checkpoints that are whole or absent, and where to resume.

A checkpoint is one file with plain tensors and numbers, the same for every strategy: model weights
and, by parameter name, the optimiser's state. It is read with ``weights_only=True``.
"""

import errno
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO

from qwen3asr_train.errors import UserError

_NAME = re.compile(r"step-(\d+)\.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames, so that a crash or a full disk leaves no half file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path,
                        storage_options: Any = None) -> None:
        """Save; UserError naming the folder when the disk is full."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        try:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            # torch's zip writer reports a failed write as a RuntimeError; ask the disk
            if getattr(error, "errno", None) == errno.ENOSPC or _disk_is_full(path.parent):
                raise UserError(f"no space left in {path.parent} while saving {path.name}; "
                                "nothing of it was kept, earlier checkpoints are whole") from error
            raise
        os.replace(partial, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu",
                        weights_only: bool | None = True) -> dict[str, Any]:
        """Load tensors and plain containers only; nothing in the file is executed."""
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"resume={path}: not ours; it holds more than plain tensors and "
                            "numbers, and nothing in it was executed") from error
        except (OSError, RuntimeError, EOFError) as error:
            raise UserError(f"resume={path}: not a whole checkpoint ({error})") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint file."""
        Path(path).unlink(missing_ok=True)


def _disk_is_full(folder: Path) -> bool:
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize < 1 << 20


class SaveCheckpoints(Callback):
    """``step-N.ckpt`` every ``every`` steps and at the end; the newest ``keep`` stay."""

    def __init__(self, folder: Path, every: int, keep: int):
        self.folder, self.every, self.keep = folder, every, keep

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_) -> None:
        """Save when an optimiser step has just completed on the interval."""
        step = trainer.global_step
        at_boundary = (trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = self.every and step % self.every == 0
        if at_boundary and step and (due or step >= trainer.max_steps):
            trainer.save_checkpoint(self.folder / f"step-{step}.ckpt")
            if trainer.is_global_zero:
                for old in checkpoints(self.folder)[:-self.keep]:
                    trainer.strategy.checkpoint_io.remove_checkpoint(old)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in ``folder``, oldest step first."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name).group(1)))


def resume_from(resume: str | None, run_dir: Path) -> Path | None:
    """The checkpoint that ``resume`` names: ``auto``, a file, a run folder, or none."""
    if resume is None:
        return None
    if resume == "auto":
        found = checkpoints(run_dir / "checkpoints")
        return found[-1] if found else None
    path = Path(str(resume))  # true and numbers are no paths either
    if path.is_dir():
        found = checkpoints(path / "checkpoints") or checkpoints(path)
        if found:
            return found[-1]
    elif path.is_file():
        return path
    raise UserError(f"resume={resume}: no checkpoint there (auto, a step-N.ckpt, or a run folder)")


def refuse_used_folder(run_dir: Path, checkpoint: Path | None) -> None:
    """UserError for checkpoints of an earlier run that a run from ``checkpoint`` (None: from the
    start) would be mixed up with: only the newest stay, and ``resume=auto`` takes the newest."""
    found = checkpoints(run_dir / "checkpoints")
    if found and (checkpoint is None or found[-1].resolve() != checkpoint.resolve()):
        raise UserError(f"run_dir={run_dir} holds {found[-1].name} of an earlier run: resume=auto "
                        "goes on from it, another run_dir begins a run of its own")


def unfinished_run(root: Path) -> Path | None:
    """The newest run folder under ``root`` that has a checkpoint and no metrics.json."""
    runs = [run for run in sorted(root.glob("*")) if not (run / "metrics.json").exists() and
            (checkpoints(run / "checkpoints") or any(run.glob("phases/*/*/checkpoints/*.ckpt")))]
    return runs[-1] if runs else None
