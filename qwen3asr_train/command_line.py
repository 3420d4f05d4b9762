"""What happens at the command line before and after a stage: checks, messages, the last lines."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
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

PRINTING = ("transcribe", "align")
"""Stages whose results go to stdout; they leave no run folder."""

WITHOUT_LORA = ("aut", "aligner", "omni")

OWN_NAMES = ("stage.conditions.", "suite.", "stage.phases.", "stage.tasks.")
"""Fields below which users put names of their own."""

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
        if name in FREE_TEXT and not (name == "audio" and value.startswith("[")):
            value = quoted(value)
            argument = f"{name}={value}"
        expanded.append(f"{SHORTHANDS[name]}={value}" if known else argument)
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
    if named[0] in PRINTING and len(named) == 1:
        at = expanded.index(f"stage={named[0]}")
        expanded[at:at] = ["hydra.run.dir=.", "hydra.output_subdir=null"]
    return expanded


def quoted(text: str) -> str:
    """Free text as a quoted value of hydra's grammar, unless it is quoted already."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text
    # a quote is escaped, and so is a backslash in front of one (or of the closing one)
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text)
    return '"' + escaped.replace("${", "\\${") + '"'


def refuse_unknown_keys(config: DictConfig) -> None:
    """UserError for keys that no config group defines, e.g. one misspelt in an experiment file.

    What ``debug=`` sets of fields that this stage or data do not have is left out.
    """
    groups = HydraConfig.get().runtime.choices
    overrides = [f"{group}={choice}" for group, choice in groups.items()
                 if choice and "/" not in group and group not in ("experiment", "debug")]
    known = compose("config", overrides=overrides)
    defined = _paths(known)
    # below a field that is null or {} by default stand names of the user's own
    free = (*OWN_NAMES, *(f"{path}." for path, value in defined.items() if value in (None, {})))
    unknown = sorted(path for path in _paths(config).keys() - defined.keys()
                     if not path.startswith(free))
    if groups.get("debug"):
        optional = _paths(OmegaConf.load(CONFIGS / "debug" / f"{groups['debug']}.yaml"))
        for path in (path for path in reversed(unknown) if path in optional):
            parent, _, name = path.rpartition(".")
            with open_dict(config):
                del OmegaConf.select(config, parent)[name]
        unknown = [path for path in unknown if path not in optional]
    if unknown:
        raise UserError(f"unknown config key '{unknown[0]}'; python -m qwen3asr_train "
                        "stage=… --help lists the fields")


def refuse_contradictions(config: DictConfig) -> None:
    """UserError for ``init_from`` beside ``init_from_encoder`` in a stage that cannot put the one
    into the other, and for LoRA in a stage that has none or under ZeRO-3, where no rank has
    matrices to merge."""
    stage = config.stage
    if config.model.lora.rank and stage.name in WITHOUT_LORA:
        raise UserError(f"stage={stage.name} trains whole matrices: no model.lora")
    if config.model.lora.rank and config.strategy.name == "zero3":
        raise UserError("model.lora with strategy=zero3: adapters are small, take strategy=zero2")
    if stage.name != "sft" and stage.get("init_from") and stage.get("init_from_encoder"):
        raise UserError(f"init_from={stage.init_from} brings its own encoder: leave out "
                        f"init_from_encoder={stage.init_from_encoder}")


def _paths(config: DictConfig) -> dict[str, object]:
    """Dotted paths of all keys, and their values."""
    found = {}
    for key, value in OmegaConf.to_container(config, resolve=False).items():
        stack = [(key, value)]
        while stack:
            path, item = stack.pop()
            found[path] = item
            if isinstance(item, dict):
                stack += [(f"{path}.{name}", child) for name, child in item.items()]
    return found


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
