"""What a detector is: a rule over the records of one optimizer's steps that finds one symptom."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning_gradexplode.records import Finding, Severity, StepRecord


class Detector(ABC):
    """Base class of all detectors: set `sign` and `reads`, and write `check`.

    A detector is asked once a step, as soon as all that it reads is known: the loss and the gradients before the
    optimizer steps, the weights and their change after it, at the steps at which they are measured. Each optimizer
    has a copy of its own.

    Attributes with a leading underscore are the detector's state and go through checkpoints: numbers, strings, lists,
    dictionaries, or objects with ``state_dict`` and ``load_state_dict`` of their own.

    Example:
        >>> class LossAboveHundred(Detector):
        ...     sign = "loss-above-hundred"
        ...     reads = ("loss",)
        ...
        ...     def check(self, record):
        ...         if record.loss > 100:
        ...             return self.finding(record, Severity.WARNING, record.loss, 100, "the loss is above 100")
        >>> LossAboveHundred().check(StepRecord(step=7, loss=123.0)).value
        123.0
    """

    sign: ClassVar[str]
    """Name of the symptom."""
    reads: ClassVar[tuple[str, ...]]
    """Fields of `StepRecord` that have to be known; `check` never sees a None in them."""

    blames_growth: ClassVar[bool] = False
    """Let a finding without a place name the parameter whose gradient norm has risen most over its usual level."""

    @abstractmethod
    def check(self, record: StepRecord) -> Finding | None:
        """Judge one step, and remember of it what later steps are judged by.

        Args:
            record: The step. A value in it may be NaN or infinite: never let one into the detector's memory.

        Returns:
            A finding for each step at which the symptom shows, else None; telling people once is the caller's business.
        """

    def measured(self, record: StepRecord) -> None:
        """Note what was measured of a step once it is over, for the judgement of later ones; by default nothing.

        Args:
            record: The step; what was not measured of it is None.
        """

    def finding(
        self,
        record: StepRecord,
        severity: Severity,
        value: float,
        limit: float,
        message: str,
        where: str | None = None,
    ) -> Finding:
        """Build a finding of this detector's sign."""
        return Finding(record.step, self.sign, severity, where, float(value), float(limit), message)

    def state_dict(self) -> dict[str, Any]:
        """Give the detector's memory in plain values."""
        return {name: _plain(value) for name, value in vars(self).items() if name.startswith("_")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, value in state.items():
            current = getattr(self, name)
            if hasattr(current, "load_state_dict"):
                current.load_state_dict(value)
            else:
                setattr(self, name, value)


def _plain(value: Any) -> Any:
    """Give an object's state, or a copy of a plain value, so that later steps do not change what was saved."""
    return value.state_dict() if hasattr(value, "state_dict") else copy.deepcopy(value)
