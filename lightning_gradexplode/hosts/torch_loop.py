"""The adapter for training loops of plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import Alone, Processes, ProcessGroup
from lightning_gradexplode.distributed.rendezvous import join
from lightning_gradexplode.distributed.shard_layout import is_sharded
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.csv_log import CSVLog
from lightning_gradexplode.hosts.logger_attributes import LoggerAttributes
from lightning_gradexplode.hosts.paused_steps import STEPS_SCHEDULE, without_steps
from lightning_gradexplode.hosts.unwrapping import raw_optimizer, unsupported_wrapper, unwrapped
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.report import public_name

JOINS = "within join() processes may end one after the other, and the monitors could not exchange their numbers"
"""Why the monitor is off where processes may end one after the other."""


class TorchLoop(TrainingLoop):
    """A training loop of the user's own, which calls backward and the optimizers by itself.

    Args:
        model: The network, or the wrapper of it by ``DistributedDataParallel`` or ``torch.compile``.
        optimizers: Its optimizers.
        loggers: The loggers; None for a file in the folder of the logs.
        folder: The folder of the run's logs, None for that of the first logger.
        scaler: The gradient scaler, None without one.
        replay: Computes the loss of a batch with a copy of the model, None where steps cannot be computed again.
        monitor: Name of the class by which the user has added the monitor.

    Attributes:
        batches: Number of batches in which an optimizer stepped.
        batch_is_known: Whether the user has passed the current batch.
        should_stop: Whether the training is to end.
        is_replaying: Whether a step is being computed again; the user's function may call monitor and optimizer then.
        unsupported: Why the gradients cannot be measured, None if they can.
    """

    late_measurement = (
        "an optimizer steps without a call of loss() before the backward pass; its gradients are measured as it gets "
        "them, after any clipping, and the loss is unknown"
    )
    """What is logged once where an optimizer steps without a backward pass that was measured."""

    # The user may clip between the backward pass and the step, so that gradients are measured at the end of each pass.
    gradients_are_final = counts_end_of_backward = True
    may_change_gradients = overrides_clipping = True
    can_stop = True

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        loggers: Sequence[Any] | None,
        folder: Path | None,
        scaler: Any,
        replay: Callable[[Any, Any], Any] | None,
        monitor: str = "GradientWatch",
    ) -> None:
        self.batches = 0
        self.batch_is_known = False
        self.should_stop = self.is_replaying = self._names_schedule = False
        self._module = unwrapped(model)
        self._is_compiled = any(hasattr(one, "_orig_mod") for one in model.modules())
        self._optimizers, self._folder = [raw_optimizer(one) for one in optimizers], folder
        self._loggers = None if loggers is None else list(loggers)
        self.unsupported = unsupported_wrapper(model, optimizers)
        self.scaler, self._replay, self._monitor = scaler, replay, monitor
        self._replicas = [one for one in model.modules() if isinstance(one, nn.parallel.DistributedDataParallel)]
        groups = {one.process_group for one in self._replicas}
        self._group = groups.pop() if len(groups) == 1 else None

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    @property
    def is_compiled(self) -> bool:
        """Whether the model that was given is the result of ``torch.compile``."""
        return self._is_compiled

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers."""
        return self._optimizers

    @property
    def step(self) -> int:
        """Number of batches in which an optimizer stepped."""
        return self.batches

    @property
    def process_group(self) -> ProcessGroup:
        """The processes that measure together: those of the network's ``DistributedDataParallel`` or shards, or all."""
        return self._processes

    def begin(self) -> None:
        """Begin a run, for which the processes agree anew whether they measure together."""
        vars(self).pop("_processes", None)

    @cached_property
    def _processes(self) -> Alone | Processes:
        device = next((parameter.device for parameter in self._module.parameters()), torch.device("cpu"))
        return join(self._module, device, self._group, self.reduces)

    @property
    def reduces(self) -> bool:
        """Whether gradients are known to be reduced over the processes within the backward pass, or sharded."""
        return bool(self._replicas) or any(map(is_sharded, self._module.parameters()))

    @property
    def gradients_may_differ(self) -> bool:
        """Whether the loop itself averages gradients, or a communication hook may not do so, as that of local SGD."""
        return not self.reduces or any(getattr(one, "_comm_hooks", None) for one in self._replicas)

    @property
    def joins(self) -> bool:
        """Whether processes may end one after the other, within ``DistributedDataParallel.join``."""
        return any(one._join_config.enable for one in self._replicas)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first one of the processes that measure together."""
        return self._processes.size == 1 or torch.distributed.get_rank() == self._processes.first_rank

    def settings(self) -> Mapping[str, Any]:
        """Return the class that the user has."""
        return {"monitor": self._monitor}

    @property
    def scaler_version(self) -> int | None:
        """A number that changes whenever the gradient scaler updates its scale; None without a scaler in force."""
        scale = self.loss_scale()[0]
        return None if scale is None else scale._version

    @property
    def removes_gradients(self) -> bool:
        """Once the training is to end."""
        return self.should_stop

    @property
    def loggers(self) -> Sequence[Any]:
        """The loggers."""
        if self._loggers is None:
            self._loggers = [CSVLog(self.log_folder())]
        return self._loggers

    def log_folder(self) -> Path:
        """Return the folder that was given, else that of the first logger, else the working directory."""
        own = (LoggerAttributes().folder(one, "log_dir") for one in self._loggers or ())
        return self._own(Path(next(filter(None, own), Path.cwd())) if self._folder is None else self._folder)

    def report_folder(self, report: Path | bool | Literal["always"]) -> Path | None:
        """Return the folder for reports."""
        return self._own(report) if isinstance(report, Path) else super().report_folder(report)

    @property
    def run_name(self) -> str:
        """Name of the folder that was given."""
        return super().run_name if self._folder is None else public_name(self._folder.resolve())

    def _own(self, folder: Path) -> Path:
        """Return a folder of this process, where others that measure for themselves may write to the same one."""
        rank = self._processes.first_rank
        return folder / f"rank-{rank}" if rank else folder

    def stop(self) -> None:
        """Set `should_stop`; updates are skipped from then on."""
        self.should_stop = True

    @property
    def can_replay(self) -> bool:
        """Whether ``step=`` was given, and the batch is known."""
        return self._replay is not None and self.batch_is_known

    def replay_loss(self, copy: Any, batch: Any, batch_idx: int) -> Any:
        """Call the function that was given as ``step``."""
        assert self._replay is not None
        self.is_replaying = True
        try:
            with without_steps(self._optimizers, self._note_changed_settings):
                return self._replay(copy, batch)
        finally:
            self.is_replaying = False

    def _note_changed_settings(self) -> None:
        if not self._names_schedule:
            self._names_schedule = True
            logger.warning("gradexplode: %s", STEPS_SCHEDULE)
