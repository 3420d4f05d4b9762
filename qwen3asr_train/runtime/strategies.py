"""``strategy=single|ddp|zero1|zero2|zero3`` as Lightning strategies; ZeRO on CPU too."""

import os
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy

from qwen3asr_train.errors import UserError
from qwen3asr_train.runtime.checkpoint import AtomicCheckpointIO

_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state, besides the step

_PROCESSES_A_CORE = 2  # on a CPU, to try what many processes do

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3")


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO with two additions: CPU processes over gloo, and portable checkpoints.

    Lightning's strategy refuses anything but CUDA; on CPU the process group is gloo and the root
    device ``cpu:0`` (DeepSpeed wants an index). Checkpoints are gathered into the same single file
    that the other strategies write, so a run goes on under any strategy and number of ranks.
    """

    def setup_environment(self) -> None:
        """As for DDP: any accelerator."""
        super(DeepSpeedStrategy, self).setup_environment()

    @property
    def root_device(self) -> torch.device:
        """The local GPU, or ``cpu:0``."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_distributed(self) -> None:
        """Lightning checks the device indices first; CPU processes have none."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _init_deepspeed_distributed(self) -> None:
        if isinstance(self.accelerator, CPUAccelerator):
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            self._process_group_backend = "gloo"
            from deepspeed.ops import __compatible_ops__

            # Else DeepSpeed compiles its shared-memory all-reduce here, under a lock file that a
            # killed process leaves behind and every later one would wait for. Gloo does as well.
            __compatible_ops__["deepspeed_shm_comm"] = False
        super()._init_deepspeed_distributed()

    def teardown(self) -> None:
        """Also take DeepSpeed's hooks off the parameters, which a further Trainer may train; ZeRO-3
        still needs its own to put the weights together."""
        engine = getattr(self, "deepspeed_engine", None)
        if engine is not None and not self.zero_stage_3:
            engine.destroy()
        super().teardown()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath, storage_options=None) -> None:
        """Gather weights and optimiser state and write one file on rank 0."""
        checkpoint = dict(checkpoint)
        checkpoint["state_dict"] = self._gather_master_weights()
        checkpoint["optimizer_states"] = [{"by_name": self._gather_optimizer()}]
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)
        self.barrier()

    def _gather_master_weights(self) -> dict[str, torch.Tensor]:
        """The full state dict, of what trains the optimiser's float32 copy: in bfloat16, the
        model's own has lost what small updates have added."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = gather_weights(self.lightning_module)
        masters = {id(p): safe_get_full_fp32_param(p).float().cpu().clone()
                   for p in trainable(self.lightning_module).values()}
        for name, p in self.lightning_module.named_parameters(remove_duplicate=False):
            if id(p) in masters:  # under both names, if it is tied
                weights[name] = masters[id(p)]
        return weights

    def _gather_optimizer(self) -> dict[str, dict[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_optimizer_state()
        state = {}
        for name, parameter in trainable(self.lightning_module).items():
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            state[name] = {"step": self._steps_taken()} | {
                key: value.float().cpu().clone() for key, value in moments.items()}
        return state

    def load_checkpoint(self, checkpoint_path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file and keeps its own part."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        saved = checkpoint["optimizer_states"][0]["by_name"]
        self._create_optimizer_state(next(iter(saved.values()))["step"])
        self._link_optimizer_state()
        for name, parameter in trainable(self.lightning_module).items():
            weight = checkpoint["state_dict"][name]
            safe_set_full_fp32_param(parameter, weight)  # the optimiser's copy …
            with deepspeed.zero.GatheredParameters(
                    [parameter], modifier_rank=0, enabled=self.zero_stage_3), torch.no_grad():
                parameter.copy_(weight)  # … and the model's
            for key in _MOMENTS:
                safe_set_full_optimizer_state(parameter, saved[name][key], key)
        return checkpoint

    def _flat_parameters(self) -> list[torch.Tensor]:
        """What DeepSpeed's inner optimiser steps: flat float32 partitions of this rank."""
        zero = self.deepspeed_engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.zero_stage_3 \
            else zero.single_partition_of_fp32_groups

    def _create_optimizer_state(self, step: torch.Tensor) -> None:
        """AdamW makes its state in the first step; a loaded one needs a place before it."""
        state = self.deepspeed_engine.optimizer.optimizer.state
        for flat in self._flat_parameters():
            state[flat] = {"step": step.to(flat.device, copy=True)} | {
                key: torch.zeros_like(flat) for key in _MOMENTS}

    def _link_optimizer_state(self) -> None:
        """Let the parameters of ZeRO-1/2 find their moments.

        DeepSpeed (0.19) links all groups after the first group's first step, when the others have
        no state yet.
        """
        if not self.zero_stage_3:
            zero = self.deepspeed_engine.optimizer
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _steps_taken(self) -> torch.Tensor:
        state = self.deepspeed_engine.optimizer.optimizer.state
        return state[self._flat_parameters()[0]]["step"].detach().cpu().clone()

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        """Already done by :meth:`load_checkpoint`."""


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def gather_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The full state dict on CPU; under ZeRO-3 gathered parameter by parameter, on every rank."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if not any(hasattr(p, "ds_id") for p in parameters.values()):
        return {name: value.detach().cpu() for name, value in module.state_dict().items()}
    import deepspeed

    state = {}
    for name, value in module.state_dict().items():
        parameter = parameters.get(name)
        if parameter is None:
            state[name] = value.detach().cpu().clone()
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().cpu().clone()
    return state


def build_strategy(config: dict, accelerator: str) -> tuple[Strategy | str, int]:
    """``(strategy, devices)`` for the Trainer from the ``strategy`` group."""
    name = config["name"]
    if name not in STRATEGIES:
        raise UserError(f"strategy.name={name}: one of {', '.join(STRATEGIES)}")
    devices = config["devices"]
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator == "gpu" else 1
    _check_devices(devices, accelerator)
    io = AtomicCheckpointIO()
    if name == "single":
        if devices != 1 or config["num_nodes"] != 1:
            raise UserError("strategy=single runs one process; for more use strategy=ddp or zero1")
        return "auto", 1
    environment = LightningEnvironment() if _launched_by_hand() else None
    if name == "ddp":
        return DDPStrategy(checkpoint_io=io, cluster_environment=environment,
                           process_group_backend=None if accelerator == "gpu" else "gloo"), devices
    on_cpu = accelerator != "gpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    strategy = ZeroStrategy(
        stage=int(name[-1]), cluster_environment=environment, zero_allow_untested_optimizer=True,
        # the CPU accelerator has no streams to overlap on
        overlap_comm=not on_cpu)
    strategy.checkpoint_io = io
    return strategy, devices


def _check_devices(devices: int, accelerator: str) -> None:
    """UserError for no number of processes, and for so many that the machine would only swap."""
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"strategy.devices={devices}: auto, or a number of processes from 1")
    cores = os.cpu_count() or 1
    if accelerator != "gpu" and devices > _PROCESSES_A_CORE * cores:
        raise UserError(f"strategy.devices={devices}: this machine has {cores} cores and no GPU, "
                        f"so at most {_PROCESSES_A_CORE * cores}")


def _launched_by_hand() -> bool:
    """Whether Lightning itself starts the processes (no SLURM step, no torchrun)."""
    return "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
