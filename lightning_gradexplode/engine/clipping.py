"""Clipping of a run: how a policy's threshold reaches the training loop, or the gradients themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from lightning_gradexplode.clip.apply import (
    clip_by_total_norm,
    clip_gradients,
    clip_on_device,
    torch_refuses,
)
from lightning_gradexplode.engine.agreement import Agreement
from lightning_gradexplode.engine.calm_step import CalmStep
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.gradients import GradientReading, norms_of
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, StepRecord

_ROUNDING = 1e-3
"""Upper bound of the relative difference between the measured norm and that of torch in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredNorm:
    """The norm of the gradients that an optimizer is about to get, as long as they stay as they are."""

    optimizer: Optimizer
    parameters: ParameterSet
    reading: GradientReading
    norm: float


class GradientClipper:
    """Applies clip policies, through the training loop's own clipping where it has one.

    In manual optimization Lightning ignores the trainer's clip value; for a fused optimizer under mixed precision, and
    in a module's own ``configure_gradient_clipping``, it may raise. There the gradients are clipped directly, before
    the optimizer steps.

    Args:
        loop: The training loop.
        clips: Whether the monitor has a clip policy.
        agreement: Makes all processes clip by the same threshold.
    """

    def __init__(self, loop: TrainingLoop, clips: bool, agreement: Agreement) -> None:
        self._agreement = agreement
        self._loop = loop
        self._clips = clips
        self._overrides = loop.overrides_clipping
        self._measured: MeasuredNorm | None = None

    def algorithm(self, state: OptimizerState) -> str:
        """Return the algorithm that an optimizer's gradients are clipped by."""
        return state.policy.algorithm if state.policy is not None else self._loop.clip_setting[1]

    def set_threshold(self, step: Step, record: StepRecord) -> None:
        """Determine the clip value of a step, and pass it to the training loop where that does the clipping.

        Args:
            step: The step.
            record: Its record so far.
        """
        policy = step.state.policy
        if policy is None:
            value, algorithm = self._loop.clip_setting
        elif step.is_deferred:
            value = policy.threshold(record)  # the step is over; the call only updates the state of the policy
            if step.on_device.clip is not None and step.clip_val is None:
                step.set(clip_val=value, clip_algorithm=None if value is None else "norm")
            return
        else:
            value, algorithm = self._agreement.threshold(policy.threshold(record)), policy.algorithm
            step.clips_directly = self._clips_directly(step, value, algorithm)
            if algorithm == "tensor":
                step.set(clip_algorithm=algorithm)
                return
        if value is not None:
            step.set(clip_val=value, clip_algorithm=algorithm)

    def _clips_directly(self, step: Step | CalmStep, value: float | None, algorithm: str) -> bool:
        """Pass a clip value to the training loop, and return whether that cannot clip the gradients of the step."""
        if not self._loop.clips(step.state.optimizer):
            return True
        refuses = algorithm == "tensor" or torch_refuses(step.parameters.gradients, algorithm)
        self._loop.set_clip(*((None, None) if refuses else (value, algorithm)))
        return refuses

    def clip_calm(self, step: CalmStep, record: StepRecord) -> None:
        """Clip the gradients of a calm step by their norm, or have the training loop do so.

        Args:
            step: The step.
            record: Its record so far.
        """
        policy, reading, norm = step.state.policy, step.reading, step.norms.total
        assert policy is not None
        assert reading is not None
        value = policy.threshold(record)
        step.clips_directly = self._clips_directly(step, value, "norm")
        step.clip_to(value)
        if value is None:
            return
        if step.clips_directly:
            gradients = step.parameters.gradients
            if self._loop.may_clip_by_itself and not reading.gradients.holds(step.parameters):
                norm = norms_of(step.parameters, gradients).total  # the user has clipped them
            clip_gradients(gradients, value, "norm", norm)
        self._measured = MeasuredNorm(step.state.optimizer, step.parameters, reading.gradients, norm)

    @staticmethod
    def take_over(step: Step, calm: CalmStep) -> None:
        """Set the clip value of a step to that of the calm step that it began as."""
        step.clips_directly = calm.clips_directly
        if calm.clip_val is not None:
            step.set(clip_val=calm.clip_val, clip_algorithm="norm", clip_rate=calm.clip_rate)

    def set_known_threshold(self, step: Step) -> bool:
        """Set a clip value that does not depend on the step's own numbers, or that their device computes.

        Returns:
            Whether there is one, so that nothing has to be read before the update.
        """
        policy = step.state.policy
        assert policy is not None
        is_plain = policy.algorithm == "norm" and not torch_refuses(step.parameters.gradients, "norm")
        if not is_plain or self._agreement.on_policy:
            return False
        value, clips = policy.known_threshold(), self._loop.clips(step.state.optimizer)
        # The user's hooks between this call and the loop's own clipping must get gradients that are not clipped yet.
        norm = None if clips and self._loop.may_change_gradients else step.norm_on_device()
        if norm is not None:
            threshold = policy.threshold_on_device(norm) if value is None else torch.full_like(norm, value)
            if threshold is None:
                return False
            step.on_device.clip = threshold, norm
        elif value is None or not clips:
            return False
        step.set(clip_val=value, clip_algorithm=policy.algorithm)
        return True

    @staticmethod
    def forget_threshold(step: Step) -> None:
        """Undo `set_known_threshold`."""
        if step.state.policy is not None:
            step.on_device.clip = None
            step.set(clip_val=None, clip_algorithm=None)

    def clip_on_device(self, step: Step) -> None:
        """Clip by the measured norm, or have the training loop clip, without waiting for an accelerator."""
        clips = self._loop.clips(step.state.optimizer)
        if step.on_device.clip is not None:
            clip_on_device(step.parameters.gradients, *step.on_device.clip)
        if clips:
            self._loop.set_clip(*((None, None) if step.on_device.clip is not None else (step.clip_val, "norm")))

    @staticmethod
    def set_clip_rate(step: Step) -> None:
        """Set the share of recent steps that were clipped, once the norm or the largest element is known."""
        if step.clip_val is not None:
            size = step.grad_norm if step.clip_algorithm == "norm" else step.grad_max
            step.set(clip_rate=step.state.clip_rate(step.clip_val, size))

    def clip(self, step: Step, first: bool = True) -> bool:
        """Clip the gradients of a step, where the training loop does not.

        Args:
            step: The step, with its clip value.
            first: Whether the norms of the step are those of the gradients as they are now; False for a further
                evaluation of a closure within the same step.

        Returns:
            False if only some of the processes have clipped their gradients, so that these must not be used.
        """
        policy, algorithm, value = step.state.policy, step.clip_algorithm, step.clip_val
        if policy is None or algorithm is None:
            return True
        if algorithm == "tensor":
            clipped = policy.clip_tensors(
                step.parameters, self._norms(step, first and step.gradients_intact), step.scale, first
            )
            if first:
                step.set(clip_rate=step.state.clip_rate(1.0, 2.0 if clipped else 0.0))
            return self._agreement.clips_alike(policy)
        if value is not None and step.clips_directly:
            gradients = step.parameters.gradients
            norm = (
                step.grad_norm
                if first and step.gradients_intact
                else norms_of(step.parameters, gradients, step.scale).total
            )
            assert norm is not None
            clip_gradients(gradients, value, algorithm, norm, step.scale)
        return True

    @staticmethod
    def _norms(step: Step, first: bool) -> FloatArray:
        """Return the norm of each gradient as it is now."""
        return step.grad_norm_each if first else norms_of(step.parameters, step.parameters.gradients, step.scale).each

    def expects_norm_clipping(self, state: OptimizerState) -> bool:
        """Return whether the monitor's clip is likely to change an optimizer's gradients by norm at the coming step."""
        if state.policy is None or not state.was_clipped:
            return False
        return state.policy.algorithm == "norm" and self._loop.clips(state.optimizer)

    def changes_gradients(self, step: Step) -> bool:
        """Return whether a step's gradients may differ from those that were measured, by any clipping."""
        return step.clip_algorithm is not None or self._overrides

    # The norm that was measured, for the training loop's own clipping.

    def remember(self, step: Step) -> None:
        """Record the norm of the gradients that an optimizer is about to get."""
        sharded = step.parameters.shards.copies is not None
        if self._clips and step.grad_norm is not None and not sharded and step.clip_algorithm == "norm":
            reading = step.reading.gradients
            self._measured = MeasuredNorm(step.state.optimizer, step.parameters, reading, step.grad_norm)

    def forget(self) -> None:
        """Release the gradients of a step."""
        self._measured = None

    def clip_by_measured_norm(self, optimizer: Optimizer, clip_val: float) -> bool:
        """Clip as ``clip_grad_norm_`` would, bit for bit, with the norm that was measured.

        With a norm clearly below the clip value, the factor would be 1.0, and nothing is computed.

        Returns:
            False if the norm cannot be used, so that the caller has to clip.
        """
        measured, self._measured = self._measured, None
        if measured is None or measured.optimizer is not optimizer or not measured.reading.holds(measured.parameters):
            return False
        if measured.norm < clip_val * (1 - _ROUNDING):
            return True
        if measured.reading.torch_total is None:
            return False
        clip_by_total_norm(measured.reading.gradients, clip_val, measured.reading.torch_total)
        return True

    def close(self) -> None:
        """Restore the training loop's own clip setting."""
        self.forget()
        if self._clips:
            self._loop.restore_clip()
