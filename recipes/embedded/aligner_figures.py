"""The figures of recipes/embedded/aligner.sh, a line for each seed's folder, and their means."""

import json
import sys
from pathlib import Path
from statistics import mean

FIGURES = {
    "student": "embedded/aas_ms", "teacher": "test/teacher_aas_ms", "ctc": "embedded/ctc_aas_ms",
    "floor": "embedded/aas_floor_ms", "joined 60 s": "embedded/joined_60s/aas_ms",
    "joined 300 s": "embedded/joined_300s/aas_ms", "across": "embedded/cross_lingual/aas_ms",
    "10 dB": "embedded/snr_10/aas_ms", "digits": "digits/aas_ms", "digits ctc": "digits/ctc_aas_ms"}


def figures(folder: Path) -> dict[str, float]:
    """AAS in ms by what it is of."""
    metrics = {}
    for name in ("aligner", "suite"):
        metrics |= json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
    return {label: metrics[name] for label, name in FIGURES.items() if name in metrics}


def main() -> None:
    """A table in ms."""
    rows = {folder: figures(Path(folder)) for folder in sys.argv[1:]}
    labels = [label for label in FIGURES if any(label in row for row in rows.values())]
    print("\t".join(["AAS, ms", *labels]))
    for folder, row in rows.items():
        print("\t".join([folder, *(f"{row[label]:.1f}" if label in row else "-"
                                   for label in labels)]))
    print("\t".join(["mean", *(f"{mean(r[label] for r in rows.values() if label in r):.1f}"
                               for label in labels)]))


if __name__ == "__main__":
    main()
