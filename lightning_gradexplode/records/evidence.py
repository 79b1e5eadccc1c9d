"""The evidence of an incident: findings, the last steps, batch, replay, and what the responses did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records.batch_facts import BatchFacts
from lightning_gradexplode.records.finding import Finding
from lightning_gradexplode.records.replay import AppliedWeight, Experiments, LossTerm, OwnFunction, Replay, UpdateFault
from lightning_gradexplode.records.run_facts import RunFacts


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """The last steps of one optimizer, oldest first. Values that were not measured are NaN.

    Args:
        step: Shape ``(steps,)``.
        values: Arrays of shape ``(steps,)`` by name: ``loss``, ``grad_norm``, ``grad_norm_clipped``, ``clip_val``,
            ``learning_rate`` (largest of the groups), ``loss_scale``, ``update_taken`` (1 or 0), ``batch_idx``,
            ``epoch``, ``backward_passes`` (since gradients were cleared), ``micro_batches``, ``update_ratio``,
            ``weight_norm``, ``severity``, and ``logged/<name>`` for each scalar that the user's module logged.
        parameters: Names of the parameters.
        parameter_grad_norm: Shape ``(steps, parameters)``.
    """

    step: npt.NDArray[np.int64]
    values: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    parameter_grad_norm: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))

    def until(self, step: int) -> History:
        """Return the history up to a step."""
        return self._only(self.step <= step)

    @property
    def has_gradients(self) -> npt.NDArray[np.bool_]:
        """Whether there were gradients, shape ``(steps,)``; a step that ends before its backward pass has none."""
        everywhere = np.ones(len(self.step))
        passes, norm = (np.isnan(self.values.get(name, everywhere)) for name in ("backward_passes", "grad_norm"))
        found: npt.NDArray[np.bool_] = ~(passes & norm) | passes.all()
        return found

    def with_gradients(self) -> History:
        """Return the steps with gradients."""
        return self._only(self.has_gradients)

    def after(self, earlier: History) -> History:
        """Return these steps, and before them those of an earlier history of the same parameters."""
        parts = earlier.until(int(self.step[0]) - 1), self
        values = {
            name: np.concatenate([one.values.get(name, np.full(len(one.step), np.nan)) for one in parts])
            for name in dict.fromkeys((*earlier.values, *self.values))
        }
        norms = np.concatenate([one.parameter_grad_norm for one in parts])
        return History(np.concatenate([one.step for one in parts]), values, self.parameters, norms)

    def _only(self, kept: npt.NDArray[np.bool_]) -> History:
        values = {name: values[kept] for name, values in self.values.items()}
        return History(self.step[kept], values, self.parameters, self.parameter_grad_norm[kept])


@dataclass(frozen=True, slots=True)
class Attempt:
    """An action of a response to an incident, and its outcome.

    Args:
        step: The step.
        action: For example ``"skip"``, ``"rollback"``, ``"clip"``.
        detail: A description in one sentence.
        helped: Whether 20 steps without a CRITICAL finding followed, None if that is not known yet.
    """

    step: int
    action: str
    detail: str = ""
    helped: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The evidence of an incident.

    Args:
        step: The step at which the incident began.
        now: The step at which it is diagnosed.
        findings: The findings of the incident, oldest first.
        run: Facts about the run before its first step.
        history: The last steps, one entry per optimizer.
        first: The first steps of the run, at most 16, one entry per optimizer.
        batch: The batch of the failed step.
        replay: The result of computing the step again.
        experiments: Measurements with a copy of the module.
        attempts: Actions of the responses.
        weights_are_finite: Whether the weights are finite.
        update_is_harmless: Whether the step's update cannot reach the weights (gradients zero or missing).
        later_loss: Median loss of the last steps if at least 20 steps followed `now`; else None.
        update_fault: The first weight that an update with finite gradients has made non-finite, None if there is none.
        uncleared_evaluations: Largest number of evaluations of an optimizer's closure within one step without clearing
            the gradients, 0 without a closure.
        loss_divisors: Numbers that the terms of the first loss are divided by, None if they are not known.
        later_loss_divisors: The same of a loss of the incident.
        is_left_out: Whether the training loop itself runs no optimizer step for the loss or gradients of the findings.
        applied: The weights that the first forward pass of the run multiplies by, in the order of their first use.
        first_losses: The loss functions of the first forward pass, with their inputs.
        own_functions: Each ``torch.autograd.Function`` in the first loss that is not of torch itself.
        loss_factor: What the loop multiplies the first loss by for its backward pass, without the scale of a gradient
            scaler; None if that is not known.
        moves_weights: Whether the loop itself writes to the weights between the backward pass of a loss and the first
            step, as sharpness-aware minimization does.
        first_changes: What the loop itself multiplies the norm of the gradients by before the first step, after each
            backward pass after which it changes them; none if that is not known.
        summed: Number of elements that the first loss is the sum of, None if it is none.
        compares_layer: Whether the first loss is made of the difference of a layer's result and data alone.
        raised: The exception that the step has raised after a value of it was not finite, before it had a loss; empty
            without one.
        unchanged: The weights in half precision whose size is exactly that of the start, of a run without an incident.
        inactive: An operation whose derivative is zero for all elements of the first batch, such as a rectifier, and
            the nearest parameter before it; None without one.
        frozen: The parameters that take no gradient at present.
        of_one_element: A softmax over one element in the first loss, and the nearest parameter before it; None without
            one.
        input_growth: How many times the input of the first weight is as large in a loss of the incident as in the first
            loss, None if that is not known.
    """

    step: int
    now: int
    findings: tuple[Finding, ...] = ()
    run: RunFacts = field(default_factory=RunFacts)
    history: tuple[History, ...] = ()
    first: tuple[History, ...] = ()
    batch: BatchFacts | None = None
    replay: Replay | None = None
    experiments: Experiments | None = None
    attempts: tuple[Attempt, ...] = ()
    weights_are_finite: bool = True
    update_is_harmless: bool = False
    later_loss: float | None = None
    update_fault: UpdateFault | None = None
    uncleared_evaluations: int = 0
    loss_divisors: tuple[float, ...] | None = None
    later_loss_divisors: tuple[float, ...] | None = None
    is_left_out: bool = False
    applied: tuple[AppliedWeight, ...] = ()
    first_losses: tuple[LossTerm, ...] = ()
    own_functions: tuple[OwnFunction, ...] = ()
    loss_factor: float | None = None
    moves_weights: bool = False
    first_changes: tuple[float, ...] = ()
    summed: int | None = None
    compares_layer: bool = False
    raised: str = ""
    unchanged: tuple[str, ...] = ()
    inactive: tuple[str, str] | None = None
    frozen: tuple[str, ...] = ()
    of_one_element: tuple[str, str] | None = None
    input_growth: float | None = None
