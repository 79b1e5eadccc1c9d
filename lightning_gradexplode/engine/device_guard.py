"""Updates that are not finite, held back on an accelerator without a wait for it."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gradexplode.engine.accumulation import unscales_itself
from lightning_gradexplode.engine.step import Step


class DeviceGuard:
    """Passes a flag on the device to a fused optimizer, which leaves weights and its state as they are where it is set.

    Fused Adam, AdamW, SGD and Adagrad take the flag, ``found_inf``, from gradient scalers. Other optimizers have none:
    before their updates the host has to read whether the gradients are finite. So it has to where a scaler is in use
    that does not adapt, where the user's code may still replace the gradients, and during an incident.

    Args:
        may_change_gradients: Whether the user's own code may change gradients after they were measured.
    """

    def __init__(self, may_change_gradients: bool) -> None:
        self._may_change_gradients = may_change_gradients

    def accepts(self, step: Step) -> bool:
        """Return whether the update of a step is held back on the device if it is not finite."""
        if step.reading.has_scale:
            return step.reading.scale_adapts  # the scaler leaves the update out
        return not self._may_change_gradients and step.state.has_hooks and unscales_itself(step.state.optimizer)

    def arm(self, step: Step) -> None:
        """Set the flag for the coming update of a step."""
        if step.reading.has_scale:
            return
        reading, device = step.reading.gradients, step.parameters.tensors[0].device
        gathered = step.on_device.gathered_norms
        norms = reading.norms_on_device(device) if gathered is None else gathered
        optimizer: Any = step.state.optimizer
        optimizer.found_inf = (~torch.isfinite(norms)).any().to(device, torch.float32)
        step.on_device.is_guarded = True

    @staticmethod
    def disarm(step: Step) -> None:
        """Remove the flag after the update of a step, or where the optimizer was never called."""
        vars(step.state.optimizer).pop("found_inf", None)
