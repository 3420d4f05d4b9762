"""What the README says of who imports whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qwen3asr_train"


def imported(file: Path) -> set[str]:
    """Modules that a file names in imports, at its top or in functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("layer", ["models", "objectives", "data"])
def test_lower_layers_know_nothing_of_stages_or_lightning(layer):
    files = sorted((PACKAGE / layer).glob("**/*.py"))
    assert files
    for file in files:
        above = {name for name in imported(file) if name.split(".")[0] == "lightning"
                 or name.split(".")[:2] == ["qwen3asr_train", "stages"]}
        assert not above, f"{file}: {above}"


def test_imports_are_seen():
    seen = imported(PACKAGE / "stages" / "aut.py") | imported(PACKAGE / "runtime" / "training.py")
    assert {"lightning", "qwen3asr_train.stages.fit"} <= seen
