"""The figures of recipes/embedded/rl.sh: python recipes/embedded/rl_figures.py runs/embedded_rl

Before, and after each variant: the mean over seeds and, of several, the range; then how each
error rate has changed, a seed's against the same seed's before.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

BEFORE = "before"


def cell(values: list[float], form: str) -> str:
    """Mean, and the range of several."""
    mean = format(sum(values) / len(values), form)
    if len(values) < 2:
        return mean
    return f"{mean} ({format(min(values), form)} to {format(max(values), form)})"


def main(work: Path) -> None:
    """One line a figure, one column a variant."""
    before = {folder.parent.name: folder for folder in sorted(work.glob("[0-9]*/before"))}
    columns = {BEFORE: before}
    for folder in sorted(work.glob("[0-9]*/*/suite")):
        columns.setdefault(folder.parent.name, {})[folder.parent.parent.name] = folder
    figures = {name: {seed: json.loads((folder / "metrics.json").read_text())
                      for seed, folder in folders.items()} for name, folders in columns.items()}
    headline = list(OmegaConf.load(next(iter(before.values())) / "config.yaml").suite.headline)
    rows = [["", *(f"{name}, seeds {' '.join(runs)}" for name, runs in figures.items())]]
    rows += [[name, *(cell([run[name] for run in runs.values()], ".3f")
                      for runs in figures.values())] for name in headline]
    rows += [[f"{name}, change", "", *(
        cell([run[name] / figures[BEFORE][seed][name] - 1 for seed, run in runs.items()], "+.1%")
        for variant, runs in figures.items() if variant != BEFORE)]
        for name in headline if "/wer" in name]
    rows.append(["seconds of training", "", *(
        cell([json.loads((folder.parent / "metrics.json").read_text())["train/seconds"]
              for folder in folders.values()], ".0f")
        for variant, folders in columns.items() if variant != BEFORE)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
