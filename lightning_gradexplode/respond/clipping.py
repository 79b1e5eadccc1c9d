"""Which threshold the coming step's gradients are clipped by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from lightning_gradexplode.detect.history import RobustWindow
from lightning_gradexplode.records import StepRecord

Algorithm = Literal["norm", "value"]


class ClipPolicy(ABC):
    """Base class of clipping rules: write `threshold`.

    Each optimizer has a copy of its own. The threshold is written to ``trainer.gradient_clip_val``, and Lightning
    does the clipping, at the same step.

    Example:
        >>> class HalfOfTheNorm(ClipPolicy):
        ...     def threshold(self, record):
        ...         return record.grad_norm / 2
    """

    algorithm: Algorithm = "norm"
    """Clip all gradients together by their L2 norm, or each element by its value."""

    @abstractmethod
    def threshold(self, record: StepRecord) -> float | None:
        """Give the clip value for the step whose gradients were just measured.

        Args:
            record: The step; its ``grad_norm`` may be NaN or infinite.

        Returns:
            A positive finite number, or None to clip nothing at this step.
        """

    def state_dict(self) -> dict[str, Any]:
        """Give what has to survive a checkpoint, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (a constant remembers nothing)
        """Take back what `state_dict` gave."""


class ConstantClip(ClipPolicy):
    """The same threshold at every step: the article's fourth remedy.

    Args:
        value: The threshold. Usual are 1.0 for the norm (Keras' ``clipnorm``) and 0.5 for the value (``clipvalue``).
        algorithm: ``"norm"`` scales all gradients together so that their L2 norm is at most the threshold; ``"value"``
            cuts each element to it.

    Raises:
        ValueError: The value is not positive and finite, or the algorithm is unknown.
        TypeError: The value is not a number.
    """

    def __init__(self, value: float = 1.0, algorithm: Algorithm = "norm") -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"clip got {value!r}; a clip value is a number")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"clip got {value!r}; a clip value is positive and finite")
        if algorithm not in ("norm", "value"):
            raise ValueError(f"algorithm got {algorithm!r}; it takes 'norm' or 'value'")
        self.value = float(value)
        self.algorithm = algorithm

    def threshold(self, record: StepRecord) -> float:
        """Give the constant."""
        return self.value


_CREEP = 1.1
"""How much above the usual norm a norm is counted at most; medians are not moved by it while the norms are steady."""


class AutoPolicy(ClipPolicy):
    """The monitor's own rule (``clip="auto"``): a small multiple of the usual norm, learned from the run itself.

    The usual norm is the median of the last `window` norms, each counted as at most a tenth more than the usual one:
    an explosion raises the threshold that holds it by a tenth in half a window at most. Pascanu, Mikolov and Bengio
    2013 (section 3.2) found thresholds from half to ten times the average norm to work. Until `start` norms are
    known, the smallest one so far stands for the usual one, for a run may explode from its first steps on.

    Args:
        factor: Threshold over usual norm.
        window: Number of norms remembered.
        start: Number of norms from which on their median is used.
    """

    def __init__(self, factor: float = 2.0, window: int = 100, start: int = 20) -> None:
        self.factor = factor
        self.start = start
        self._norms = RobustWindow(window)

    def threshold(self, record: StepRecord) -> float | None:
        """Give the threshold, and remember the step's norm as it will be after clipping."""
        norm = record.grad_norm
        if norm is None or not (math.isfinite(norm) and norm > 0):
            return self.factor * self._usual() if len(self._norms) else None
        if not len(self._norms):
            self._norms.add(norm)
        usual = self._usual()
        self._norms.add(min(norm, usual * _CREEP))
        return self.factor * usual

    def _usual(self) -> float:
        return self._norms.median if len(self._norms) >= self.start else self._norms.quantile(0.0)

    def state_dict(self) -> dict[str, Any]:
        """Give the remembered norms."""
        return {"norms": self._norms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._norms.load_state_dict(state["norms"])


def clip_policy(clip: float | str | ClipPolicy | None) -> ClipPolicy | None:
    """Build the policy that the monitor's argument ``clip`` stands for.

    Raises:
        ValueError: A number that is not positive and finite, or an unknown name.
        TypeError: Anything else.
    """
    if clip is None or isinstance(clip, ClipPolicy):
        return clip
    if isinstance(clip, str):
        if clip != "auto":
            raise ValueError(f"clip={clip!r} is unknown; it takes a number, 'auto', a ClipPolicy or None")
        return AutoPolicy()
    if isinstance(clip, bool) or not isinstance(clip, (int, float)):
        raise TypeError(f"clip got {clip!r}; it takes a number, 'auto', a ClipPolicy or None")
    return ConstantClip(clip)
