"""What is done about explosions in one fit: findings and steps on their way to the responses."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ProcessGroup
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.respond import Response, ResponseChain, ResponseContext

logger = logging.getLogger("lightning_gradexplode")


class ResponseRunner:
    """Hands on to the responses of a run, and counts the updates that they hold back.

    Args:
        trainer: Lightning's trainer.
        module: The LightningModule.
        responses: The responses, in their order.
        watches: The optimizers under watch, whose memory goes back with the weights if a response puts these back.
    """

    def __init__(
        self,
        trainer: _lightning.Trainer,
        module: _lightning.LightningModule,
        responses: Sequence[Response],
        watches: Sequence[OptimizerState],
    ) -> None:
        self.skipped = 0
        self._trainer = trainer
        self._module = module
        self._chain = ResponseChain(responses)
        self._loop = _Loop(trainer)
        self._memory = _Memory(watches)
        self._calm = 0

    def start(self) -> None:
        """Begin a fit."""
        last_step = _lightning.logging_step(self._trainer) - 1
        run = ResponseContext(self._loop, memory=self._memory, last_step=last_step)
        self._chain.started(run)

    def gradients_ready(self, optimizer: Optimizer, batch_idx: int, is_scaled: bool) -> None:
        """Let responses add to the gradients of an optimizer.

        Args:
            optimizer: The optimizer.
            batch_idx: Index of the batch that completes them.
            is_scaled: Whether they are multiplied by the AMP scale, if there is one.
        """
        if not self._chain.adds_gradients:
            return
        scale = _lightning.loss_scale(self._trainer)[0] if is_scaled else None
        share = _lightning.filled_window(self._trainer, batch_idx) if _lightning.is_automatic(self._trainer) else 1.0
        run = ResponseContext(self._loop, before_update=True, optimizer=optimizer)
        self._chain.gradients_ready(run, share if scale is None else share * float(scale))

    def respond(self, flight: Step, findings: Sequence[Finding], before_update: bool) -> None:
        """Ask the responses about a step's critical findings."""
        critical = [finding for finding in findings if finding.severity is Severity.CRITICAL]
        run = self._run(flight.record, before_update, flight.watch.optimizer)
        if critical:
            self._chain.respond(critical, run)
        elif before_update:
            self._chain.guard(run)
        if run.update_is_held_back:
            flight.held_back = True
            self.skipped += 1
            flight.record = replace(flight.record, skipped_steps=self.skipped, skipped_by=run.skipped_by)

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step."""
        self._chain.step_begins(optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what was prepared."""
        self._chain.step_ended(optimizer)

    def batch_ended(self, flights: Sequence[Step]) -> None:
        """Let the responses look back at a batch."""
        if not flights:
            return
        run = self._run(flights[-1].record)
        run.severity = max(flight.record.severity for flight in flights)
        self._calm = self._calm + 1 if run.severity < Severity.CRITICAL else 0
        if self._calm == 20:
            self._chain.incident_ended()
        if self._chain.uses_batch_end:
            self._chain.batch_ended(run)

    def logged(self, record: StepRecord) -> StepRecord:
        """Give a record with what the responses log."""
        scalars = self._chain.scalars()
        return replace(record, responses=scalars) if scalars else record

    def close(self) -> None:
        """Leave the optimizers as they were found."""
        self._chain.ended()

    def state_dict(self) -> dict[str, Any]:
        """Give what later decisions depend on, in plain values."""
        return {"skipped_steps": self.skipped, "chain": self._chain.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.skipped = state["skipped_steps"]
        for name in self._chain.load_state_dict(state["chain"]):
            logger.warning("gradexplode: the state of %s does not fit and starts fresh", name)

    def _run(
        self, record: StepRecord, before_update: bool = False, optimizer: Optimizer | None = None
    ) -> ResponseContext:
        return ResponseContext(self._loop, before_update, optimizer, record, self._memory, record.severity)


class _Loop(TrainingLoop):
    """Lightning's loop, as far as responses need it."""

    def __init__(self, trainer: _lightning.Trainer) -> None:
        self.trainer = trainer

    @property
    def process_group(self) -> ProcessGroup:
        return _lightning.world(self.trainer)

    @property
    def is_main_process(self) -> bool:
        return bool(self.trainer.is_global_zero)

    @property
    def can_stop(self) -> bool:
        return True

    @property
    def can_save_checkpoints(self) -> bool:
        return True

    @property
    def module(self) -> Any:
        return self.trainer.lightning_module

    @property
    def optimizers(self) -> Any:
        return self.trainer.optimizers

    @property
    def step(self) -> int:
        return _lightning.logging_step(self.trainer)

    @property
    def schedulers(self) -> Any:
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    @property
    def scaler(self) -> Any:
        return self.trainer.scaler

    @property
    def weight_averages(self) -> Any:
        found = {}
        for callback in self.trainer.callbacks:
            average = getattr(callback, "_average_model", None)
            if average is not None:
                count = getattr(callback, "n_averaged", None)
                tensors = [*average.parameters(), *average.buffers(), *([] if count is None else [count])]
                found[type(callback).__name__] = tensors
        return found

    @property
    def minimum_training(self) -> str:
        loop = self.trainer.fit_loop
        least = {"min_epochs": loop.min_epochs, "min_steps": loop.min_steps}
        return "" if loop._can_stop_early else " and ".join(f"{k}={v}" for k, v in least.items() if v)

    def stop(self) -> None:
        self.trainer.should_stop = True

    def log_folder(self) -> Path:
        return _lightning.log_directory(self.trainer)

    def save_checkpoint(self, path: Path) -> None:
        self.trainer.save_checkpoint(path)

    def block_checkpoints(self) -> None:
        _lightning.save_nothing_now(self.trainer)


class _Memory:
    """The memory of all optimizers' watches, as one."""

    def __init__(self, watches: Sequence[OptimizerState]) -> None:
        self._watches = watches

    def state_dict(self) -> dict[str, Any]:
        """Give what judges steps and clips them."""
        return {"watches": [watch.state_dict() for watch in self._watches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for watch, plain in zip(self._watches, state["watches"], strict=True):
            watch.load_state_dict(plain)
