"""A clip policy, with its results checked and its failures contained."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeVar

from torch.optim import Optimizer

from lightning_gradexplode.clip.base import Algorithm, ClipPolicy
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, StepRecord

logger = logging.getLogger("lightning_gradexplode")

T = TypeVar("T")


class GuardedPolicy(ClipPolicy):
    """Another policy whose thresholds are checked, and which is switched off by itself if it raises.

    A threshold that is not a positive finite number clips nothing at that step. Both are logged once, with the name of
    the policy. The records that it receives cannot be changed by it.

    Args:
        policy: The policy.
    """

    def __init__(self, policy: ClipPolicy) -> None:
        self.policy = policy
        self.is_off = False
        self._is_own = type(policy).__module__.startswith("lightning_gradexplode.")
        self._logged_threshold = False

    @property
    def name(self) -> str:
        """The policy's class."""
        return type(self.policy).__qualname__

    @property
    def algorithm(self) -> Algorithm:  # type: ignore[override]
        """The policy's algorithm."""
        return self.policy.algorithm

    def begin(self, optimizer: Optimizer) -> None:
        """Begin a fit."""
        self._call(self.policy.begin, None, optimizer)

    def threshold(self, record: StepRecord) -> float | None:
        """Return the policy's threshold, None where it is unusable."""
        given = record if self._is_own else _read_only(record)
        found: Any = self._call(self.policy.threshold, None, given)
        if found is None:
            return None
        value = float(found) if isinstance(found, Real) and not isinstance(found, bool) else math.nan
        if math.isfinite(value) and value > 0:
            return value
        if not self._logged_threshold:
            self._logged_threshold = True
            logger.warning(
                "gradexplode at step %d: the threshold of %s must be a positive finite number or None, got %.100r; "
                "nothing is clipped at such steps",
                record.step,
                self.name,
                found,
            )
        return None

    def clip_tensors(self, parameters: ParameterSet, norms: FloatArray, scale: float, remember: bool) -> bool:
        """Clip with the policy."""
        return bool(self._call(self.policy.clip_tensors, False, parameters, norms, scale, remember))

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare the optimizer's step."""
        self._call(self.policy.step_begins, None, optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what was done for the step, also after the policy was switched off."""
        self._call(self.policy.step_ended, None, optimizer, always=True)

    def scalars(self) -> dict[str, float]:
        """Return what the policy logs."""
        return self._call(self.policy.scalars, dict[str, float]())

    def state_dict(self) -> dict[str, Any]:
        """Return the policy's state with its name."""
        return {"kind": self.name, "state": self._call(self.policy.state_dict, dict[str, Any]())}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the policy's state if it is of the same kind of policy.

        Returns:
            Names of what starts fresh.
        """
        if state.get("kind", self.name) != self.name:
            return [self.name]
        try:
            fresh = self.policy.load_state_dict(state.get("state", state))
        except Exception:
            return [self.name]
        return [f"{self.name}.{part}" for part in fresh or ()]

    def _call(self, method: Callable[..., T], otherwise: T, *arguments: Any, always: bool = False) -> T:
        if self.is_off and not always:
            return otherwise
        try:
            return method(*arguments)
        except Exception as error:
            if self.is_off:
                return otherwise
            self.is_off = True
            logger.warning(
                "gradexplode: the clip policy %s is switched off for this fit, nothing is clipped: %s raised %s: %s",
                self.name,
                method.__name__,
                type(error).__name__,
                error,
            )
            logger.debug("gradexplode: traceback of the clip policy", exc_info=True)
            return otherwise


def _read_only(record: StepRecord) -> StepRecord:
    """Return a record whose arrays and mappings cannot be written to."""
    arrays = {name: array.view() for name, array in record.per_parameter.items()}
    for array in arrays.values():
        array.setflags(write=False)
    return replace(record, per_parameter=MappingProxyType(arrays))
