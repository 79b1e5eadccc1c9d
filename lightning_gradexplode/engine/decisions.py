"""The decisions about a step before the optimizer's update: findings, clip value and response."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.optim import LBFGS, Optimizer

from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.detect import NonFiniteGradient
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.measure.gradients import norms_of
from lightning_gradexplode.measure.norms import start_norms
from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.records import Finding, Norms, StepRecord


class Decisions:
    """Calls the detectors before the update of a step, clips its gradients, and holds back its update.

    Args:
        components: The components of the run.
    """

    def __init__(self, components: Components) -> None:
        self._components = components

    def prepare_update(self, step: Step) -> None:
        """Decide about a step, and prepare its update: clip the gradients, or remove them to hold it back.

        If the user's own code may still replace non-finite gradients, `hold_back` decides later, by the gradients that
        the optimizer gets.
        """
        components, state = self._components, step.state
        is_finite = step.grad_norm is not None and math.isfinite(step.grad_norm)
        # A gradient scaler skips the update.
        if not is_finite and components.may_change_gradients and state.has_hooks and not step.reading.has_scale:
            return
        self.decide(step)
        if state.policy is not None and step.skipped_by is None and step.preliminary.calm is None:
            self.clip(step, first=step.gradients_intact)
            components.clipper.remember(step)
        if step.skipped_by is None:
            step.keep_weights(components.arguments.update_sample)
        elif not state.has_hooks:
            drop_gradients(state.optimizer)

    def clip(self, step: Step, first: bool) -> None:
        """Clip the gradients of a step; the update is held back if only some of the processes have clipped them.

        Args:
            step: The step.
            first: As in `GradientClipper.clip`.
        """
        if not self._components.clipper.clip(step, first):
            self._components.responses.hold_back(step, "clip: the clip policy has failed on some processes only")

    def hold_back(self, step: Step, in_closure: bool = False) -> None:
        """Remove the gradients of an update that is held back, right before it.

        Args:
            step: The step.
            in_closure: Whether a closure has computed the gradients. An optimizer that calls it again, as for
                sharpness-aware minimization, restores only parameters that have a gradient: gradients are set to zero
                instead of None.
        """
        if step.phase is Phase.MEASURED:
            now = norms_of(step.parameters, step.parameters.gradients, step.scale)
            # Finite only if the user's code has cleaned them; else a clip by norm may have spread NaN to all of them.
            if self._is_finite_everywhere(now):
                step.set_gradient_norms(now)
            self.decide(step)
            step.keep_weights(self._components.arguments.update_sample)
        elif (
            self._components.acts
            and self._components.may_change_gradients
            and step.skipped_by is None
            and step.evaluations == 1
        ):
            self.check_changed_gradients(step)
        if step.skipped_by is None:
            return
        if in_closure and _is_evaluated_again(step):
            _zero_gradients(step.state.optimizer)
        else:
            drop_gradients(step.state.optimizer)

    def _is_finite_everywhere(self, norms: Norms) -> bool:
        """Return whether norms are finite on all processes; a collective where their gradients may differ."""
        components, is_finite = self._components, math.isfinite(norms.total)
        if components.is_distributed and components.loop.gradients_may_differ:
            return bool(components.exchange.agree(np.array([float(is_finite)])).all())
        return is_finite

    def check_changed_gradients(self, step: Step) -> None:
        """Respond to gradients that have become NaN or infinite since they were measured."""
        if step.phase is not Phase.COLLECTING and step.skipped_by is None:
            gradients = step.parameters.gradients
            changed = not step.reading.gradients.holds(step.parameters)
            if self._is_any_nonfinite(changed and not math.isfinite(start_norms(gradients).norms().total)):
                step.set_gradient_norms(norms_of(step.parameters, gradients, step.scale))
                self._respond_again(step)

    def measure_again(self, step: Step) -> None:
        """Replace the gradient norms of a step, and respond if they are no longer finite."""
        step.measure_again()
        is_finite = step.grad_norm is None or math.isfinite(step.grad_norm)
        if step.phase is not Phase.COLLECTING and step.skipped_by is None and self._is_any_nonfinite(not is_finite):
            self._respond_again(step)

    def _is_any_nonfinite(self, here: bool) -> bool:
        """Return whether gradients are no longer finite on any process."""
        components = self._components
        return bool(components.exchange.agree(np.array([float(here)])).any()) if components.is_distributed else here

    def _respond_again(self, step: Step) -> None:
        findings = step.state.detectors.check_sign(step.record(), NonFiniteGradient.sign)
        self._add_findings(step, findings, before_update=True)
        self._components.responses.respond(step, findings, before_update=True)

    def decide(self, step: Step, before_update: bool = True) -> None:
        """Call the detectors for a step's loss and gradients, and decide clip value and response."""
        components, state = self._components, step.state
        algorithm = step.clip_algorithm if state.policy is None else state.policy.algorithm
        by_value = algorithm == "value"
        if step.deferred_findings is None:
            if state.detectors.needs_start:
                step.measure_start()
            if step.scalars_due or by_value:
                step.measure_gradients(by_value)
        record = step.record()
        findings = self._findings(step, record, before_update, by_value)
        if step.histograms_due or components.batch.measures_modules:  # a report compares with the run's first step
            step.measure_gradient_histograms()
        if step.preliminary.calm is not None:
            components.clipper.take_over(step, step.preliminary.calm)
        elif algorithm is not None and step.deferred_findings is None:
            self.set_clip_value(step, step.record() if findings else record)
        step.phase = Phase.DECIDED  # a response may raise
        if components.acts or findings:
            components.responses.respond(step, findings, before_update)

    def _findings(self, step: Step, record: StepRecord, before_update: bool, by_value: bool) -> Sequence[Finding]:
        """Return the findings of a step's loss and gradients, and collect the evidence of new ones."""
        components = self._components
        is_shared = components.is_distributed and components.evidence.shared.is_due(record)
        findings: Sequence[Finding]
        if step.deferred_findings is not None:
            findings = components.agreement.counted(step.deferred_findings[0])
        else:
            held, early = components.calm_steps.evaluate(), step.preliminary.findings
            findings = [*held, *(components.find(step, record) if early is None else early)]
            step.state.log_failures()
        if findings:
            try:
                self._add_findings(step, findings, before_update, by_value)
            except Exception:
                if is_shared:
                    components.exchange.withdraw_from_agreement(1)
                raise
        if is_shared:
            components.evidence.share(components.exchange, record)
        return findings

    def set_clip_value(self, step: Step, record: StepRecord) -> None:
        """Determine the clip value of a step, and the share of recent steps that were clipped."""
        if step.state.policy is not None:
            self._components.clipper.set_threshold(step, record)
            self._components.responses.log_notice(step.state, record)
        if step.clip_algorithm is not None:
            self._components.clipper.set_clip_rate(step)

    def _add_findings(
        self, step: Step, findings: Sequence[Finding], before_update: bool, by_value: bool = False
    ) -> None:
        components = self._components
        new = components.add_findings(step, findings)
        step.measure_gradients(by_value)  # after a finding, scalars and histograms are due
        components.evidence.add(step.record(), step.inputs, new, before_update)


def _is_evaluated_again(step: Step) -> bool:
    """Return whether an optimizer may compute gradients again in a step before it updates the weights.

    An optimizer that did so in its last step may, or one with the method ``first_step`` of sharpness-aware
    minimization, or one that wraps another, before its first step. LBFGS ends its step if there are no gradients.
    """
    state = step.state
    if isinstance(state.optimizer, LBFGS):
        return False
    is_unknown = state.wraps_others and not state.steps
    return is_unknown or max(step.evaluations, state.evaluations) > 1 or hasattr(state.optimizer, "first_step")


def _zero_gradients(optimizer: Optimizer) -> None:
    for parameter in held_by(optimizer):
        if parameter.grad is not None:
            parameter.grad = torch.zeros_like(parameter.grad)
