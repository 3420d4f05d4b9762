"""The headline figures of suite runs side by side.

    python recipes/embedded/suite_figures.py runs/embedded_sft/0 runs/embedded_sft/1

Each folder has aut_first/, aut/, aut_more/, text/, text_lists/, start/, sft/, last/ and suite/, as
pretrain.sh and sft.sh leave them.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

_TRAINING = ("preparing_seconds", "training_seconds")
SECONDS = {  # what is printed -> folder -> times in its metrics.json
    "seconds of pretraining": dict.fromkeys(
        ("aut_first", "aut", "aut_more", "text", "text_lists"), _TRAINING),
    "seconds": {"start": _TRAINING, "sft": _TRAINING, "last": _TRAINING,
                "suite": ("preparing_seconds", "testing_seconds")},
}


def main(folders: list[Path]) -> None:
    """One line a figure, one column a run."""
    suites = [json.loads((folder / "suite/metrics.json").read_text()) for folder in folders]
    names = list(OmegaConf.load(folders[0] / "suite/config.yaml").suite.headline)
    print(f"{'':<32}" + "".join(f"{folder.name:>10}" for folder in folders))
    for name in names:
        print(f"{name:<32}" + "".join(f"{suite[name]:>10.4f}" if name in suite else f"{'–':>10}"
                                      for suite in suites))
    for name, parts in SECONDS.items():
        values = [sum(json.loads((folder / part / "metrics.json").read_text())[f"time/{what}"]
                      for part, whats in parts.items() for what in whats) for folder in folders]
        print(f"{name:<32}" + "".join(f"{value:>10.0f}" for value in values))


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
