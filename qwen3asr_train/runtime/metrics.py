"""metrics.jsonl and metrics.json of a run folder."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """A Lightning logger that appends rows ``{"step": …, name: number}`` to metrics.jsonl."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Shown by Lightning."""
        return "metrics"

    @property
    def version(self) -> str:
        """One file a run."""
        return "0"

    @rank_zero_only
    def log_hyperparams(self, *args, **kwargs) -> None:
        """The run folder has config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row; written at once, so that a killed run keeps its history."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | metrics) + "\n")

    def rewind(self, step: int) -> None:
        """Drop rows after ``step``: a resumed run writes them again, a new one begins empty."""
        rewind(self.path, step)


def read_history(path: Path) -> list[dict]:
    """Rows of a JSONL file; a last line cut short by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def rewind(path: Path, step: int) -> None:
    """Drop the rows of a history, if there is one, that came after ``step``."""
    if path.is_file():
        write_rows(path, [row for row in read_history(path) if row["step"] <= step])


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """A JSONL file, whole or not at all."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_metrics(path: Path, metrics: dict[str, float]) -> None:
    """metrics.json: flat, sorted, numbers that are not finite as null."""
    clean = {k: v if math.isfinite(v) else None for k, v in sorted(metrics.items())}
    write_atomically(path, json.dumps(clean, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
