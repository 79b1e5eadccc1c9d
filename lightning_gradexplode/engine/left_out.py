"""Losses and gradients that are not finite, and with which the training loop itself runs no optimizer step.

Such as a loop that goes on with the next batch if the loss is NaN, or a ``training_step`` that returns None then. Their
findings are warnings, since they reach no weight; in runs of one process only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gradexplode.detect import NonFiniteGradient, NonFiniteLoss
from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.measure.norms import start_norms
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import LEFT_OUT, Replay, Severity, StepRecord

MAX_REPLAYS_WITHOUT_LOSS = 2
"""Largest number of batches without a loss whose step is computed again."""


class LeftOutSteps:
    """Reports losses and gradients that are not finite, and that no optimizer step has followed.

    Args:
        components: The components of the run.
        measurement: Measures the gradients.
        after: Evaluates the calm steps that are held.

    Attributes:
        unused_loss: Record and inputs of a loss that is not finite, and that a later step may still use; else None.
    """

    def __init__(self, components: Components, measurement: GradientMeasurement, after: AfterUpdate) -> None:
        self.unused_loss: tuple[StepRecord, StepInputs | None] | None = None
        self._components = components
        self._measurement = measurement
        self._after = after
        self._replays_without_loss = 0

    # A loss that a later step may still use.

    def keep_unused_loss(self, loss: float) -> None:
        """Keep a loss of the current batch that is not finite, and that a later step may still use."""
        components = self._components
        record = left_out_record(components.batch.number, components.batch.index, loss)
        self.unused_loss = record, components.inputs.current

    def next_loss(self) -> None:
        """Report that loss before a further one is used, if its gradients are cleared."""
        self._report_unused_loss()
        if self._components.is_automatic:
            self.unused_loss = None  # else its gradients are those of a later step, too

    @property
    def value_of_unused_loss(self) -> float | None:
        """The value of that loss, None without one."""
        return None if self.unused_loss is None else self.unused_loss[0].loss

    def take_unused_loss(self, steps: Sequence[Step]) -> float | None:
        """Return that loss if it is the one of the steps of a batch, and not of a later step or of none."""
        if self.unused_loss is None or not steps:
            return None
        if self._overflowed_early() and all(math.isfinite(step.grad_norm or 0.0) for step in steps):
            return None  # its gradients wait for another optimizer
        loss, self.unused_loss = self.unused_loss[0].loss, None
        return loss

    def _report_unused_loss(self) -> None:
        """Report that loss once the gradients of its backward pass are cleared without a step."""
        if self.unused_loss is not None and self._are_cleared():
            unused, self.unused_loss = self.unused_loss, None
            self.report(*unused)

    # Batches without a step.

    def report_batch(self, outputs: Any) -> None:
        """Report the current batch if its loss or gradients are not finite, and neither it nor a later one uses them.

        Args:
            outputs: What ``training_step`` has returned.
        """
        components, batch = self._components, self._components.batch
        self._report_unused_loss()
        if not batch.has_loss:
            self._report_without_loss(outputs)
        elif components.loop.completes_step(batch.index):
            self.report_gradients()
            loss = components.window.unused_loss
            is_kept = components.is_automatic and not components.counts_end_of_backward
            if is_kept and loss is not None and not math.isfinite(loss):
                self.keep_unused_loss(loss)

    def _report_without_loss(self, outputs: Any) -> None:
        """Report a batch without a backward pass, if its loss is not finite.

        The loss is the one that ``training_step`` has returned. If it has returned nothing, the step is computed again
        to find out whether it has tested a value for being NaN or infinite, for at most
        `MAX_REPLAYS_WITHOUT_LOSS` batches of a run.
        """
        components, inputs = self._components, self._components.inputs.current
        if components.is_distributed:
            return
        returned, replay = components.loop.returned_loss(outputs), None
        if returned is not None:
            loss = float(read([returned])[0])
        elif inputs is not None and self._replays_without_loss < MAX_REPLAYS_WITHOUT_LOSS:
            self._replays_without_loss += 1
            replay = components.evidence.replays.replay_without_loss(inputs)
            loss = 0.0 if replay is None else math.nan
        else:
            return
        if not math.isfinite(loss):
            record = left_out_record(components.batch.number, components.batch.index, loss)
            self.report(record, inputs, replay)

    # Gradients without an optimizer step.

    def overflowed(self, state: OptimizerState) -> bool:
        """Return whether gradients that no step has used are not finite."""
        window = self._components.window
        if window.has_early(state.optimizer):
            return window.has_overflowed(state.optimizer)
        if window.unused_loss is None:
            return False  # they are those of the last step
        return not _are_finite(state)

    def step_left_out(self, optimizer: Optimizer) -> None:
        """Record that a gradient scaler has left out a step, and whether its gradients were cleared since.

        Gradients on an accelerator are not looked at: the host would wait.
        """
        state = self._components.optimizers.state_of(optimizer)
        if state is not None and state.is_on_host:
            self._components.window.passes.left_out(state.parameters(), is_cleared=_are_finite(state))

    def _overflowed_early(self) -> list[OptimizerState]:
        """Return the optimizers with gradients that were measured early, are not finite, and that no step has used."""
        components = self._components
        return [one for one in components.optimizers.states if components.window.has_overflowed(one.optimizer)]

    def _are_cleared(self) -> bool:
        """Return whether the gradients of those optimizers are cleared; without any, whether those of all are."""
        return all(map(_are_cleared, self._overflowed_early() or self._components.optimizers.states))

    def report_gradients(self, are_over: bool = False) -> None:
        """Report gradients that are not finite, and that the training loop has cleared without an optimizer step.

        Args:
            are_over: Whether no step will follow, whether or not they are cleared.
        """
        if self._components.is_distributed:
            return
        for state in self._components.optimizers.states:
            is_any = any(one is not None for one in state.parameters().gradients)
            if (is_any and not state.is_on_host) or not self.overflowed(state):
                continue  # the host would wait for an accelerator
            if are_over or not is_any or _are_finite(state):
                record, inputs = self.measured(state)
                self.report(replace(record, skipped_by=LEFT_OUT), inputs)

    def measured(self, state: OptimizerState) -> tuple[StepRecord, StepInputs | None]:
        """Return a record of the gradients of the last backward pass, which no step has used, and their inputs."""
        step = self._measurement.collect_left_out(state)
        step.batch_idx, inputs = self._components.batch.last_backward or (step.batch_idx, step.inputs)
        return step.record(), inputs

    def report(self, record: StepRecord, inputs: StepInputs | None, replay: Replay | None = None) -> None:
        """Report a step that was left out, and its cause if that is known; nothing in a run of several processes.

        Args:
            record: The step.
            inputs: Its inputs, None if they are not known.
            replay: The step as it was computed again, if it was.
        """
        components, state = self._components, self._components.optimizers.states[record.optimizer]
        if components.is_distributed:
            return
        self._after.evaluate_held()
        signs = (NonFiniteLoss.sign, NonFiniteGradient.sign)
        found = [one for sign in signs for one in state.detectors.check_sign(record, sign)]
        state.log_failures()
        new = components.keep_findings(record.step, found)
        components.evidence.add(record, inputs, new, before_update=True, replay=replay)
        if any(one.severity >= Severity.WARNING for one in new):
            components.reporter.explain()


def left_out_record(step: int, batch_idx: int, loss: float) -> StepRecord:
    """Return a record of a loss that no optimizer step follows."""
    return StepRecord(step, batch_idx, loss=loss, skipped_by=LEFT_OUT, update_taken=False)


def _are_cleared(state: OptimizerState) -> bool:
    """Return whether the gradients of an optimizer are missing or zero now."""
    with torch.no_grad():
        return start_norms(state.parameters().gradients).norms().total == 0


def _are_finite(state: OptimizerState) -> bool:
    """Return whether the gradients of an optimizer are finite now."""
    with torch.no_grad():
        return math.isfinite(start_norms(state.parameters().gradients).norms().total)
