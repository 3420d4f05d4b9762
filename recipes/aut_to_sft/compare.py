"""Validation error rates of two runs side by side, and when the second reaches the first's end.

    python recipes/aut_to_sft/compare.py RUN_FROM_SCRATCH RUN_FROM_ENCODER
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwen3asr_train.runtime.metrics import read_history


def curve(run: Path) -> dict[int, float]:
    """Step -> validation WER of a run."""
    return {row["step"]: row["val/wer"] for row in read_history(run / "metrics.jsonl")
            if "val/wer" in row}


def main(arguments: list[str]) -> int:
    """Print the table; the exit status is 2 for wrong arguments."""
    runs = [Path(argument) for argument in arguments]
    if len(runs) != 2 or not all((run / "metrics.json").is_file() for run in runs):
        print("error: name two finished runs: compare.py RUN_FROM_SCRATCH RUN_FROM_ENCODER",
              file=sys.stderr)
        return 2
    curves = [curve(run) for run in runs]
    table = Table("step", *(run.name for run in runs), title="validation WER", title_justify="left")
    for step in sorted(set().union(*curves)):
        table.add_row(str(step), *(f"{found[step]:.3f}" if step in found else "" for found in
                                   curves))
    Console().print(table)
    last = max(curves[0])
    reached = [step for step, wer in sorted(curves[1].items()) if wer <= curves[0][last]]
    print(f"{runs[0].name} ends at {curves[0][last]:.3f} after {last} steps; {runs[1].name} "
          + (f"is there after {reached[0]}, {reached[0] / last:.2f} of the steps" if reached
             else "does not get there"))
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        print(f"{run.name}: test/wer={metrics['test/wer']:.4f} after "
              f"{metrics['train/steps']:.0f} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
