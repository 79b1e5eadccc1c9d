"""The steps of a batch that an exception has interrupted."""

from __future__ import annotations

import math
from bdb import BdbQuit
from dataclasses import replace

from lightning_gradexplode.detect import NonFiniteLoss
from lightning_gradexplode.diagnose.replay import is_out_of_memory
from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.engine.expected_losses import ExpectedLosses
from lightning_gradexplode.engine.left_out import LeftOutSteps
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.optimizer_steps import OptimizerSteps
from lightning_gradexplode.engine.step import Phase
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.records import Finding, Replay, StepRecord
from lightning_gradexplode.records.text import first_line


class InterruptedSteps:
    """Records what was measured of the steps of a batch that an exception has interrupted.

    If no step had begun, the batch is recorded if a value of it is not finite: exceptions of that kind are those of
    anomaly detection, of the user's own check of the loss, or of a distribution that checks its parameters in the
    forward pass.

    Args:
        components: The components of the run.
        steps: The optimizer steps of the batch.
        deferred: The steps whose numbers are read later.
        left_out: The losses and gradients that no optimizer step has used.
        expected: The losses that wait for a backward pass.
        after: Records steps.
    """

    def __init__(
        self,
        components: Components,
        steps: OptimizerSteps,
        deferred: DeferredSteps,
        left_out: LeftOutSteps,
        expected: ExpectedLosses,
        after: AfterUpdate,
    ) -> None:
        self._components = components
        self._steps = steps
        self._deferred = deferred
        self._left_out = left_out
        self._expected = expected
        self._after = after

    def finish(self, error: BaseException) -> None:
        """Finish the steps that an exception has interrupted.

        The other processes may not have an exception, so that nothing is exchanged with them here. Of a step whose
        numbers were deferred, those are kept that were exchanged when it began and have arrived.

        Args:
            error: The exception.
        """
        deferred, is_alone = self._deferred, not self._components.is_distributed
        if is_alone:
            deferred.read()
            deferred.settle()
        self._components.calm_steps.close()
        steps = self._steps.take(decides=is_alone)
        if not is_alone:
            deferred.keep_arrived(steps)
            return
        for step in steps:
            if step.phase is Phase.COLLECTING:
                deferred.resolve(step)
                deferred.act(step)
        self._after.freeze([step for step in steps if step.phase is not Phase.COLLECTING])
        if not steps:
            self._record_batch(error)

    def _record_batch(self, error: BaseException) -> None:
        """Record a batch, if its gradients, its loss or, without a loss, a value that it has tested is not finite."""
        components, losses = self._components, self._expected.take_nonfinite(are_over=True)
        for state in components.optimizers.states:
            if self._left_out.overflowed(state):
                self._add(state, *self._left_out.measured(state))
                return
        loss, inputs = components.window.unused_loss, None
        if losses:
            loss, inputs = float(losses[-1].value), losses[-1].inputs
        if loss is None and components.batch.is_open and not components.batch.has_loss:
            self._record_forward(error)
        elif loss is not None and not math.isfinite(loss) and components.loop.loss_scale()[0] is None:
            inputs = inputs or components.inputs.take_of_step()
            self._add(components.optimizers.states[0], self._record(loss), inputs)

    def _record_forward(self, error: BaseException) -> None:
        """Record a step without a loss, if it tests a value that is not finite when it is computed again."""
        components, inputs = self._components, self._components.inputs.current
        if inputs is None or components.log.incidents.is_critical or not _may_be_of_values(error):
            return
        replay = components.evidence.replays.replay_without_loss(inputs, has_raised=True)
        if replay is not None:
            components.evidence.raised = first_line(error)
            self._add(components.optimizers.states[0], self._record(math.nan), inputs, replay)

    def _record(self, loss: float) -> StepRecord:
        loop, batch = self._components.loop, self._components.batch
        return StepRecord(loop.step, batch.index, loss=loss, epoch=loop.epoch, update_taken=False)

    def _add(
        self, state: OptimizerState, record: StepRecord, inputs: StepInputs | None, replay: Replay | None = None
    ) -> None:
        components = self._components
        found = [self._worded(one) for one in state.detectors.check_before_update(record)]
        new = components.keep_findings(record.step, found)
        components.evidence.add(record, inputs, new, before_update=True, replay=replay)
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
