"""What happens at the command line before and after a stage: checks, messages, the last lines."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwen3asr_train.errors import UserError

_PACKAGE = Path(__file__).parent
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs")
               if path.is_dir())
"""The config tree: inside an installed wheel, or beside the package in a checkout."""

SHORTHANDS = {"init_from": "stage.init_from", "init_from_encoder": "stage.init_from_encoder",
              "language_model_from": "stage.language_model_from",
              "vision_from": "stage.vision_from",
              "format": "stage.format", "language": "stage.language",
              "context": "stage.context", "streaming": "stage.streaming", "text": "stage.text",
              "out": "stage.out", "timestamps": "stage.timestamps", "aligner": "stage.aligner"}
"""Fields of the stage that may be written without ``stage.``."""

FREE_TEXT = ("text", "stage.text", "context", "stage.context", "audio")
"""Fields whose values hydra's grammar, which has commas, quotes and brackets for its own, is not to
read; but for lists of files."""

FOLDERS = ("run_dir", "resume", "data.train", "data.validation", "data.test", "stage.init_from",
           "stage.init_from_encoder", "stage.language_model_from", "stage.vision_from",
           "stage.aligner", "stage.out")
"""Fields that name files; those of a sweep have ``=`` in their names."""

WITHOUT_FOLDER = ("transcribe", "align", "export")
"""Stages without a run folder: their results go to stdout, or where they are told."""

HEADLINE = ("test/aas_ms", "test/aas_floor_ms", "test/teacher_aas_ms", "test/ctc_aas_ms",
            "val/aas_ms", "test/wer", "test/wer_low", "test/wer_high", "test/cer",
            "test/lid_accuracy", "test/captions/exact_match", "test/spoken_questions/exact_match",
            "test/sounds/exact_match", "test/text/perplexity", "val/wer", "train/loss",
            "train/padding_share", "train/steps", "train/seconds")


def check_arguments(arguments: list[str]) -> list[str]:
    """Expand the shorthands; UserError for a stage that is missing or does not exist."""
    expanded = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        known = equals and name in SHORTHANDS
        field = SHORTHANDS[name] if known else name
        is_list = name == "audio" and value[:1] == "[" and value[-1:] == "]" \
            and not Path(value).exists()
        if (name in FREE_TEXT and not is_list) or \
                (field in FOLDERS and "=" in value and value[0] not in "[{'\""):
            value = quoted(value)
        expanded.append(f"{field}={value}" if equals else argument)
    stages = sorted(path.stem for path in (CONFIGS / "stage").glob("*.yaml"))
    named = [a.split("=", 1)[1] for a in expanded if a.startswith("stage=")]
    if not named and {"--help", "-h"} & set(expanded):
        return [*expanded, "stage=sft"]  # the help text shows the fields of one stage
    if not named:
        raise UserError(f"name a stage: python -m qwen3asr_train stage=sft "
                        f"(stages: {', '.join(stages)}; --help shows more)")
    for stage in (s for value in named for s in value.split(",")):
        if stage not in stages:
            raise UserError(f"no stage '{stage}' (stages: {', '.join(stages)})")
    if sweeps := {"--multirun", "-m"} & set(expanded):  # argparse wants all overrides in one place
        expanded = ["--multirun", *(a for a in expanded if a not in sweeps)]
    if named[0] in WITHOUT_FOLDER and len(named) == 1:
        at = expanded.index(f"stage={named[0]}")
        expanded[at:at] = ["hydra.run.dir=.", "hydra.output_subdir=null"]
    return expanded


def quoted(text: str) -> str:
    """Free text as a quoted value of hydra's grammar, unless it is quoted already."""
    if re.fullmatch(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", text, re.DOTALL):
        return text
    # a quote is escaped, and so is a backslash in front of one (or of the closing one)
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text)
    return '"' + escaped.replace("${", "\\${") + '"'


def explain(error: Exception) -> str:
    """Hydra's message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return (f"no config field '{unknown[1]}'; python -m qwen3asr_train stage=… --help lists "
                "them, and configs/ says what each means")
    for tail in ("Config search path:", "To append to your config", "Set the environment variable"):
        text = text.split(tail)[0].strip()  # hydra's advice is about its own internals
    return text


def report_error(message: str, status: int = 2) -> int:
    """Print ``error: …`` on stderr as one line."""
    print("error: " + " ".join(message.split("\n")), file=sys.stderr)
    return status


def print_result(stage: str, metrics: dict[str, float], run_dir: Path,
                 headline: Iterable[str] = ()) -> None:
    """A small table and, as the last line, the run folder with the headline figures."""
    shown = {name: metrics[name] for name in (*headline, *HEADLINE) if name in metrics}
    if not shown:
        return
    table = Table(title=f"{stage} finished", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in shown.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    figures = " ".join(f"{name}={value:.4g}" for name, value in shown.items())
    try:
        folder = run_dir.relative_to(Path.cwd())
    except ValueError:
        folder = run_dir
    print(f"{folder}/report.html {figures}" if (run_dir / "report.html").is_file()
          else f"{folder} {figures}")
