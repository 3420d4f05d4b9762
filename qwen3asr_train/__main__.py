"""``python -m qwen3asr_train stage=sft``: compose the config, run the stage."""

import importlib
import os
import sys
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qwen3asr_train import command_line, config_checks
from qwen3asr_train.errors import UserError
from qwen3asr_train.options import headline_of

LONGEST_NAME = 255
"""Bytes of a file's name, on all common file systems."""


def new_run_dir(stage: str, resume: str | None) -> str:
    """``runs/STAGE/DATE_TIME``, or with ``resume=auto`` the newest unfinished run of the stage.

    Processes that a launcher starts agree on the job's name instead of the time.
    """
    root = Path("runs") / stage
    if job := os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID"):
        return str(root / f"job-{job}")
    if resume == "auto" and "LOCAL_RANK" not in os.environ:
        from qwen3asr_train.runtime.checkpoint import unfinished_run

        if (unfinished := unfinished_run(root)) is not None:
            return str(unfinished)
    return str(root / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def sweep_folder(number: int, overrides: str) -> str:
    """The folder of a sweep's run: its number, and the overrides if they can be a folder's name."""
    name = f"{number}_{overrides}"
    return name if "/" not in name and len(name.encode()) <= LONGEST_NAME else str(number)


def is_first_process() -> bool:
    """Before the process group exists: whether this is rank 0."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


OmegaConf.register_new_resolver("new_run_dir", new_run_dir, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


_composed: list[DictConfig] = []
"""The config, once there is one."""


@hydra.main(config_path=str(command_line.CONFIGS), config_name="config", version_base="1.3")
def run(config: DictConfig) -> None:
    """One stage in its run folder."""
    _composed.append(config)
    try:
        run_stage(config)
    except UserError as error:  # here, before hydra prints the overrides around it
        sys.exit(command_line.report_error(str(error)))


def run_stage(config: DictConfig) -> None:
    """Check the config, run the stage, print what came out."""
    config_checks.check(config)
    if HydraConfig.get().mode == RunMode.MULTIRUN and config.strategy.name != "single":
        raise UserError(f"--multirun is for strategy=single, not {config.strategy.name}: start "
                        "each run by itself, with a run_dir of its own")
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{missing[0]} is not set; say {missing[0]}=…")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    from qwen3asr_train.runtime.quiet import quieten  # imports torch: not needed for --help

    quieten()
    stage = importlib.import_module(f"qwen3asr_train.stages.{config.stage.name}")
    if config.stage.name not in command_line.WITHOUT_FOLDER:
        config_checks.keep_record(config, run_dir)
        if is_first_process():
            OmegaConf.save(config, run_dir / "config.yaml", resolve=True)
    from qwen3asr_train.runtime.tracking import finish_tracking

    try:
        metrics = stage.run(config, run_dir)
    except BaseException:
        finish_tracking(None)
        raise
    finish_tracking(metrics)
    command_line.print_result(config.stage.name, metrics, run_dir,
                              suite_headline(config, metrics))
    if metrics.get("failed"):
        sys.exit(1)


def suite_headline(config: DictConfig, metrics: dict[str, float]) -> list[str]:
    """What of a suite is printed: its headline, else every error rate, or an aligner's AAS."""
    if config.suite is None:
        return []
    return list(headline_of(config.suite) or [
        name for name in metrics if (name.endswith("/wer") and name.count("/") == 2)
        or name.endswith(("/aas_ms", "/ctc_aas_ms", "/aas_floor_ms"))])


def stopped(composed: list[DictConfig]) -> str:
    """What to say after Ctrl-C."""
    trains = composed and composed[0].stage.get("optimizer") is not None
    return "stopped; go on with resume=auto" if trains else "stopped"


def main() -> int:
    """Exit status: 0 done, 1 some files failed, 2 a mistake that the message explains."""
    try:
        sys.argv[1:] = command_line.check_arguments(sys.argv[1:])
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here, not at hydra's printer
        run()
    except UserError as error:
        return command_line.report_error(str(error))
    except hydra.errors.HydraException as error:
        return command_line.report_error(command_line.explain(error))
    except (ValueError, TypeError) as error:
        if _composed:
            raise  # from a stage, not from composing its config: not the user's mistake
        return command_line.report_error(f"an override does not fit the config: {error}")
    except KeyboardInterrupt:
        return command_line.report_error(stopped(_composed), status=130)
    except BrokenPipeError:  # as in `… | head -1`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
