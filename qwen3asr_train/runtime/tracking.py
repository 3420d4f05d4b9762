"""Weights & Biases: one run there for each run here, with its config, history and results."""

import sys
from pathlib import Path
from secrets import token_hex

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

_ID_FILE = "wandb_id"


def wandb_logger(config: DictConfig, folder: Path) -> WandbLogger:
    """The logger of a trainer that writes to ``folder``.

    The run's own folder has its ``config.yaml``; names of figures of a trainer further down, as of
    a pass of stage=omni, begin with where it is. The id lies in the run's folder, so that a resumed
    run goes on in the same one.
    """
    root = next((p for p in (folder, *folder.parents) if (p / "config.yaml").is_file()), folder)
    options = config.logger
    return WandbLogger(
        project=options.project, name=options.run_name or root.name, group=options.group,
        tags=list(options.tags), save_dir=str(root), offline=options.mode == "offline",
        prefix="/".join(folder.relative_to(root).parts[1:]), id=_id_of(root), resume="allow",
        config=OmegaConf.to_container(config, resolve=True))


def finish_tracking(metrics: dict[str, float] | None) -> None:
    """Give the run there its results and end it, so that the next run of a sweep is another one;
    None: it failed. Without W&B nothing happens."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    wandb.run.summary.update(metrics or {})
    wandb.finish(exit_code=1 if metrics is None else 0)


def _id_of(root: Path) -> str | None:
    """The run's id, made when there is none; None but on rank 0, which alone logs."""
    if rank_zero_only.rank:
        return None
    path = root / _ID_FILE
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        path.write_text(token_hex(4))
    return path.read_text()
