"""The figures of recipes/embedded/rl.sh: python recipes/embedded/rl_figures.py runs/embedded_rl

Before, and after each variant: the mean over seeds and, of several, the range.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf


def cell(values: list[float]) -> str:
    """Mean, and the range of several."""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" + (f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else "")


def main(work: Path) -> None:
    """One line a figure, one column a variant."""
    columns = {"before": [work / "before"]}
    for folder in sorted(work.glob("[0-9]*/*/suite")):
        columns.setdefault(folder.parent.name, []).append(folder)
    figures = {name: [json.loads((f / "metrics.json").read_text()) for f in folders]
               for name, folders in columns.items()}
    headline = OmegaConf.load(work / "before/config.yaml").suite.headline
    print(f"{'':<26}" + "".join(f"{name:>24}" for name in columns))
    for name in headline:
        print(f"{name:<26}" + "".join(f"{cell([run[name] for run in runs]):>24}"
                                      for runs in figures.values()))
    seconds = {name: [json.loads((f.parent / "metrics.json").read_text())["train/seconds"]
                      for f in folders] for name, folders in columns.items() if name != "before"}
    print(f"{'seconds of training':<26}{'–':>24}" + "".join(
        f"{sum(values) / len(values):>24.0f}" for values in seconds.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
