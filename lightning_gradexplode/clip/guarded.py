"""A clip policy, with its results checked and its failures contained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.clip.base import ALGORITHMS, Algorithm, ClipPolicy
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.part_guard import PartGuard
from lightning_gradexplode.records import FloatArray, StepRecord
from lightning_gradexplode.records.log import logger


class GuardedPolicy:
    """A policy whose thresholds are checked, and which is switched off if it raises.

    A threshold that is not a positive finite number clips nothing at that step. Both are logged once, with the name of
    the policy.

    Args:
        policy: The policy.
    """

    def __init__(self, policy: ClipPolicy) -> None:
        self.policy = policy
        self._guard = PartGuard(policy, "clip policy", "nothing is clipped")
        self._logged_threshold = False

    @property
    def is_off(self) -> bool:
        """Whether the policy is switched off."""
        return self._guard.is_off

    def switch_off(self, reason: str) -> None:
        """Switch the policy off, and log it, unless it is off."""
        self._guard.switch_off(reason)

    @property
    def name(self) -> str:
        """The policy's class."""
        return self._guard.name

    @property
    def algorithm(self) -> Algorithm:
        """The policy's algorithm."""
        return self._guard.call(self._algorithm, otherwise="norm")

    def _algorithm(self) -> Algorithm:
        found: Any = self.policy.algorithm
        algorithm: Algorithm = checks.choice("algorithm", found, ALGORITHMS)
        return algorithm

    def begin(self, optimizer: Optimizer) -> None:
        """Begin a fit."""
        self._guard.call(self.policy.begin, optimizer, otherwise=None)

    def threshold(self, record: StepRecord) -> float | None:
        """Return the policy's threshold, None where it is unusable."""
        found: Any = self._guard.call(self.policy.threshold, record, otherwise=None)
        if found is None:
            return None
        value = _number(found)
        if math.isfinite(value) and value > 0:
            return value
        if not self._logged_threshold:
            self._logged_threshold = True
            logger.warning(
                "gradexplode at step %d: the threshold of %s must be a positive finite number or None, got %s; "
                "nothing is clipped at such steps",
                record.step,
                self.name,
                checks.shown(found),
            )
        return None

    def known_threshold(self) -> float | None:
        """Return the policy's clip value of the coming step, None where it is not known or unusable."""
        found: Any = self._guard.call(self.policy.known_threshold, otherwise=None)
        value = math.nan if found is None else _number(found)
        return value if math.isfinite(value) and value > 0 else None

    def threshold_on_device(self, norm: Tensor) -> Tensor | None:
        """Return the policy's clip value as the device computes it, None where it does not."""
        found: Any = self._guard.call(self.policy.threshold_on_device, norm, otherwise=None)
        return found.reshape(()) if isinstance(found, Tensor) and found.numel() == 1 else None

    def clip_tensors(self, parameters: ParameterSet, norms: FloatArray, scale: float, remember: bool) -> bool:
        """Clip with the policy."""
        return self._guard.call(self._clip_tensors, parameters, norms, scale, remember, otherwise=False)

    def _clip_tensors(self, *arguments: Any) -> bool:
        return bool(self.policy.clip_tensors(*arguments))

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare the optimizer's step."""
        self._guard.call(self.policy.step_begins, optimizer, otherwise=None)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what was done for the step, also after the policy was switched off."""
        self._guard.call(self.policy.step_ended, optimizer, otherwise=None, always=True)

    def scalars(self) -> dict[str, float]:
        """Return what the policy logs."""
        return self._guard.call(self._scalars, otherwise=dict[str, float]())

    def _scalars(self) -> dict[str, float]:
        return checks.scalars(self.policy.scalars())

    def notice(self) -> str | None:
        """Return what the policy reports about the coming step."""
        found: Any = self._guard.call(self.policy.notice, otherwise=None)
        return None if found is None else str(found)

    def largest_step_size(self) -> float | None:
        """Return the largest learning rate of the last steps, None where the policy does not know it."""
        found: Any = self._guard.call(self.policy.largest_step_size, otherwise=None)
        size = math.nan if found is None else _number(found)
        return size if math.isfinite(size) and size > 0 else None

    def limit_step_size(self, size: float) -> None:
        """Limit the learning rate of later steps to a size."""
        self._guard.call(self.policy.limit_step_size, size, otherwise=None)

    def state_dict(self) -> dict[str, Any]:
        """Return the policy's state with its name."""
        return {"kind": self.name, "state": self._guard.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the policy's state if it is of the same kind of policy.

        Returns:
            Names of the parts whose state is not restored.
        """
        if state.get("kind", self.name) != self.name:
            return [self.name]
        return self._guard.load_state_dict(state.get("state", state))


def _number(value: Any) -> float:
    """Return a value as a float, NaN if it is not a number that a float can represent."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except (OverflowError, ValueError):
        return math.nan
