"""Calm steps: those whose loss and gradients show no rise, so that only their measurement is urgent.

At most eight of them are held, and recorded and evaluated by the detectors together: between two steps of a network,
the code of records and detectors is evicted from the processor's caches, and loading it again takes longer than
executing it. Records and findings are the same as those of steps that are evaluated one by one.
"""

from __future__ import annotations

import math

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.accumulation import AccumulatedReading, AccumulationWindow
from lightning_gradexplode.engine.calm_step import NOTHING_DONE, ONLY_SCREENED, CalmStep, Preliminary
from lightning_gradexplode.engine.clipping import GradientClipper
from lightning_gradexplode.engine.findings import FindingLog
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.responses import ResponseRunner
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.part_guard import is_own
from lightning_gradexplode.records import Finding, StepRecord


class CalmSteps:
    """Recognizes the calm steps of a run, and holds them until they are evaluated.

    Only runs of one process on the host have calm steps, with one optimizer, the default detectors, and either no clip
    policy or one of this package that clips by the norm of all gradients. If a response acts, the detectors are called
    before each update.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        states: The optimizers.
        window: The losses and gradients of the current accumulation window.
        log: The findings.
        responses: The responses.
        clipper: Applies the clip policies.

    Attributes:
        open: The calm step in progress, None without one.
        last: The record of the last step of the run, if it was a calm step that has been evaluated.
        findings: The findings of steps that were evaluated, until `evaluate` returns them.
    """

    def __init__(
        self,
        arguments: Arguments,
        loop: TrainingLoop,
        states: list[OptimizerState],
        window: AccumulationWindow,
        log: FindingLog,
        responses: ResponseRunner,
        clipper: GradientClipper,
    ) -> None:
        self.open: CalmStep | None = None
        self.last: StepRecord | None = None
        clip = arguments.clip
        self._are_possible = (
            arguments.has_default_detectors
            and (clip is None or (is_own(clip) and clip.algorithm == "norm"))
            and loop.process_group.size == 1
        )
        self._acts = arguments.acts
        self._clipper = clipper
        self._loop, self._states, self._window, self._log, self._responses = loop, states, window, log, responses
        self._held: list[CalmStep] = []
        self._ended: list[StepRecord] = []
        self.findings: list[Finding] = []
        self._has_begun = False

    def begin(
        self,
        state: OptimizerState,
        parameters: ParameterSet,
        reading: AccumulatedReading,
        number: int,
        batch_idx: int,
    ) -> Preliminary | None:
        """Begin a step at which nothing but loss and gradients is to be measured, if it is a calm one.

        Args:
            state: The optimizer.
            parameters: Its parameters.
            reading: Its gradients and losses.
            number: The step that other metrics are logged at.
            batch_idx: Index of its batch.

        Returns:
            None if the step is a calm one, which is `open` from then on; else what was done of it already.
        """
        is_possible = self._are_possible and parameters.on_host and state.evaluations == 1 and state.has_hooks
        if not is_possible or reading.has_scale or self._log.incidents.began is not None or len(self._states) > 1:
            return NOTHING_DONE
        loss, norms = reading.loss, reading.gradients.norms()
        if loss is None or not (math.isfinite(loss) and math.isfinite(norms.total)) or not reading.gradients.any:
            return NOTHING_DONE
        clip_val, algorithm = (None, None) if state.policy is not None else self._loop.clip_setting
        if clip_val is not None and algorithm != "norm":
            return NOTHING_DONE
        if not state.detectors.screen(loss, norms.total):
            return ONLY_SCREENED
        skipped, epoch = self._responses.skipped, self._loop.epoch
        step = CalmStep(state, parameters, reading, loss, norms, number, batch_idx, epoch, skipped)
        if self._acts:
            step.clip_val = clip_val
            findings = step.begin()
            if findings:
                return Preliminary(is_screened=True, findings=findings)
        self.open = step
        if clip_val is not None:
            step.clip_to(clip_val)
        if state.policy is not None:
            record = step.before_update()
            self._clipper.clip_calm(step, record)
            self._responses.log_notice(state, record)
        self._has_begun = True
        return None

    def stepped(self, step: CalmStep) -> bool:
        """Record that the optimizer has made the update of a calm step, and measure the weights if they are due.

        Returns:
            Whether it is a calm step still: the weights were not measured, or have changed as little as usual.
        """
        if step.needs_weights and not step.measure_weights():
            return False
        step.state.steps += 1
        step.update_taken = True
        self._window.passes.stepped(step.parameters)
        return True

    def close(self) -> None:
        """End the calm step in progress, if there is one."""
        step, self.open = self.open, None
        if step is not None:
            step.reading = None
            if step.state.policy is not None:
                self._clipper.forget()
            self._held.append(step)
            if step.needs_weights and step.update_taken:  # by which the detectors decide when the weights are due again
                self._evaluate_held()
            self._loop.publish_metrics({"gradexplode/grad_norm": step.norms.total, "gradexplode/severity": 0.0})

    def take_open(self) -> CalmStep:
        """Remove and return the step in progress, which is treated as any other from then on."""
        step, self.open = self.open, None
        assert step is not None
        return step

    def end_batch(self) -> bool:
        """End a batch, and return whether a calm step began in it."""
        self.close()
        has_begun, self._has_begun = self._has_begun, False
        return has_begun

    def evaluate(self) -> list[Finding]:
        """Record the steps that are held, and return their findings, oldest first."""
        if self.open is not None and self.open.update_taken:
            self.close()
        self._evaluate_held()
        findings, self.findings = self.findings, []
        return findings

    def take_ended(self) -> list[StepRecord]:
        """Remove and return the records of the steps that were evaluated, if a response acts."""
        ended, self._ended = self._ended, []
        return ended

    def _evaluate_held(self) -> None:
        held, self._held = self._held, []
        for step in held:
            self.last, found = step.evaluate()
            self.findings += found
            if self._acts:
                self._ended.append(self.last)
        if held:
            held[-1].state.log_failures()
            if not self._acts:  # else at the end of each batch
                self._responses.check_buffers(held[-1].number, steps=len(held))
