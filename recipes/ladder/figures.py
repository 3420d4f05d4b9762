"""Error rates of the SFT runs of the ladder: python recipes/ladder/figures.py runs/ladder/[012]

Validation WER by step, the mean over the seeds, and the test WER of each seed.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwen3asr_train.runtime.metrics import read_history

RUNS = ("scratch", "from_aut", "from_omni")


def main(folders: list[Path]) -> int:
    """Print the table; the exit status is 2 where a run is missing."""
    missing = [run for folder in folders for name in RUNS
               if not (run := folder / name / "metrics.json").is_file()]
    if not folders or missing:
        print(f"error: {f'no {missing[0]}' if missing else 'name folders of run.sh'}",
              file=sys.stderr)
        return 2
    table = Table("WER", *RUNS, title="SFT", title_justify="left")
    curves = {name: [{row["step"]: row["val/wer"]
                      for row in read_history(folder / name / "metrics.jsonl") if "val/wer" in row}
                     for folder in folders] for name in RUNS}
    for step in curves[RUNS[0]][0]:
        table.add_row(f"validation, {step} steps", *(
            f"{sum(curve[step] for curve in curves[name]) / len(folders):.3f}" for name in RUNS))
    for folder in folders:
        tests = [json.loads((folder / name / "metrics.json").read_text()) for name in RUNS]
        table.add_row(f"test, seed {folder.name}", *(
            f"{test['test/wer']:.3f} ({test['test/wer_low']:.3f} to {test['test/wer_high']:.3f})"
            for test in tests))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
