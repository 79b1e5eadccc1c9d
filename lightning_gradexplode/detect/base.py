"""Base class of detectors: a rule over the records of one optimizer's steps that finds one symptom."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from lightning_gradexplode.detect.baselines import Baselines
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.records.state import Stateful


class Detector(Stateful, ABC):
    """Base class of detectors: set `sign` and `reads`, and implement `check`.

    `check` is called once per step, as soon as all fields in `reads` are known: those of loss and gradients before the
    optimizer's step, those of weights and their change after it, at the steps at which they are measured. Each
    optimizer has its own copy.

    Attributes with a leading underscore are the detector's state and are saved in checkpoints: numbers, strings, lists,
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

    locates_growth: ClassVar[bool] = False
    """Whether a finding without `where` is completed with the parameter whose gradient norm has risen most."""

    shared: Baselines | None = None
    """The baselines that a `DetectorSet` updates for all of its detectors."""

    @abstractmethod
    def check(self, record: StepRecord) -> Finding | None:
        """Return a finding if the step shows the symptom, and record what later steps are compared with.

        Args:
            record: The step. A value in it may be NaN or infinite: never store one in the detector's state.

        Returns:
            A finding for each step at which the symptom shows, else None. The engine reports it once per incident.
        """

    def baselines(self, record: StepRecord) -> Baselines:
        """Return the baselines of the run, updated with the current step.

        Args:
            record: The step; a detector outside of a `DetectorSet` updates its own baselines with it.
        """
        if self.shared is not None:
            return self.shared
        own: Baselines = vars(self).setdefault("_baselines", Baselines())
        own.update_loss(record)
        own.update_weights(record)
        return own

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
