"""The figures of the ladder of stages."""

import json
import runpy
import subprocess
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "ladder"


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return runpy.run_path(str(RECIPE / "figures.py"))["main"]


def test_error_rates_of_seeds_and_starts(figures, tmp_path, capsys):
    for seed, plus in (("0", 0.0), ("1", 0.1)):
        for name, wer in (("scratch", 0.5), ("from_aut", 0.3), ("from_omni", 0.2)):
            folder = tmp_path / seed / name
            folder.mkdir(parents=True)
            rows = [{"step": 5, "train/loss": 1.0}, {"step": 10, "val/wer": wer + plus}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            (folder / "metrics.json").write_text(json.dumps(
                {"test/wer": wer, "test/wer_low": wer - 0.1, "test/wer_high": wer + 0.1}))
    assert figures([tmp_path / "0", tmp_path / "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines
            if "10 steps" in line or "seed" in line]
    assert rows == [["validation, 10 steps", "0.550", "0.350", "0.250"]] + [
        [f"test, seed {seed}", "0.500 (0.400 to 0.600)", "0.300 (0.200 to 0.400)",
         "0.200 (0.100 to 0.300)"] for seed in "01"]


def test_what_is_missing_is_named(figures, tmp_path, capsys):
    assert figures([]) == 2 and figures([tmp_path]) == 2
    errors = capsys.readouterr().err
    assert "name folders" in errors and f"no {tmp_path / 'scratch' / 'metrics.json'}" in errors


def test_the_recipe_is_a_script():
    subprocess.run(["bash", "-n", str(RECIPE / "run.sh")], check=True)
