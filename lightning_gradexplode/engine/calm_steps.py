"""Calm steps: those whose loss and gradients show no rise, so that all but their measurement can wait.

They are held, and recorded and evaluated by the detectors together, at most eight of them: between two steps of a
network the processor's caches lose the code of records and detectors, and to fetch it again takes longer than to
execute it. Records and findings are the same as those of steps that are evaluated one by one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.accumulation import AccumulatedReading, AccumulationWindow
from lightning_gradexplode.engine.findings import FindingLog
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.responses import ResponseRunner
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import Finding, Norms, StepRecord


class CalmStep:
    """What is known of a calm step.

    Args:
        state: The optimizer.
        parameters: Its parameters.
        reading: Its gradients and losses; None once the step is over, since they keep tensors of gradients.
        loss: Its loss.
        norms: The norms of its gradients.
        number: The step that other metrics are logged at.
        batch_idx: Index of its batch.
        epoch: Index of its epoch.
        clip_val: The norm that the training loop clips by, None if it does not.
        skipped_steps: Number of updates skipped before.

    Attributes:
        update_taken: Whether the optimizer has stepped.
    """

    __slots__ = (
        "_backward_passes",
        "_batch_idx",
        "_clip_val",
        "_epoch",
        "_learning_rate",
        "_loss",
        "_micro_batches",
        "_recorder",
        "_skipped_steps",
        "norms",
        "number",
        "parameters",
        "reading",
        "state",
        "update_taken",
    )

    def __init__(
        self,
        state: OptimizerState,
        parameters: ParameterSet,
        reading: AccumulatedReading,
        loss: float,
        norms: Norms,
        number: int,
        batch_idx: int,
        epoch: int,
        clip_val: float | None,
        skipped_steps: int,
    ) -> None:
        self.state, self.parameters, self.norms, self.number = state, parameters, norms, number
        self.reading: AccumulatedReading | None = reading
        self.update_taken = False
        self._loss, self._learning_rate = loss, state.learning_rate
        self._micro_batches, self._backward_passes = reading.micro_batches, reading.backward_passes
        self._batch_idx, self._epoch, self._clip_val, self._skipped_steps = batch_idx, epoch, clip_val, skipped_steps
        self._recorder = state.recorder  # another one once the parameters change

    def evaluate(self) -> tuple[StepRecord, list[Finding]]:
        """Make the record of the step, add it to the history of its optimizer, and return it with what it shows."""
        record = self._record()
        # Nothing becomes known of a calm step after its update: there is nothing to proceed with.
        findings = self.state.detectors.begin(record, is_new=False)
        if findings:
            record = replace(record, severity=max(int(finding.severity) for finding in findings))
        self._recorder.add(record)
        return record, findings

    def _record(self) -> StepRecord:
        norms, clip_val = self.norms, self._clip_val
        arrays = {"grad_norm": norms.each, "nonfinite_count": norms.nonfinite}
        for array in arrays.values():
            array.setflags(write=False)
        return StepRecord(
            step=self.number,
            batch_idx=self._batch_idx,
            optimizer=self.state.index,
            parameters=self.parameters.names,
            loss=self._loss,
            grad_norm=norms.total,
            nonfinite_count=0,
            clip_val=clip_val,
            clip_algorithm=None if clip_val is None else "norm",
            clip_rate=None if clip_val is None else self.state.clip_rate(clip_val, norms.total),
            per_parameter=MappingProxyType({name: array.view() for name, array in arrays.items()}),
            histograms=MappingProxyType({}),
            skipped_steps=self._skipped_steps,
            update_taken=self.update_taken,
            learning_rate=self._learning_rate,
            epoch=self._epoch,
            micro_batches=self._micro_batches,
            backward_passes=self._backward_passes,
            logged=MappingProxyType({}),
            responses=MappingProxyType({}),
        )


class CalmSteps:
    """Recognizes the calm steps of a run, and holds them until they are evaluated.

    There are some in runs of one process on the host with one optimizer, the default detectors, and nothing that may
    change the run: neither a clip policy nor a response that acts.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        states: The optimizers.
        window: The losses and gradients of the current accumulation window.
        log: The findings.
        responses: The responses.

    Attributes:
        open: The calm step in progress, None without one.
        last: The record of the last step of the run, if that was a calm one, and has been evaluated.
    """

    def __init__(
        self,
        arguments: Arguments,
        loop: TrainingLoop,
        states: list[OptimizerState],
        window: AccumulationWindow,
        log: FindingLog,
        responses: ResponseRunner,
    ) -> None:
        self.open: CalmStep | None = None
        self.last: StepRecord | None = None
        self._are_possible = (
            arguments.has_default_detectors
            and arguments.clip is None
            and not arguments.acts
            and loop.process_group.size == 1
        )
        self._loop, self._states, self._window, self._log, self._responses = loop, states, window, log, responses
        self._held: list[CalmStep] = []
        self._has_begun = False

    def begin(
        self,
        state: OptimizerState,
        parameters: ParameterSet,
        reading: AccumulatedReading,
        number: int,
        batch_idx: int,
    ) -> bool | None:
        """Begin a step at which nothing but loss and gradients is to be measured, if it is a calm one.

        Args:
            state: The optimizer.
            parameters: Its parameters.
            reading: Its gradients and losses.
            number: The step that other metrics are logged at.
            batch_idx: Index of its batch.

        Returns:
            Whether it is; None if the detectors were not called.
        """
        is_possible = self._are_possible and parameters.on_host and state.evaluations == 1 and state.has_hooks
        if not is_possible or reading.has_scale or self._log.incidents.began is not None or len(self._states) > 1:
            return None
        loss, norms, (clip_val, algorithm) = reading.loss, reading.gradients.norms(), self._loop.clip_setting
        if loss is None or not (math.isfinite(loss) and math.isfinite(norms.total)) or not reading.gradients.any:
            return None
        if clip_val is not None and algorithm != "norm":
            return None
        if not state.detectors.examine(loss, norms.total):
            return False
        skipped, epoch = self._responses.skipped, self._loop.epoch
        self.open = CalmStep(state, parameters, reading, loss, norms, number, batch_idx, epoch, clip_val, skipped)
        self._has_begun = True
        return True

    def stepped(self, step: CalmStep) -> None:
        """Record that the optimizer has made the update of a calm step."""
        step.state.steps += 1
        step.update_taken = True
        self._window.stepped(step.parameters)

    def close(self) -> None:
        """End the calm step in progress, if there is one."""
        step, self.open = self.open, None
        if step is not None:
            step.reading = None
            self._held.append(step)
            self._loop.publish_metrics({"gradexplode/grad_norm": step.norms.total, "gradexplode/severity": 0.0})

    def end_batch(self) -> bool:
        """End a batch, and return whether a calm step began in it."""
        self.close()
        has_begun, self._has_begun = self._has_begun, False
        return has_begun

    def evaluate(self) -> list[Finding]:
        """Record the steps that are held, and return what the detectors find in them, oldest first."""
        if self.open is not None and self.open.update_taken:
            self.close()
        held, self._held = self._held, []
        findings: list[Finding] = []
        for step in held:
            self.last, found = step.evaluate()
            findings += found
        if held:
            held[-1].state.log_failures()
            self._responses.check_averages(held[-1].number, steps=len(held))
        return findings
