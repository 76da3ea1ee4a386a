"""The one door to accelerate: devices, processes, mixed precision, gradient synchronisation, trackers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefopt.errors import ConfigError, MissingExtraError, PrefoptError

T = TypeVar("T")

_TRACKER_EXTRAS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


_PATIENCE = timedelta(days=30)
"""That others wait for what the main process does alone; where it dies they end at once."""


class Runtime:
    """Processes and devices of a run.

    Args:
        mixed_precision: `no`, `bf16` or `fp16`.
        report_to: trackers out of tensorboard, wandb, mlflow, trackio.
        logging_dir: where file-based trackers write.

    Raises:
        MissingExtraError: a tracker is not installed.
        ConfigError: a launcher was asked for several processes and started one.
    """

    def __init__(
        self,
        *,
        mixed_precision: str = "no",
        report_to: Sequence[str] = (),
        logging_dir: Path | None = None,
    ) -> None:
        for name in report_to:
            if importlib.util.find_spec(_TRACKER_EXTRAS[name]) is None:
                raise MissingExtraError(
                    f"report_to: {name} is not installed; run: pip install 'prefopt[{name}]'"
                )
        _refuse_lone_process()
        # accelerate keeps its state for the whole Python process; two runs in one may differ in precision.
        AcceleratorState._reset_state()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        # Accumulation stays at 1: the loop divides by the weight of the global batch itself.
        self._accelerator = Accelerator(
            cpu=_several_processes() and not _has_gpus(),
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=1,
            log_with=list(report_to) or None,
            project_dir=None if logging_dir is None else str(logging_dir),
        )
        self.report_to = tuple(report_to)
        self._patient: torch.distributed.ProcessGroup | None = None

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self._accelerator.device

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self._accelerator.process_index

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self._accelerator.is_main_process

    def prepare(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap module and optimiser for the backend."""
        return self._accelerator.prepare(module, optimizer)

    def no_sync(self, module: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Put off the gradient all-reduce until the last micro-batch."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision for passes outside the wrapped module."""
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Backward pass with the backend's loss scaling."""
        self._accelerator.backward(loss)

    def clip(self, module: nn.Module, max_norm: float) -> Tensor:
        """Clip the global gradient norm (0: only measure it); returns the norm before clipping."""
        bound = max_norm if max_norm > 0 else float("inf")
        return torch.as_tensor(self._accelerator.clip_grad_norm_(module.parameters(), bound))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        return cast("Tensor", self._accelerator.reduce(values, reduction="sum"))

    def gather(self, items: list[T]) -> list[T]:
        """Python objects of all processes, joined in rank order."""
        return gather_object(items) if self.world_size > 1 else items

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process: all others wait for a copy of it, or for its error."""
        if self.world_size == 1:
            return work()
        outcome: list[T | PrefoptError | None] = [None]
        if self.is_main:
            try:
                outcome[0] = work()
            except PrefoptError as error:
                error.everywhere = True
                outcome[0] = error
        torch.distributed.broadcast_object_list(outcome, src=0, group=self._patient_group())
        shared = outcome[0]
        if isinstance(shared, PrefoptError):
            raise shared
        return cast("T", shared)

    def _patient_group(self) -> torch.distributed.ProcessGroup:
        """All processes, through main memory: the usual group gives up after minutes, and data take hours to make."""
        if self._patient is None:
            made = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
            self._patient = cast("torch.distributed.ProcessGroup", made)
        return self._patient

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def start_trackers(self, project: str, settings: Mapping[str, object], *, name: str) -> None:
        """Open the trackers named in `report_to`."""
        if not self.report_to:
            return
        flat = {
            k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()
        }
        init: dict[str, dict[str, object]] = {"wandb": {"name": name}, "trackio": {"name": name}}
        chosen = {k: v for k, v in init.items() if k in self.report_to}
        self._accelerator.init_trackers(project, config=flat, init_kwargs=chosen)

    def track(self, values: Mapping[str, float], *, step: int) -> None:
        """Send numbers to the trackers."""
        if self.report_to:
            self._accelerator.log(dict(values), step=step)

    def finish(self) -> None:
        """Close trackers."""
        if self.report_to:
            self._accelerator.end_training()


def _several_processes() -> bool:
    """Whether a launcher started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _has_gpus() -> bool:
    """Whether each process may get a device of its own; Apple's GPU serves one process."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator is not None and accelerator.type != "mps"


def _refuse_lone_process() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process unless it is given an MPI host file."""
    launched = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if launched and "MASTER_ADDR" in os.environ and not any(name in os.environ for name in sizes):
        raise ConfigError(
            "accelerate launch --cpu was asked for several processes and starts one only: use torchrun "
            "--nproc_per_node N -m prefopt ..., which shares the work on CPUs and GPUs alike"
        )


def close_process_group() -> None:
    """Leave a distributed run cleanly; nothing to do in one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
