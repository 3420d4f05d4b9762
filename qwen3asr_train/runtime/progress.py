"""Progress bars. While training: loss, learning rate, seconds of audio a second, time left."""

import time
from collections.abc import Iterable

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)


def show_progress(items: Iterable, label: str, total: int, rank: int) -> Iterable:
    """``items`` with a bar, on the first rank's terminal."""
    console = Console(stderr=True)
    return track(items, label, total=total, console=console, transient=True,
                 disable=rank != 0 or not console.is_terminal)


class TrainingProgress(Callback):
    """A rich bar on a terminal; elsewhere one plain line a row of metrics."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._started, self._first, self._printed = 0.0, 0, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the resumed step."""
        self._started, self._first = time.perf_counter(), trainer.global_step
        if not trainer.is_global_zero or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  lr {task.fields[lr]}  "
                       "{task.fields[speed]} s audio/s  {task.fields[extra]}"),
            TextColumn("left"), TimeRemainingColumn(), console=self._console)
        self._task = self._bar.add_task("training", total=trainer.max_steps,
                                        completed=trainer.global_step, loss="…", lr="…", speed="…",
                                        extra="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_) -> None:
        """Show the newest row of metrics."""
        row = module.latest
        if self._bar is not None:
            fields = {}
            if "train/loss" in row:
                fields = {"loss": f"{row['train/loss']:.3f}", "lr": f"{row['train/lr']:.1e}",
                          "speed": f"{row['train/audio_seconds_per_second']:.0f}"}
            self._bar.update(self._task, completed=trainer.global_step, extra=_extra(row), **fields)
        elif trainer.is_global_zero and "train/loss" in row and row["step"] != self._printed:
            # the row of a step is written after the callbacks have seen that step
            self._printed = row["step"]
            pace = (time.perf_counter() - self._started) / (trainer.global_step - self._first)
            left = pace * (trainer.max_steps - trainer.global_step)
            self._console.print(
                f"step {row['step']}/{trainer.max_steps}  loss {row['train/loss']:.3f}  "
                f"lr {row['train/lr']:.1e}  {row['train/audio_seconds_per_second']:.0f} s audio/s  "
                f"{_extra(row)}  {left / 60:.1f} min left", highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception) -> None:
        """Close the bar, so that the message below it stays readable."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _extra(row: dict[str, float]) -> str:
    """What some stages have and others do not."""
    return "  ".join(f"{label} {row[name]:.3f}" for label, name in (
        ("reward", "rollout/reward"), ("val WER", "val/wer")) if name in row)
