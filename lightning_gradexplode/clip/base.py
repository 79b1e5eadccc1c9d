"""The base class of clip policies, and clipping to a constant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, StepRecord

Algorithm = Literal["norm", "value", "tensor"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


class ClipPolicy(ABC):
    """Base class of clip policies: implement `threshold`.

    Each optimizer has its own copy. In Lightning the threshold is written to ``trainer.gradient_clip_val``, and
    Lightning clips at the same step.

    Example:
        >>> class HalfOfTheNorm(ClipPolicy):
        ...     def threshold(self, record):
        ...         return record.grad_norm / 2
    """

    algorithm: Algorithm = "norm"
    """Clip all gradients together by their L2 norm, each element by its value, or each tensor by `clip_tensors`."""

    @abstractmethod
    def threshold(self, record: StepRecord) -> float | None:
        """Return the clip value of the step whose gradients were just measured.

        Args:
            record: The step; its ``grad_norm`` may be NaN or infinite.

        Returns:
            A positive finite number, or None to clip nothing at this step. Anything else clips nothing and is logged.
        """

    def known_threshold(self) -> float | None:
        """Return the clip value of the next step if it does not depend on the measurements of that step, else None.

        On an accelerator `threshold` waits for the measurements of the step. If this method returns a value, the step
        is clipped on the device without a wait, and `threshold` is called after the update.
        """
        return None

    def threshold_on_device(self, norm: Tensor) -> Tensor | None:
        """Return the clip value of the next step if the device can compute it from the norm of that step, else None.

        As with `known_threshold`, the step is then clipped on the device without a wait. `threshold`, which is called
        after the update, must return the same value. This method must not change the state.

        Args:
            norm: L2 norm of the gradients on their device, a tensor of one element, unscaled; may be NaN or infinite.

        Returns:
            A tensor of one element on the same device; infinity clips nothing.
        """
        return None

    def clip_tensors(self, parameters: ParameterSet, norms: FloatArray, scale: float, remember: bool) -> bool:
        """Clip gradients in place. Called instead of the training loop's clipping if `algorithm` is ``"tensor"``.

        Args:
            parameters: The optimizer's parameters.
            norms: L2 norm of the gradient of each parameter, shape ``(parameters,)``, unscaled, of all shards together.
            scale: Factor by which the gradients in memory are multiplied.
            remember: Whether to update the state: False for a further evaluation of a line search at the same step.

        Returns:
            Whether any gradient was changed.
        """
        raise NotImplementedError(f"{type(self).__name__} has algorithm 'tensor' and no clip_tensors")

    def begin(self, optimizer: Optimizer) -> None:
        """Begin a fit, with the optimizer whose gradients are clipped. Called once, before its first step."""

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare the optimizer's step. Called right before it, and with a closure before gradients are computed."""

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what was done to the optimizer for its step."""

    def scalars(self) -> dict[str, float]:
        """Return what is logged with each record, by name without ``gradexplode/``."""
        return {}

    def notice(self) -> str | None:
        """Return one sentence to log about how strongly the coming step is limited, None at most steps.

        Called after each `threshold`. It is logged on the main process, and shown in the report.
        """
        return None

    def largest_step_size(self) -> float | None:
        """Return the largest learning rate of the last steps, None if this policy does not change the rate."""
        return None

    def limit_step_size(self, size: float) -> None:
        """Limit the learning rate of later steps to a size, and start again from small steps.

        Called after a rollback, if `largest_step_size` returned a number before it.

        Args:
            size: A learning rate.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what later thresholds depend on, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Restore what `state_dict` returned."""


class ConstantClip(ClipPolicy):
    """The same threshold at every step.

    Args:
        value: The threshold. Common values are 1.0 for the norm (Keras' ``clipnorm``) and 0.5 for the value
            (``clipvalue``).
        algorithm: ``"norm"`` scales all gradients together so that their L2 norm is at most the threshold; ``"value"``
            clamps each element to the range from minus the threshold to the threshold.

    Raises:
        ValueError: The value is not positive and finite, or the algorithm is unknown.
        TypeError: The value is not a number.
    """

    def __init__(self, value: float = 1.0, algorithm: Algorithm = "norm") -> None:
        self.value = checks.number("clip", value)
        self.algorithm = checks.choice("algorithm", algorithm, ("norm", "value"))

    def threshold(self, record: StepRecord) -> float:
        """Return the constant."""
        return self.value

    def known_threshold(self) -> float | None:
        """Return the constant, unless a subclass has a threshold of its own."""
        return self.value if type(self).threshold is ConstantClip.threshold else None
