"""Values that are not finite in a step that an exception has ended before its update."""

from __future__ import annotations

import math
from bdb import BdbQuit
from dataclasses import replace

from lightning_gradexplode.detect import NonFiniteLoss
from lightning_gradexplode.diagnose.replay import is_out_of_memory
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.left_out import LeftOutSteps
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.records import Finding, Replay, StepRecord
from lightning_gradexplode.records.text import first_line


class InterruptedSteps:
    """Records the step that an exception has ended, if a value of it is not finite.

    Such exceptions are those of anomaly detection, of the user's own check of the loss, or of a distribution that
    checks its parameters in the forward pass.

    Args:
        components: The components of the run.
        left_out: The losses and gradients that no optimizer step has used.
    """

    def __init__(self, components: Components, left_out: LeftOutSteps) -> None:
        self._components = components
        self._left_out = left_out

    def record(self, error: BaseException, batch_idx: int, has_no_loss: bool) -> None:
        """Record the step, if its gradients, its loss or, without a loss, a value that it has tested is not finite.

        Args:
            error: The exception.
            batch_idx: Index of its batch.
            has_no_loss: Whether the exception has ended a forward pass.
        """
        components, losses = self._components, self._left_out.take_nonfinite_losses(are_over=True)
        for state in components.optimizers.states:
            if self._left_out.overflowed(state):
                self._add(state, *self._left_out.measured(state))
                return
        loss, inputs = components.window.unused_loss, None
        if losses:
            loss, inputs = float(losses[-1].value), losses[-1].inputs
        if loss is None and has_no_loss:
            self._record_forward(error, batch_idx)
        elif loss is not None and not math.isfinite(loss) and components.loop.loss_scale()[0] is None:
            inputs = inputs or components.evidence.inputs_of_step()
            self._add(components.optimizers.states[0], self._record(batch_idx, loss), inputs)

    def _record_forward(self, error: BaseException, batch_idx: int) -> None:
        """Record a step without a loss, if it tests a value that is not finite when it is computed again."""
        components, inputs = self._components, self._components.evidence.inputs
        if inputs is None or components.log.incidents.is_critical or not _may_be_of_values(error):
            return
        replay = components.evidence.replays.replay_without_loss(inputs, has_raised=True)
        if replay is not None:
            components.evidence.raised = first_line(error)
            self._add(components.optimizers.states[0], self._record(batch_idx, math.nan), inputs, replay)

    def _record(self, batch_idx: int, loss: float) -> StepRecord:
        loop = self._components.loop
        return StepRecord(loop.step, batch_idx, loss=loss, epoch=loop.epoch, update_taken=False)

    def _add(
        self, state: OptimizerState, record: StepRecord, inputs: StepInputs | None, replay: Replay | None = None
    ) -> None:
        components = self._components
        found = [self._worded(one) for one in state.detectors.begin(record)]
        new = components.keep_findings(record.step, found)
        components.evidence.add(record, inputs, new, components.log.incidents.began, before_update=True, replay=replay)
        state.recorder.add(record)

    def _worded(self, finding: Finding) -> Finding:
        """Return a finding with the exception in place of the loss, if there is no loss."""
        raised = self._components.evidence.raised
        if not raised or finding.sign != NonFiniteLoss.sign:
            return finding
        return replace(finding, message=f"a value of the step is not finite, and the step raised {raised}")


def _may_be_of_values(error: BaseException) -> bool:
    """Return whether values that are not finite may have caused an exception."""
    return isinstance(error, Exception) and not isinstance(error, BdbQuit) and not is_out_of_memory(error)
