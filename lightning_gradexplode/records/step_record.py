"""What was measured of one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lightning_gradexplode.records.histogram import Histogram
from lightning_gradexplode.records.html import table
from lightning_gradexplode.records.module_gradients import FloatArray, ModuleGradients


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """What was measured of one optimizer step. A field is None where it was not measured (yet).

    Args:
        step: The step that other metrics are logged at: batches that stepped, from 0.
        batch_idx: Index of the batch in its epoch; of the one with the loss that is not finite, if there is one.
        rank: The process whose loss is not finite, in a run of several; else None.
        optimizer: Index of the optimizer in ``trainer.optimizers``.
        parameters: Names of the optimizer's parameters; every array in `per_parameter` is in this order.
        loss: The training loss, unscaled, its mean over the micro-batches and processes of the step.
        grad_norm: L2 norm of all gradients that the optimizer is handed, unscaled, before any clipping.
        grad_norm_clipped: The same after clipping.
        grad_max: Largest absolute value of any gradient element.
        nonfinite_count: Number of NaN and infinite gradient elements.
        clip_val: The clip value in force at this step, None without clipping.
        clip_algorithm: ``"norm"``, ``"value"``, or ``"tensor"`` where each tensor has a threshold of its own.
        clip_rate: Share of recent steps at which clipping changed the gradients.
        weight_norm: L2 norm of the weights after the step.
        weight_norm_before: The same before the step, of a run's first step and where the change was measured.
        weight_count: Number of weights, where their norm before the step is known.
        update_ratio: L2 norm of the weights' change over the L2 norm of the weights before the step.
        nonfinite_weights: Number of parameters with NaN or infinite elements after the step.
        loss_scale: The scale of the AMP gradient scaler, None without one.
        scale_adapts: True if that scaler lowers its scale when gradients overflow, and skips the step.
        per_parameter: Arrays of shape ``(len(parameters),)`` by the name of the quantity: ``grad_norm``, ``grad_max``,
            ``nonfinite_count``, ``share_above_one``, ``grad_norm_clipped``, ``weight_norm``, ``weight_norm_before``,
            ``update_ratio``.
        histograms: By quantity (``gradient``, ``update``, ``weight``), then by parameter name.
        module_gradients: Error gradients of modules, of the steps at which histograms are due, and of the first one.
        severity: Worst severity seen at this step, 0 for none.
        skipped_steps: Number of updates that were held back so far.
        skipped_by: Why this step's update was held back: the response and the finding it acted on. None if it was not.
        update_taken: Whether the optimizer has stepped; False for an update that was held back or that a gradient
            scaler left out.
        learning_rate: The largest learning rate of the optimizer's parameter groups.
        epoch: Index of the epoch.
        micro_batches: Number of micro-batches whose gradients the training loop adds up for the step.
        backward_passes: Number of backward passes since the gradients were cleared.
        logged: Scalars that the user's module logged in this batch, by name, at most 32.
        responses: What else the responses to explosions log, by name.
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
    per_parameter: Mapping[str, FloatArray] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[str, Histogram]] = field(default_factory=dict)
    module_gradients: ModuleGradients | None = None
    severity: int = 0
    skipped_steps: int = 0
    skipped_by: str | None = None
    update_taken: bool | None = None
    learning_rate: float | None = None
    epoch: int = 0
    micro_batches: int = 1
    backward_passes: int | None = None
    logged: Mapping[str, float] = field(default_factory=dict)
    responses: Mapping[str, float] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickling and copying need; read-only mappings become dictionaries."""
        return StepRecord, tuple(_as_dict(getattr(self, field.name)) for field in fields(self))

    def _repr_html_(self) -> str:
        measured = [
            (field.name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (bool, int, float, str)) and field.name != "step"
        ]
        return table(f"Step {self.step}", measured)

    def largest(self, quantity: str) -> str | None:
        """Name the parameter in which a quantity of `per_parameter` is largest (NaN counts as larger than all)."""
        values = self.per_parameter.get(quantity)
        if values is None or len(values) == 0:
            return None
        return self.parameters[int(np.argmax(np.where(np.isnan(values), np.inf, values)))]

    def last_nonfinite(self, quantity: str) -> str | None:
        """Name the last parameter whose value of a quantity of `per_parameter` is NaN or infinite."""
        values = self.per_parameter.get(quantity)
        if values is None or np.isfinite(values).all():
            return None
        return self.parameters[int(np.flatnonzero(~np.isfinite(values))[-1])]

    def first_nonfinite(self, quantity: str) -> str | None:
        """Name the first parameter whose value of a quantity of `per_parameter` is NaN or infinite."""
        values = self.per_parameter.get(quantity)
        if values is None or np.isfinite(values).all():
            return None
        return self.parameters[int(np.argmax(~np.isfinite(values)))]


def _as_dict(value: Any) -> Any:
    return {name: _as_dict(one) for name, one in value.items()} if isinstance(value, Mapping) else value
