"""Processes that label shards, each with its model(s) on its device."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

from data_prep.pseudo_shard import Claims, Labelled, Plan, Report, earlier, label_shard
from data_prep.samples import usable_cores
from qwen3asr_train.errors import DataError, UserError

_TICK = 0.5  # seconds between looks at the workers' progress


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: labelled, a failure of its own, or left to another process."""

    shard: str
    labelled: Labelled | None = None
    failure: str | None = None

    @property
    def is_busy(self) -> bool:
        """Whether another process is writing it."""
        return self.labelled is None and self.failure is None


class Pool:
    """``workers`` processes, or this one if it is one; default: one per GPU.

    ``most``: how many shards there are to do. Raises UserError for a device that is not there.
    """

    def __init__(self, plan: Plan, device: str, workers: int | None, most: int):
        self.plan = plan
        self.devices = _devices(device, workers, most)
        self._worker = self._pool = None
        self._stop = None

    def __enter__(self) -> "Pool":
        if len(self.devices) == 1:
            self._worker = _Worker(self.plan, self.devices[0])
            return self
        # spawn: a fork has neither the GPU nor the threads of its parent.
        context = multiprocessing.get_context("spawn")
        devices, self._reports = context.SimpleQueue(), context.SimpleQueue()
        for device in self.devices:
            devices.put(device)
        self._stop = context.Event()
        threads = max(1, usable_cores() // len(self.devices))
        self._pool = ProcessPoolExecutor(len(self.devices), context, _start, (
            self.plan, devices, self._reports, self._stop, threads))
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._stop.set()
            self._pool.shutdown(cancel_futures=True)

    def outcomes(self, shards: list[str], report: Report) -> Iterator[Outcome]:
        """What becomes of each shard, in the order in which they end."""
        if self._pool is None:
            for shard in shards:
                yield self._worker(shard, report, lambda: False)
            return
        pending = {self._pool.submit(_work, shard) for shard in shards}
        while pending:
            ended, pending = wait(pending, _TICK, FIRST_COMPLETED)
            while not self._reports.empty():
                report(*self._reports.get())
            for future in ended:
                yield future.result()


def _devices(device: str, workers: int | None, most: int) -> list[str]:
    """The device of each worker."""
    import torch
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        kind = torch.device(device if device != "auto" else "cuda" if gpus else "cpu")
    except RuntimeError as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if kind.type == "cuda" and (kind.index or 0) >= gpus:
        raise UserError(f"--device {device}: this machine has {gpus} GPUs that torch can use")
    names = [f"cuda:{i}" for i in range(gpus)] if kind.type == "cuda" and kind.index is None \
        else [str(kind)]
    return [names[i % len(names)] for i in range(min(workers or len(names), most))]


class _Worker:
    """Labels shards one by one; the models are opened at the first."""

    def __init__(self, plan: Plan, device: str):
        self.plan, self.device = plan, device
        self.claims, self.labellers = Claims(plan.out), None

    def __call__(self, shard: str, report: Report, stopped: Callable[[], bool]) -> Outcome:
        with self.claims.claim(shard.rpartition("/")[2]) as is_ours:
            if not is_ours:
                return Outcome(shard)
            try:
                # Another process may have done it since.
                labelled = earlier(shard, self.plan) or label_shard(
                    shard, self.plan, self._opened(), report, stopped)
            except DataError as error:
                return Outcome(shard, failure=str(error))
        return Outcome(shard, labelled)

    def _opened(self) -> list:
        if self.labellers is None:
            # Here and not at the top: torch and transformers take seconds.
            from data_prep.pseudo_models import open_labeller
            warnings.filterwarnings("ignore", module=r"(torch|transformers)(\.|$)")
            self.labellers = [open_labeller(
                model, language=self.plan.language, device=self.device,
                max_new_tokens=self.plan.max_new_tokens,
                max_piece_seconds=self.plan.max_piece_seconds,
                batch_seconds=self.plan.batch_seconds) for model in self.plan.models]
            for model, labeller in zip(self.plan.models, self.labellers, strict=True):
                if self.plan.filters.require_language_agreement and not labeller.names_language:
                    raise UserError(f"--require-language-agreement: {model} does not tell "
                                    "languages; name the one of all samples with --language")
        return self.labellers


_worker: _Worker | None = None
_reports: SimpleQueue | None = None
_stopped: Event | None = None


def _start(plan: Plan, devices: SimpleQueue, reports: SimpleQueue, stop: Event, threads: int
           ) -> None:
    """Initialise a worker process: Ctrl-C is the main process's to handle, ``stop`` its word."""
    global _worker, _reports, _stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:
        import torch
        torch.set_num_threads(threads)
    _worker, _reports, _stopped = _Worker(plan, devices.get()), reports, stop


def _end_with_parent() -> None:
    # A killed main process would leave its workers waiting for work, and on the GPU, for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(shard: str) -> Outcome:
    return _worker(shard, lambda *found: _reports.put(found), _stopped.is_set)
