"""The figures of the aligner's recipe."""

import json
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes" / "embedded"


def test_figures_of_several_seeds(tmp_path):
    for seed, student in (("0", 40.0), ("1", 50.0)):
        for name, metrics in (("aligner", {"test/teacher_aas_ms": 100.0}),
                              ("suite", {"embedded/aas_ms": student})):
            (tmp_path / seed / name).mkdir(parents=True)
            (tmp_path / seed / name / "metrics.json").write_text(json.dumps(metrics))
    done = subprocess.run([sys.executable, str(RECIPES / "aligner_figures.py"),
                           str(tmp_path / "0"), str(tmp_path / "1")], check=True,
                          capture_output=True, text=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0] == ["AAS, ms", "student", "teacher"]
    assert [line[1:] for line in lines[1:]] == [["40.0", "100.0"], ["50.0", "100.0"],
                                                ["45.0", "100.0"]]


def test_the_recipe_is_a_script():
    subprocess.run(["bash", "-n", str(RECIPES / "aligner.sh")], check=True)
