"""What is checked of a composed config before a stage begins: mistakes that would show late, or not
at all."""

import logging
import math
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from qwen3asr_train.command_line import CONFIGS
from qwen3asr_train.errors import UserError

log = logging.getLogger(__name__)

WITHOUT_LORA = ("aut", "aligner", "omni")

OWN_NAMES = ("stage.conditions.", "suite.", "stage.phases.", "stage.tasks.")
"""Fields below which users put names of their own."""

NUMBERS_OR_NAMES = ("model.tokenizer", "strategy.devices")
"""Fields that are a number by default and may be something else."""

WHOLE = {"seed": 0, "trainer.max_steps": 1, "trainer.accumulate": 1, "trainer.validate_every": 0,
         "data.workers": 0, "model.lora.rank": 0, "stage.optimizer.warmup_steps": 0,
         "stage.decoding.max_new_tokens": 1}
"""Whole numbers, and the least that each may be."""

ABOVE_0 = ("data.batch_seconds", "data.max_seconds", "data.evaluation_seconds",
           "stage.batch_seconds", "stage.decoding.max_piece_seconds",
           "stage.decoding.pause_seconds", "stage.decoding.max_seconds",
           "stage.live.chunk_seconds")
"""Fields that are above 0."""

NOT_OF_A_RUN = ("resume", "run_dir", "strategy", "logger")
"""Groups that may differ when a run goes on."""


def check(config: DictConfig) -> None:
    """UserError for a config that no stage can run."""
    defined = defaults()
    refuse_unknown_keys(config, defined)
    refuse_wrong_types(config, defined)
    refuse_out_of_range(config, defined)
    refuse_contradictions(config)


def defaults() -> dict[str, object]:
    """Dotted paths of all fields of the chosen groups, and their values there."""
    overrides = [f"{group}={choice}" for group, choice in _groups().items()
                 if choice and "/" not in group and group not in ("experiment", "debug")]
    return fields(compose("config", overrides=overrides))


def refuse_unknown_keys(config: DictConfig, defined: dict[str, object]) -> None:
    """UserError for keys that no config group defines, e.g. one misspelt in an experiment file.

    What ``debug=`` sets of fields that this stage or data do not have is left out.
    """
    groups = _groups()
    # below a field that is null or {} by default stand names of the user's own
    free = (*OWN_NAMES, *(f"{path}." for path, value in defined.items() if value in (None, {})))
    unknown = sorted(path for path in fields(config).keys() - defined.keys()
                     if not path.startswith(free))
    if groups.get("debug"):
        optional = fields(OmegaConf.load(CONFIGS / "debug" / f"{groups['debug']}.yaml"))
        for path in (path for path in reversed(unknown) if path in optional):
            parent, _, name = path.rpartition(".")
            with open_dict(config):
                del OmegaConf.select(config, parent)[name]
        unknown = [path for path in unknown if path not in optional]
    if unknown:
        raise UserError(f"unknown config key '{unknown[0]}'; python -m qwen3asr_train "
                        "stage=… --help lists the fields")


def refuse_wrong_types(config: DictConfig, defined: dict[str, object]) -> None:
    """UserError for text where a number, and for a number where a list or true or false is the
    default; null is left to the stages."""
    for path, value in fields(config).items():
        default = defined.get(path)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, bool):
            wrong, wanted = value is not None and not isinstance(value, bool), "true or false"
        elif isinstance(default, int | float) and path not in NUMBERS_OR_NAMES:
            # a text with ${…} may become a number
            wrong = value is not None and not is_number and "${" not in str(value)
            wanted = "a number"
        elif isinstance(default, list):
            wrong, wanted = is_number, "a list"
        else:
            continue
        if wrong:
            raise UserError(f"{path}={value}: {wanted} is wanted")


def refuse_out_of_range(config: DictConfig, defined: dict[str, object]) -> None:
    """UserError for the numbers of ``WHOLE``, ``ABOVE_0`` and the learning rate where they cannot
    be; for null where that is not the default."""
    for path in (*WHOLE, *ABOVE_0, "stage.optimizer.lr"):
        value = OmegaConf.select(config, path)
        if path not in defined or (value is None and defined[path] is None) \
                or value == "auto" or isinstance(value, DictConfig):  # a rate; of each part
            continue
        if path in WHOLE:
            fine = isinstance(value, int) and value >= WHOLE[path]
            wanted = f"a whole number, at least {WHOLE[path]}"
        else:
            positive = path in ABOVE_0
            fine = isinstance(value, int | float) and 0 <= value < math.inf and \
                not (positive and value == 0)
            wanted = "a number above 0" if positive else "a number, at least 0"
        if not fine:
            raise UserError(f"{path}={'null' if value is None else value}: {wanted}")


def refuse_contradictions(config: DictConfig) -> None:
    """UserError for ``init_from`` beside ``init_from_encoder`` in a stage that cannot put the one
    into the other; and for LoRA in a stage that has none or under ZeRO-3, where no rank has
    matrices to merge."""
    stage = config.stage
    if config.model.lora.rank and stage.name in WITHOUT_LORA:
        raise UserError(f"stage={stage.name} trains whole matrices: no model.lora")
    if config.model.lora.rank and config.strategy.name == "zero3":
        raise UserError("model.lora with strategy=zero3: adapters are small, take strategy=zero2")
    if stage.name != "sft" and stage.get("init_from") and stage.get("init_from_encoder"):
        raise UserError(f"init_from={stage.init_from} brings its own encoder: leave out "
                        f"init_from_encoder={stage.init_from_encoder}")


def keep_record(config: DictConfig, run_dir: Path) -> None:
    """UserError where config.yaml of another run would be lost: one of another stage, or one whose
    checkpoints this run would be mixed up with."""
    from qwen3asr_train.runtime.checkpoint import refuse_used_folder, resume_from

    record = run_dir / "config.yaml"
    if not record.is_file():
        return
    before = OmegaConf.load(record)
    stage = OmegaConf.select(before, "stage.name")
    if stage != config.stage.name:
        raise UserError(f"run_dir={run_dir} holds a run of stage={stage}: name another folder")
    checkpoint = resume_from(config.resume, run_dir)
    refuse_used_folder(run_dir, checkpoint)
    if checkpoint is not None and (changes := differences(before, config)):
        log.warning("this run was begun with other values: %s", ", ".join(changes))


def differences(before: DictConfig, config: DictConfig) -> list[str]:
    """``field=value`` of what has another value than ``before``, resolved, and is not about where
    and how the run is carried out."""
    then, now = (fields(OmegaConf.create(OmegaConf.to_container(each, resolve=True)))
                 for each in (before, config))
    return [f"{path}={'null' if value is None else value} (was {then.get(path)})"
            for path, value in sorted(now.items())
            if not isinstance(value, dict) and then.get(path) != value
            and path.partition(".")[0] not in NOT_OF_A_RUN]


def _groups() -> dict[str, str]:
    """Config group -> the option that was chosen."""
    return HydraConfig.get().runtime.choices


def fields(config: DictConfig) -> dict[str, object]:
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


