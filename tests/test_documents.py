"""What READMEs, recipes and configs name is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for pattern in ("README.md", "recipes/**/*.md", "recipes/**/*.sh",
                                        "configs/**/*.yaml", "launch/*")
                   for path in ROOT.glob(pattern) if path.is_file())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    for group in ("experiment", "suite", "stage"):
        for name in re.findall(rf"\b{group}=([a-z]\w*)", text):
            assert (ROOT / "configs" / group / f"{name}.yaml").is_file(), f"{group}={name}"
    for module in re.findall(r"-m ((?:data_prep|qwen3asr_train)[\w.]*\w)", text):
        assert find_spec(module) is not None, module
    for file in re.findall(r"\b((?:recipes|configs|launch|tests)/[\w/.-]+\.\w+)\b", text):
        assert "NAME" in file or (ROOT / file).exists(), file  # NAME: the reader's


def test_documents_are_found():
    assert ROOT / "README.md" in DOCUMENTS and len(DOCUMENTS) > 50
