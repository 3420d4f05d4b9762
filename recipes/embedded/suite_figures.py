"""The headline figures of suite runs side by side.

    python recipes/embedded/suite_figures.py runs/embedded_sft/0 runs/embedded_sft/1

Each folder has text/, start/, sft/ and suite/, as sft.sh leaves them.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf


def main(folders: list[Path]) -> None:
    """One line a figure, one column a run."""
    suites = [json.loads((folder / "suite/metrics.json").read_text()) for folder in folders]
    names = list(OmegaConf.load(folders[0] / "suite/config.yaml").suite.headline)
    print(f"{'':<32}" + "".join(f"{folder.name:>10}" for folder in folders))
    for name in names:
        print(f"{name:<32}" + "".join(f"{suite[name]:>10.4f}" if name in suite else f"{'–':>10}"
                                      for suite in suites))
    seconds = [sum(json.loads((folder / part / "metrics.json").read_text())[f"time/{what}_seconds"]
                   for part, last in (("text", "training"), ("start", "training"),
                                      ("sft", "training"), ("suite", "testing"))
                   for what in ("preparing", last)) for folder in folders]
    print(f"{'seconds':<32}" + "".join(f"{value:>10.0f}" for value in seconds))


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
