"""Gradients that are close to zero, or exactly zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, FloatArray, ModuleGradients, Severity, StepRecord

BoolArray = npt.NDArray[np.bool_]

_NOTHING = 1e-12
"""Ratio to another gradient below which a gradient counts as zero."""


class VanishingGradient(Detector):
    """The gradients are close to zero: the opposite of an explosion, never CRITICAL.

    The product of gradient norm and weight norm is compared with the size of the loss: to first order, a change of the
    weights by their own norm would change the loss by less than `limit` times its size. Unlike a limit of the gradient
    norm, this applies to a loss of any scale, and excludes a loss that has converged to zero, whose gradients
    shrink more slowly than the loss. The limit is the precision of float32.

    Args:
        limit: Change of the loss, relative to its size, below which gradients count as vanished.
        patience: Number of consecutive steps.
    """

    sign = "vanishing-gradient"
    reads = ("loss", "grad_norm")

    def __init__(self, limit: float = 1e-7, patience: int = 20) -> None:
        self.limit = limit
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with its loss."""
        norm, loss = record.grad_norm, record.loss
        assert norm is not None
        assert loss is not None
        change = norm * self.baselines(record).weights.norm
        self._streak = self._streak + 1 if 0 < change < self.limit * abs(loss) < math.inf else 0
        if self._streak < self.patience:
            return None
        message = (
            f"the gradient norm is {norm:.3g}: weights that changed by as much as they are large would change the loss "
            f"by {change:.3g}, of {loss:.3g}"
        )
        return self.finding(record, Severity.WARNING, change / abs(loss), self.limit, message)


class ZeroGradient(Detector):
    """All or most gradients are exactly zero, so that steps do not change the weights.

    WARNING if all parameters, or `share` of those that had other gradients before, have gradients of exactly zero at
    `patience` consecutive steps while the loss is not zero. Causes are rectified units that are never active, a
    loss that is detached from the network, and a loss function that ignores all targets. A parameter whose gradient is
    zero from the start may be frozen or unused. It counts only if all gradients but one are zero (that of the last
    bias, after units that are never active) and the loss does not decrease for `futile` steps. INFO if some gradients
    are not zero, and the loss is a tenth of a unit below its start at any of the last `patience` steps, since experts
    that are never selected look the same. Parameters whose gradient is zero intermittently, such as those of
    sparse experts, count only after three times their longest period of zeros so far.

    Also a WARNING if the gradient becomes zero at a module at the first step, so that the first module of the network
    receives none, and receives none at any of the next `patience` steps: units are saturated, or rectified units never
    active, from the start. A layer that starts at zero, such as the second half of a low-rank adapter, passes
    gradients on from the second step; a frozen or unused layer has no gradient at its outputs.

    Args:
        share: Share of the parameters.
        patience: Number of consecutive steps.
        futile: Number of consecutive steps without a lower loss after which parameters count that never had a gradient.
    """

    sign = "zero-gradient"
    reads = ("loss", "grad_norm")

    _never: list[int] | None

    def __init__(self, share: float = 0.5, patience: int = 20, futile: int = 100) -> None:
        self.share = share
        self.patience = patience
        self.futile = futile
        self._futile_for = 0
        self._never = None
        self._streaks: list[int] = []
        self._longest: list[int] = []
        self._blocked_at: str | None = None
        self._blocked_for = 0
        self._first_module = ""

    def check(self, record: StepRecord) -> Finding | None:
        """Count the steps at which each parameter's gradient is zero."""
        baselines = self.baselines(record)
        norms = record.per_parameter.get("grad_norm")
        if norms is None:
            return None
        if self._is_blocked(record, norms):
            message = (
                f"no gradient passes {self._blocked_at}: that of {self._first_module}, the first module, has been zero "
                f"for {self._blocked_for} steps, since the start"
            )
            return self.finding(record, Severity.WARNING, 0.0, _NOTHING, message, self._blocked_at)
        none_is_zero = bool(norms.all())
        if none_is_zero or record.loss == 0:
            if self._streaks:
                self._count(np.ones(len(norms), dtype=bool))
            self._never = [] if none_is_zero else self._never
            return None
        count = len(norms)
        self._futile_for = 0 if baselines.loss_rise < -0.1 else self._futile_for + 1
        never = range(count) if self._never is None else self._never
        self._never = [place for place in never if place < count and norms[place] == 0]
        self._count(norms != 0)
        both = zip(self._streaks, self._longest, strict=True)
        zero = [place for place, (streak, longest) in enumerate(both) if streak >= max(self.patience, 3 * longest)]
        is_stalled = self._futile_for >= self.futile and len(zero) == count - 1 > 1
        if len(zero) < count and not is_stalled:
            zero = sorted(set(zero) - set(self._never))
        if not zero or len(zero) < self.share * count:
            return None
        where = None if len(zero) == count else record.parameters[zero[0]]
        which = f"all {count}" if where is None else f"{len(zero)} of {count}"
        message = f"the gradients of {which} parameters have been exactly zero for {self.patience} steps or more"
        learns = where is not None and self._futile_for < self.patience
        severity = Severity.INFO if learns else Severity.WARNING
        return self.finding(record, severity, len(zero) / count, self.share, message, where)

    def _is_blocked(self, record: StepRecord, norms: FloatArray) -> bool:
        """Return whether the first module has had almost no gradient since the first step, because of a later one."""
        if self._blocked_at is None and (self._never is not None or record.module_gradients is None):
            return False
        if self._blocked_at is None and record.module_gradients is not None:
            self._blocked_at, self._first_module = _blocked_at(record.module_gradients, record.parameters)
        prefix = f"{self._first_module}."
        own = [place for place, name in enumerate(record.parameters) if name.startswith(prefix)]
        if not own or self._blocked_at is None or norms[own].max() > _NOTHING * norms.max():
            self._blocked_at = None
            return False
        self._blocked_for += 1
        return self._blocked_for >= self.patience

    def _count(self, is_nonzero: BoolArray) -> None:
        """Count the consecutive steps at which each parameter's gradient is zero, and record the highest count."""
        if len(self._streaks) != len(is_nonzero):
            self._streaks, self._longest = [0] * len(is_nonzero), [0] * len(is_nonzero)
        for place, has_gradient in enumerate(is_nonzero.tolist()):
            if has_gradient:
                self._longest[place] = max(self._longest[place], self._streaks[place])
                self._streaks[place] = 0
            else:
                self._streaks[place] += 1


def _blocked_at(modules: ModuleGradients, parameters: Sequence[str]) -> tuple[str | None, str]:
    """Return the module at which the gradient becomes zero in the backward pass, or None, and the first module.

    It is the first module whose outputs have a gradient, if it has no parameters, such as an activation; or the module
    before it, if its inputs have a gradient as well. The inputs of a module that come from the data alone have none.
    """
    outputs, inputs = modules.output_norm, modules.input_norm
    with_gradient = np.flatnonzero(outputs > _NOTHING * np.nanmax(outputs, initial=0.0))
    if not len(with_gradient) or with_gradient[0] == 0:
        return None, ""
    place = int(with_gradient[0])
    has_weights = any(name.startswith(f"{modules.modules[place]}.") for name in parameters)
    if has_weights and not inputs[place] > 0:
        return None, ""
    return modules.modules[place - 1 if has_weights else place], modules.modules[0]
