"""From the gradients of single module calls to the profile of a pass, combined over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradexplode.measure.module_facts import role_of
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.measure.recurrent import singular_value
from lightning_gradexplode.records import FloatArray, ModuleGradients
from lightning_gradexplode.records.module_gradients import MANY_CALLS, growth_rate

FIELDS = 11
"""Number of quantities that are added up over processes."""


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One forward call of a module: what was measured of its gradients, on the device.

    Args:
        outputs: Norm of the gradient at each output.
        inputs: Norm of the gradient at each input.
        above: Number of elements of 1.0 and more at each output.
        times: Norms of the gradient at the input sequence of a recurrent module, each of shape ``(time steps,)``.
        elements: Number of elements at all outputs.
    """

    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    above: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    elements: int = 0

    @property
    def tensors(self) -> list[Tensor]:
        """All that is to be read from the device."""
        return [*self.outputs, *self.inputs, *self.above, *self.times]

    def measure_input(self, gradient: Tensor) -> None:
        """Measure the gradient at an input."""
        self.inputs.append(_norm(gradient))

    def measure_output(self, gradient: Tensor, threshold: float | Tensor) -> None:
        """Measure the gradient at an output; the threshold is 1.0 times the AMP scale."""
        limit = threshold.to(gradient.device) if isinstance(threshold, Tensor) else threshold
        self.outputs.append(_norm(gradient))
        self.above.append((~(_dense(gradient).abs() < limit)).sum())
        self.elements += gradient.numel()

    def measure_times(self, gradient: Tensor, dimension: int) -> None:
        """Measure the gradient at an input sequence, by time step."""
        self.times.append(_norm(gradient, [other for other in range(gradient.dim()) if other != dimension]))


def sums_of_calls(
    names: Sequence[str], calls: Mapping[str, Sequence[ModuleCall]], threshold: float | Tensor
) -> FloatArray:
    """Add up what this process measured, with one read from the device.

    Args:
        names: Names of all modules.
        calls: Calls of some of them, in the order of their first call.
        threshold: The AMP scale, 1.0 without one.

    Returns:
        Shape ``(FIELDS, modules)``: whether the module was measured, its place in the order of calls, squared norms at
        outputs and inputs, logarithms of gains and their number, elements above 1.0 and the number of all elements,
        logarithms of growth rates in time and their number, and the number of calls.
    """
    measured = {name: [call for call in those if call.outputs] for name, those in calls.items()}
    tensors = [tensor for those in measured.values() for call in those for tensor in call.tensors]
    scale_of_loss = threshold if isinstance(threshold, Tensor) else torch.tensor(threshold, device="cpu")
    scale, *numbers = read([scale_of_loss, *tensors])
    parts = np.split(np.array(numbers), np.cumsum([tensor.numel() for tensor in tensors]))
    values = {id(tensor): part for tensor, part in zip(tensors, parts, strict=False)}

    def of(tensors: list[Tensor]) -> FloatArray:
        return np.concatenate([np.zeros(0), *(values[id(tensor)] for tensor in tensors)])

    sums = np.zeros((FIELDS, len(names)))
    for order, (name, those) in enumerate((name, those) for name, those in measured.items() if those):
        outputs = np.array([math.hypot(*of(call.outputs)) for call in those]) / scale
        inputs = np.array([math.hypot(*of(call.inputs)) for call in those]) / scale
        usable = np.isfinite(inputs) & (inputs > 0) & np.isfinite(outputs) & (outputs > 0)
        gains = np.log(inputs[usable]) - np.log(outputs[usable])
        rates = [growth_rate(of(call.times)) for call in those if call.times]
        rates += [growth_rate(outputs)] if len(those) >= MANY_CALLS else []
        growths = [math.log(rate) if rate else -math.inf for rate in rates if not math.isnan(rate)]
        sums[:, names.index(name)] = (
            1,
            order,
            np.square(outputs).sum(),
            np.square(inputs).sum(),
            gains.sum(),
            len(gains),
            sum(of(call.above).sum() for call in those),
            sum(call.elements for call in those),
            sum(growths),
            len(growths),
            len(those),
        )
    return sums


def profile_of(modules: Mapping[str, nn.Module], sums: FloatArray) -> ModuleGradients | None:
    """Build the profile of a pass from the sums of all processes; None if no module was measured."""
    places = np.flatnonzero(sums[0])
    if not len(places):
        return None
    places = places[np.argsort(sums[1, places] / sums[0, places], kind="stable")]
    seen, _, output, input_, gain, gains, above, elements, growth, growths, calls = sums[:, places]
    names = tuple(np.array(list(modules), dtype=object)[places])
    with np.errstate(divide="ignore", invalid="ignore"):
        return ModuleGradients(
            modules=names,
            calls=calls / seen,
            output_norm=np.sqrt(output),
            input_norm=np.where(input_ > 0, np.sqrt(input_), np.nan),
            gain=np.exp(gain / gains),
            share_above_one=above / elements,
            growth_in_time=np.exp(growth / growths),
            singular_value=np.array([singular_value(modules[name]) for name in names]),
            normalizations=tuple(name for name in names if role_of(modules[name]) == "normalization"),
        )


def _norm(gradient: Tensor, dimensions: list[int] | None = None) -> Tensor:
    """Compute the L2 norm, in float32 at least, over some dimensions or all."""
    values = _dense(gradient)
    wide = torch.float64 if values.dtype is torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(values, dim=dimensions, dtype=wide)
    return norm


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.layout is not torch.strided else gradient
