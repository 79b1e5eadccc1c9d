"""The measurements of one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from lightning_gradexplode.records.arrays import FloatArray
from lightning_gradexplode.records.histogram import Histogram
from lightning_gradexplode.records.html import table
from lightning_gradexplode.records.module_gradients import ModuleGradients

LEFT_OUT = "the training loop"
"""`StepRecord.skipped_by` of a step that the training loop itself has left out."""

MAX_LOGGED = 32
"""Largest number of scalars of the user's module in a record, and in a history."""

USUAL_UPDATE_RATIO = (1e-4, 1e-2)
"""The usual range of the update ratio: a decade on each side of 0.001."""

_nothing: Callable[[], Mapping[str, Any]] = partial(MappingProxyType, {})
"""Returns an empty mapping that is read-only: a record is handed to users' own parts."""


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """The measurements of one optimizer step. A field is None if it was not measured, or not yet.

    Args:
        step: The step at which other metrics are logged too: number of batches with an optimizer step before it.
        batch_idx: Index of the batch in its epoch; of the one whose loss is not finite, if there is one.
        rank: Rank of the process whose loss is not finite, if there are several processes; else None.
        optimizer: Index of the optimizer in ``trainer.optimizers``.
        parameters: Names of the optimizer's parameters. All arrays in `per_parameter` have this order.
        loss: The training loss, unscaled, averaged over the micro-batches and processes of the step.
        grad_norm: L2 norm of all gradients that the optimizer receives, unscaled, before any clipping.
        grad_norm_clipped: The same after clipping.
        grad_max: Largest absolute value of any gradient element.
        nonfinite_count: Number of NaN and infinite gradient elements.
        clip_val: The clip value of the step, None without clipping.
        clip_algorithm: ``"norm"``, ``"value"``, or ``"tensor"`` if each tensor has its own threshold.
        clip_rate: Share of the last 100 steps at which clipping changed the gradients.
        weight_norm: L2 norm of the weights after the step.
        weight_norm_before: The same before the step, at a run's first step and if the change was measured.
        weight_count: Number of weights, if their norm before the step is known.
        update_ratio: L2 norm of the weight change divided by the L2 norm of the weights before the step.
        nonfinite_weights: Number of parameters with NaN or infinite elements after the step.
        loss_scale: The scale of the AMP gradient scaler, None without one.
        scale_adapts: Whether that scaler reduces its scale and skips the step if gradients overflow.
        per_parameter: Arrays of shape ``(len(parameters),)`` by name of the quantity: ``grad_norm``, ``grad_max``,
            ``nonfinite_count``, ``share_above_one``, ``grad_norm_clipped``, ``weight_norm``, ``weight_norm_before``,
            ``update_ratio``.
        histograms: Histograms by quantity (``gradient``, ``update``, ``weight``), then by parameter name.
        module_gradients: Error gradients of modules, at the first step and at steps with histograms.
        severity: Worst severity of the findings of the step, 0 for none.
        skipped_steps: Number of updates skipped so far.
        skipped_by: The response that skipped the update and the finding that it acted on, `LEFT_OUT` where the training
            loop itself has left the step out, None if it was not skipped.
        update_taken: Whether the optimizer has stepped. False if the update was skipped, also by a gradient scaler.
        learning_rate: The largest learning rate of the optimizer's parameter groups.
        epoch: Index of the epoch.
        micro_batches: Number of micro-batches whose gradients the training loop accumulates for the step.
        backward_passes: Number of backward passes since the gradients were cleared, None if unknown.
        logged: Scalars that the user's module logged in this batch, by name, at most 32.
        responses: Further scalars of responses and clip policies, by name.
    """

    step: int
    batch_idx: int = 0
    rank: int | None = None
    optimizer: int = 0
    parameters: tuple[str, ...] = ()
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
    scale_adapts: bool = False
    per_parameter: Mapping[str, FloatArray] = field(default_factory=_nothing)
    histograms: Mapping[str, Mapping[str, Histogram]] = field(default_factory=_nothing)
    module_gradients: ModuleGradients | None = None
    severity: int = 0
    skipped_steps: int = 0
    skipped_by: str | None = None
    update_taken: bool | None = None
    learning_rate: float | None = None
    epoch: int = 0
    micro_batches: int = 1
    backward_passes: int | None = None
    logged: Mapping[str, float] = field(default_factory=_nothing)
    responses: Mapping[str, float] = field(default_factory=_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the arguments for pickling and copying; read-only mappings become dictionaries."""
        return StepRecord, tuple(_as_dict(getattr(self, field.name)) for field in fields(self))

    def _repr_html_(self) -> str:
        measured = [
            (field.name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (bool, int, float, str)) and field.name != "step"
        ]
        return table(f"Step {self.step}", measured)

    def largest(self, quantity: str) -> str | None:
        """Return the name of the parameter with the largest value of a quantity of `per_parameter`; NaN is largest."""
        values = self.per_parameter.get(quantity)
        if values is None or len(values) == 0:
            return None
        return self.parameters[int(np.argmax(np.where(np.isnan(values), np.inf, values)))]

    def last_nonfinite(self, quantity: str) -> str | None:
        """Return the name of the last parameter whose value of a quantity of `per_parameter` is NaN or infinite."""
        values = self.per_parameter.get(quantity)
        if values is None or np.isfinite(values).all():
            return None
        return self.parameters[int(np.flatnonzero(~np.isfinite(values))[-1])]

    def first_nonfinite(self, quantity: str) -> str | None:
        """Return the name of the first parameter whose value of a quantity of `per_parameter` is NaN or infinite."""
        values = self.per_parameter.get(quantity)
        if values is None or np.isfinite(values).all():
            return None
        return self.parameters[int(np.argmax(~np.isfinite(values)))]


def _as_dict(value: Any) -> Any:
    return {name: _as_dict(one) for name, one in value.items()} if isinstance(value, Mapping) else value
