"""The record of an optimizer step that is not finished: its fields, set as they become known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np

from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import Finding, FloatArray, Histogram, ModuleGradients, Norms, StepRecord

_NAMES = {"step": "number", "optimizer": "optimizer_index", "parameters": "parameters.names"}
_fields_of = attrgetter(*(_NAMES.get(field.name, field.name) for field in fields(StepRecord)))
"""The values of a step for the fields of `StepRecord`, in their order."""


class UnfinishedRecord:
    """The fields of a `StepRecord`, which `record` creates from those that are known so far.

    Attributes:
        number: The step that other metrics are logged at.
        optimizer_index: Index of the optimizer.
        parameters: Its parameters.
    """

    number: int
    optimizer_index: int
    parameters: ParameterSet
    learning_rate: float | None
    scale_adapts: bool
    micro_batches: int
    backward_passes: int | None

    # Mappings are read-only: a record is handed to users' own parts.
    batch_idx = 0
    rank: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    grad_norm_clipped: float | None = None
    grad_max: float | None = None
    nonfinite_count: int | None = None
    clip_val: float | None = None
    clip_algorithm: str | None = None
    clip_rate: float | None = None
    weight_norm: float | None = None
    weight_norm_before: float | None = None
    weight_count: int | None = None
    update_ratio: float | None = None
    nonfinite_weights: int | None = None
    loss_scale: float | None = None
    per_parameter: Mapping[str, FloatArray] = MappingProxyType({})
    histograms: Mapping[str, Mapping[str, Histogram]] = MappingProxyType({})
    module_gradients: ModuleGradients | None = None
    severity = 0
    skipped_steps = 0
    skipped_by: str | None = None
    update_taken = False
    epoch = 0
    logged: Mapping[str, float] = MappingProxyType({})
    responses: Mapping[str, float] = MappingProxyType({})

    def record(self) -> StepRecord:
        """Return what is known of the step as a frozen record, whose arrays cannot be written to."""
        return StepRecord(*_fields_of(self))

    def set(self, **values: Any) -> None:
        """Set fields of the record; mappings have to be read-only, since it is handed to users' own parts."""
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
        self.grad_norm, self.nonfinite_count = norms.total, norms.nonfinite_total
        if self.nonfinite_count is None:
            self.set_per_parameter(grad_norm=norms.each)
        else:
            self.set_per_parameter(grad_norm=norms.each, nonfinite_count=norms.nonfinite)

    def set_maxima(self, maxima: FloatArray) -> None:
        """Set the largest absolute value of each gradient."""
        self.grad_max = float(np.max(maxima, initial=0.0))  # NaN counts as the largest
        self.set_per_parameter(grad_max=maxima)

    def set_unclipped(self) -> None:
        """Set the norms after clipping to those before it."""
        self.set_clipped_norms(self.grad_norm, self.grad_norm_each)

    def set_clipped_norms(self, total: float | None, each: FloatArray) -> None:
        """Set the gradients' norms after clipping."""
        self.grad_norm_clipped = total
        self.set_per_parameter(grad_norm_clipped=each)

    def set_weights(self, norms: Norms) -> None:
        """Set the norms of the weights after the update."""
        self.weight_norm = norms.total
        self.nonfinite_weights = int((norms.nonfinite > 0).sum())
        self.set_per_parameter(weight_norm=norms.each)

    def set_weights_before(self, norms: Norms) -> None:
        """Set the norms of the weights before the update."""
        self.weight_norm_before = norms.total
        self.weight_count = sum(tensor.numel() for tensor in self.parameters.tensors)
        self.set_per_parameter(weight_norm_before=norms.each)

    def set_per_parameter(self, **arrays: FloatArray) -> None:
        """Set quantities of each parameter, arrays of shape ``(parameters,)`` that become read-only."""
        for quantity, each in arrays.items():
            each.setflags(write=False)
            arrays[quantity] = each.view()  # which cannot be made writeable again
        self.per_parameter = MappingProxyType({**self.per_parameter, **arrays})
