"""The record of an optimizer step that is not finished: its fields, set as they become known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import numpy as np

from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import Finding, FloatArray, Histogram, Norms, StepRecord

_FIELDS = frozenset(field.name for field in fields(StepRecord)) - {"step", "optimizer", "parameters"}


class UnfinishedRecord:
    """The fields of a `StepRecord` as attributes, set as they become known; `record` creates it from these.

    Listed here are only those that are read before the step is finished, with the values that they have until then.

    Attributes:
        number: The step that other metrics are logged at.
        state: The optimizer.
        parameters: Its parameters.
    """

    number: int
    state: OptimizerState
    parameters: ParameterSet

    batch_idx: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    grad_max: float | None = None
    clip_val: float | None = None
    clip_algorithm: str | None = None
    severity: int = 0
    skipped_by: str | None = None
    update_taken: bool
    per_parameter: Mapping[str, FloatArray] = MappingProxyType({})
    histograms: Mapping[str, Mapping[str, Histogram]] = MappingProxyType({})

    def record(self) -> StepRecord:
        """Return what is known of the step as a frozen record, whose arrays cannot be written to."""
        known = {name: value for name, value in vars(self).items() if name in _FIELDS}
        return StepRecord(self.number, optimizer=self.state.index, parameters=self.parameters.names, **known)

    def set(self, **values: Any) -> None:
        """Set fields of the record; mappings have to be read-only, since it is handed to users' own parts."""
        assert values.keys() <= _FIELDS
        vars(self).update(values)

    @property
    def grad_norm_each(self) -> FloatArray:
        """L2 norm of each gradient before clipping, shape ``(parameters,)``."""
        return self.per_parameter["grad_norm"]

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Raise the record's severity to that of the worst finding."""
        worst = max((int(finding.severity) for finding in findings), default=0)
        self.severity = max(self.severity, worst)

    def set_gradient_norms(self, norms: Norms) -> None:
        """Set the norms of the gradients, and the numbers of their elements that are not finite where counted."""
        count = norms.nonfinite_total
        self.set(grad_norm=norms.total, nonfinite_count=count)
        self.set_per_parameter(grad_norm=norms.each, **({} if count is None else {"nonfinite_count": norms.nonfinite}))

    def set_maxima(self, maxima: FloatArray) -> None:
        """Set the largest absolute value of each gradient."""
        self.grad_max = float(np.max(maxima, initial=0.0))  # NaN counts as the largest
        self.set_per_parameter(grad_max=maxima)

    def set_unclipped(self) -> None:
        """Set the norms after clipping to those before it."""
        self.set_clipped_norms(self.grad_norm, self.grad_norm_each)

    def set_clipped_norms(self, total: float | None, each: FloatArray) -> None:
        """Set the gradients' norms after clipping."""
        self.set(grad_norm_clipped=total)
        self.set_per_parameter(grad_norm_clipped=each)

    def set_weights(self, norms: Norms) -> None:
        """Set the norms of the weights after the update."""
        self.set(weight_norm=norms.total, nonfinite_weights=int((norms.nonfinite > 0).sum()))
        self.set_per_parameter(weight_norm=norms.each)

    def set_weights_before(self, norms: Norms) -> None:
        """Set the norms of the weights before the update."""
        count = sum(tensor.numel() for tensor in self.parameters.tensors)
        self.set(weight_norm_before=norms.total, weight_count=count)
        self.set_per_parameter(weight_norm_before=norms.each)

    def set_per_parameter(self, **arrays: FloatArray) -> None:
        """Set quantities of each parameter, arrays of shape ``(parameters,)`` that become read-only."""
        for quantity, each in arrays.items():
            each.setflags(write=False)
            arrays[quantity] = each.view()  # which cannot be made writeable again
        self.per_parameter = MappingProxyType({**self.per_parameter, **arrays})
