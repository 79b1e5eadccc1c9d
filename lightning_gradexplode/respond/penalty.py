"""Terms that are added to the loss by their gradients: weight penalties, and a bound for recurrent matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_gradexplode import checks
from lightning_gradexplode.distributed.shard_layout import sharded_like
from lightning_gradexplode.measure.parameters import held_by, matches, plain_name
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.records.state import Stateful
from lightning_gradexplode.respond.base import Response, ResponseContext

When = Literal["always", "after-explosion"]


class _Penalty(Stateful, Response):
    """Base class of the penalties: the parameters that they apply to, and the steps at which they are active.

    Args:
        parameters: Name patterns (``fnmatch``) of the parameters.
        when: ``"always"``, or only from an explosion on.
        hold: Number of steps without a critical finding after which a penalty that an explosion started ends; 0 for
            never.
        cooldown: Number of steps from an explosion to the next response.
    """

    not_saved = ("_began_in_this_batch",)
    _since: int | None
    name: ClassVar[str]
    """Name of the scalar that is 1 while the penalty is active."""

    def __init__(self, parameters: Sequence[str], when: When, hold: int, cooldown: int) -> None:
        self.parameters = checks.patterns("parameters", parameters)
        self.when = checks.choice("when", when, ("always", "after-explosion"))
        self.is_remedy = when != "always"
        self.hold = checks.count("hold", hold)
        self.cooldown = checks.count("cooldown", cooldown)
        self._reset()

    def _reset(self) -> None:
        self._since = None
        self._began_in_this_batch = False
        self._calm = 0

    def started(self, run: ResponseContext) -> None:
        """Begin a fit."""
        self._reset()

    @abstractmethod
    def gradient(self, parameter: Tensor) -> Tensor:
        """Return the gradient of the penalty with respect to one parameter, of the same shape, type and sharding."""

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Begin the penalty, or wait for its effect."""
        if self.when == "always":
            return False
        if self._since is None:
            self._since, self._began_in_this_batch = run.step, True
            run.log_action(self.name, f"{type(self).__name__} acts from here on because of {run.cause}")
        elif run.step >= self._since + self.cooldown and not self._began_in_this_batch:
            run.log_action(
                f"{self.name}-ends", f"{type(self).__name__} did not help in {self.cooldown} steps", once=True
            )
            return False
        elif not any(finding.sign.startswith("nonfinite") for finding in findings):
            return True
        run.hold_back_update()
        return self._began_in_this_batch

    def gradients_ready(self, run: ResponseContext, weight: float) -> None:
        """Add the penalty's gradient to those of the loss."""
        if self.when != "always" and self._since is None:
            return
        assert run.optimizer is not None
        owned = set(map(id, held_by(run.optimizer)))
        with torch.no_grad():
            for name, parameter in run.module.named_parameters():
                if id(parameter) in owned and parameter.requires_grad and matches(plain_name(name), self.parameters):
                    _add(parameter, self.gradient(parameter), weight)

    def batch_ended(self, run: ResponseContext) -> None:
        """End the penalty after enough steps without a critical finding."""
        self._began_in_this_batch = False  # a fit that Lightning 2.4 resumes counts the last step once more
        if self._since is None:
            return
        self._calm = self._calm + 1 if run.severity < Severity.CRITICAL else 0
        if self.hold and self._calm >= self.hold:
            run.log_action(f"{self.name}-ends", f"{type(self).__name__} ends after {self._calm} calm steps")
            self._reset()

    def scalars(self) -> dict[str, float]:
        """Return 1.0 while the penalty is active, else 0.0."""
        return {self.name: float(self.when == "always" or self._since is not None)}


class WeightPenalty(_Penalty):
    """Add ``l1 * sum(|w|) + l2 * sum(w**2)`` to the loss, as Keras' ``kernel_regularizer`` does.

    The gradient of the term is added to the complete gradients before they are measured and clipped. Training is
    therefore the same as with the term in the loss, also with accumulation, a gradient scaler and sharding. The
    loss that is logged, and that a line search evaluates, does not include it. ``gradexplode/weight_penalty`` is 1
    while the penalty is active, else 0. Unlike an optimizer's ``weight_decay`` it applies to parameters by
    name, and unlike that of AdamW it is scaled by the optimizer like a gradient.

    Args:
        l1: Weight of the sum of absolute values.
        l2: Weight of the sum of squares.
        parameters: Name patterns (``fnmatch``) of the parameters; the default excludes biases.
        when: ``"always"``, or ``"after-explosion"``: from the first critical finding on.
        hold: Number of steps without a critical finding after which a penalty that an explosion started ends; 0 for
            never.
        cooldown: Number of steps from an explosion to the next response.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A weight is negative or not finite, both are zero, or another argument is out of range.
    """

    name = "weight_penalty"

    def __init__(
        self,
        l1: float = 0.0,
        l2: float = 1e-4,
        parameters: Sequence[str] = ("*weight*",),
        when: When = "always",
        hold: int = 0,
        cooldown: int = 20,
    ) -> None:
        super().__init__(parameters, when, hold, cooldown)
        self.l1 = checks.number("l1", l1, zero=True)
        self.l2 = checks.number("l2", l2, zero=True)
        if not (self.l1 or self.l2):
            raise ValueError("l1 or l2 must be above 0, got l1=0 and l2=0")

    def gradient(self, parameter: Tensor) -> Tensor:
        """Return ``l1 * sign(w) + 2 * l2 * w``."""
        gradient = 2 * self.l2 * parameter
        return gradient.add_(parameter.sgn(), alpha=self.l1) if self.l1 else gradient


class RecurrentBound(_Penalty):
    """Keep the largest singular value of recurrent matrices near a bound, above which gradients can explode.

    With the bound gamma on the derivative of the activation (1 for tanh, 1/4 for sigmoid), a largest singular value
    above ``1 / gamma`` is necessary for gradients to explode through time (Pascanu, Mikolov and Bengio 2013, section
    2.1). ``weight * max(0, s - bound)**2`` is added to the loss, where ``s`` is the
    largest singular value of a matrix; stacked matrices, such as the gates of an LSTM, are treated separately.
    Matrices below the bound are not changed, so that long-term memory is not lost as with a plain L2
    penalty. ``gradexplode/recurrent_bound`` is 1 while the bound is active, else 0.

    Args:
        weight: Weight of the term.
        bound: Largest singular value without a penalty: 1.0 for tanh and rectified units, 4.0 for sigmoid ones.
        parameters: Name patterns (``fnmatch``) of the recurrent matrices; the default matches those of torch's
            own layers.
        when: ``"always"``, or ``"after-explosion"``: from the first critical finding on.
        hold: Number of steps without a critical finding after which a bound that an explosion started ends; 0 for
            never.
        cooldown: Number of steps from an explosion to the next response.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    name = "recurrent_bound"

    def __init__(
        self,
        weight: float = 1.0,
        bound: float = 1.0,
        parameters: Sequence[str] = ("*weight_hh*",),
        when: When = "always",
        hold: int = 0,
        cooldown: int = 20,
    ) -> None:
        super().__init__(parameters, when, hold, cooldown)
        self.weight = checks.number("weight", weight, zero=True)
        self.bound = checks.number("bound", bound, zero=True)

    def gradient(self, parameter: Tensor) -> Tensor:
        """Return ``2 * weight * (s - bound) * u v^T`` for each matrix above the bound."""
        whole: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        if whole.ndim != 2 or not bool(torch.isfinite(whole).all()):
            return torch.zeros_like(parameter)
        rows, columns = whole.shape
        blocks = whole.view(-1, columns, columns) if rows % columns == 0 else whole[None]
        left, values, right = torch.linalg.svd(blocks.float(), full_matrices=False)
        excess = (values[:, 0] - self.bound).clamp(min=0)
        outer = left[:, :, :1] * right[:, :1, :]
        gradient = (2 * self.weight * excess[:, None, None] * outer).reshape(rows, columns).to(whole.dtype)
        return sharded_like(gradient, parameter)


def _add(parameter: nn.Parameter, gradient: Tensor, weight: float) -> None:
    if parameter.grad is None:
        parameter.grad = gradient * weight
    elif parameter.grad.layout is torch.strided:
        parameter.grad.add_(gradient, alpha=weight)
    else:  # sparse and dense gradients add up to a dense one
        parameter.grad = gradient.mul_(weight).add_(parameter.grad)
