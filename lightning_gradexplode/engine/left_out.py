"""Losses and gradients that are not finite, and with which the training loop itself runs no optimizer step.

Such as a loop that goes on with the next batch if the loss is NaN, or a ``training_step`` that returns None then. Their
findings are warnings, since they reach no weight; in runs of one process only.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gradexplode.detect import NonFiniteGradient, NonFiniteLoss
from lightning_gradexplode.engine.accumulation import host_number
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.measure.norms import start_norms
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import LEFT_OUT, Replay, Severity, StepRecord

MAX_EXPECTED = 8
"""Largest number of losses that wait for a backward pass; of more, the oldest counts as left out."""

MAX_REPLAYS_WITHOUT_LOSS = 2
"""Largest number of batches without a loss whose step is computed again."""


class Expected(NamedTuple):
    """A loss that waits for its backward pass.

    Args:
        value: The loss without its graph.
        graph: A weak reference to an object that lives as long as the graph of the loss.
        step: The step that it belongs to.
        batch_idx: Index of its batch.
        inputs: The inputs of that batch.
    """

    value: Tensor
    graph: weakref.ref[Any]
    step: int
    batch_idx: int
    inputs: StepInputs | None


class LeftOutSteps:
    """Reports losses and gradients that are not finite, and that no optimizer step has followed.

    Args:
        components: The components of the run.
        measurement: Measures the gradients.
        evaluate_held: Evaluates the calm steps that are held.

    Attributes:
        backward: Index and inputs of the batch of the last backward pass, None if its batch has ended.
    """

    def __init__(
        self, components: Components, measurement: GradientMeasurement, evaluate_held: Callable[[], None]
    ) -> None:
        self._components = components
        self._measurement = measurement
        self._evaluate_held = evaluate_held
        self._replays_without_loss = 0
        self.backward: tuple[int, StepInputs | None] | None = None
        self._expected: list[Expected] = []
        self._is_on = components.exchange.world.size == 1

    # Losses without a backward pass.

    def expect(self, loss: Tensor, graph: object, batch_idx: int) -> None:
        """Note a loss that a backward pass is expected of.

        Args:
            loss: The loss.
            graph: An object that lives as long as the graph of the loss.
            batch_idx: Index of its batch.
        """
        components = self._components
        if not self._is_on or loss.numel() != 1:
            return
        value = host_number(loss)
        if value is not None and not math.isfinite(value):
            components.graphs.read(loss, value)  # there may be no backward pass in which it could be read
        step, inputs = components.loop.step, components.evidence.inputs
        self._expected.append(Expected(loss.detach(), weakref.ref(graph), step, batch_idx, inputs))

    def reached(self, graph: object) -> None:
        """Note that a backward pass has reached the loss of a graph."""
        self._expected = [one for one in self._expected if one.graph() is not graph]

    def take_nonfinite_losses(self, are_over: bool = False) -> list[Expected]:
        """Remove and return the losses that are not finite and that no backward pass can reach any more.

        Args:
            are_over: Whether no backward pass will follow, whatever is still in memory.
        """
        kept = [] if are_over else [one for one in self._expected if one.graph() is not None][-MAX_EXPECTED:]
        losses = [one for one in self._expected if one not in kept]
        self._expected = kept
        return [one for one in losses if not math.isfinite(float(read([one.value])[0]))]

    def report_nonfinite_losses(self, losses: Sequence[Expected]) -> None:
        """Report losses that were left out."""
        for one in losses:
            self.report(left_out_record(one.step, one.batch_idx, float(one.value)), one.inputs)

    # Batches without a loss.

    def report_batch(self, number: int, batch_idx: int, outputs: Any) -> None:
        """Report a batch without a backward pass, if its loss is not finite.

        The loss is the one that ``training_step`` has returned. If it has returned nothing, the step is computed again
        to find out whether it has tested a value for being NaN or infinite, for at most
        `MAX_REPLAYS_WITHOUT_LOSS` batches of a run.

        Args:
            number: The step that the batch belongs to.
            batch_idx: Index of the batch.
            outputs: What ``training_step`` has returned.
        """
        components, inputs = self._components, self._components.evidence.inputs
        if not self._is_on:
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
            self.report(left_out_record(number, batch_idx, loss), inputs, replay)

    # Gradients without an optimizer step.

    def overflowed(self, state: OptimizerState) -> bool:
        """Return whether gradients that no step has used are not finite."""
        window = self._components.window
        if window.has_early(state.optimizer):
            return window.has_overflowed(state.optimizer)
        if window.unused_loss is None:
            return False  # they are those of the last step
        return not _are_finite(state)

    def overflowed_early(self) -> list[OptimizerState]:
        """Return the optimizers with gradients that were measured early, are not finite, and that no step has used."""
        return [
            one for one in self._components.optimizers.states if self._components.window.has_overflowed(one.optimizer)
        ]

    def are_cleared(self) -> bool:
        """Return whether the gradients of those optimizers are cleared; without any, whether those of all are."""
        return all(map(_are_cleared, self.overflowed_early() or self._components.optimizers.states))

    def report_gradients(self, are_over: bool = False) -> None:
        """Report gradients that are not finite, and that the training loop has cleared without an optimizer step.

        Args:
            are_over: Whether no step will follow, whether or not they are cleared.
        """
        for state in self._components.optimizers.states if self._is_on else ():
            is_any = any(one is not None for one in state.parameters().gradients)
            if (is_any and not state.is_on_host) or not self.overflowed(state):
                continue  # the host would wait for an accelerator
            if are_over or not is_any or _are_finite(state):
                record, inputs = self.measured(state)
                self.report(replace(record, skipped_by=LEFT_OUT), inputs)

    def measured(self, state: OptimizerState) -> tuple[StepRecord, StepInputs | None]:
        """Return a record of the gradients of the last backward pass, which no step has used, and their inputs."""
        step = self._measurement.collect_left_out(state)
        step.batch_idx, inputs = self.backward or (step.batch_idx, step.inputs)
        return step.record(), inputs

    def report(self, record: StepRecord, inputs: StepInputs | None, replay: Replay | None = None) -> None:
        """Report a step that was left out, and its cause if that is known; nothing in a run of several processes.

        Args:
            record: The step.
            inputs: Its inputs, None if they are not known.
            replay: The step as it was computed again, if it was.
        """
        components, state = self._components, self._components.optimizers.states[record.optimizer]
        if not self._is_on:
            return
        self._evaluate_held()
        signs = (NonFiniteLoss.sign, NonFiniteGradient.sign)
        found = [one for sign in signs for one in state.detectors.look_again(record, sign)]
        state.log_failures()
        new = components.keep_findings(record.step, found)
        components.evidence.add(record, inputs, new, components.log.incidents.began, before_update=True, replay=replay)
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
