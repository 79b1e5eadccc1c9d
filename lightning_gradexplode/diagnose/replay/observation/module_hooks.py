"""Hooks on the modules of a copy: which module runs, in which order, and how large outputs and error gradients are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.observation.finiteness import plain
from lightning_gradexplode.diagnose.replay.observation.observer import Observer
from lightning_gradexplode.diagnose.replay.observation.operation_calls import flat
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import Activation

_FLAT = {"Tanh": 0.97, "Softsign": 0.97, "Hardtanh": 0.999}
"""From this absolute value on an output is in the flat part of the activation."""

_FLAT_SIGMOIDS = ("Sigmoid", "Hardsigmoid")
_RECTIFIERS = ("ReLU", "ReLU6")


@dataclass(slots=True, eq=False)
class _Module:
    kind: str
    is_leaf: bool
    has_weights: bool
    rms: list[Tensor] = field(default_factory=list)
    largest: Tensor | None = None
    saturated: list[Tensor] = field(default_factory=list)
    gradients: list[tuple[int, Tensor]] = field(default_factory=list)
    calls: int = 0


class ModuleHooks:
    """Records the modules of a copy as they run.

    Args:
        copy: The copy; the hooks stay on it.
        observer: What observes the step; it is kept informed of the module that runs.
    """

    def __init__(self, copy: nn.Module, observer: Observer) -> None:
        self._observer = observer
        self._modules: dict[str, _Module] = {}
        self._order: list[str] = []
        self._fields_read: set[str] = set()
        for name, module in copy.named_modules():
            name = plain_name(f"{name}.").removesuffix(".")
            self._modules[name] = _Module(
                type(module).__name__,
                is_leaf=not any(True for _ in module.children()),
                has_weights=any(True for _ in module.parameters(recurse=False)),
            )
            # A scripted module refuses these methods of its own, but runs the hooks where Python calls it.
            nn.Module.register_forward_pre_hook(module, self._before(name))
            nn.Module.register_forward_hook(module, self._after(name), always_call=True)

    @property
    def execution_order(self) -> tuple[str, ...]:
        """Names of the modules in the order of their first execution."""
        return tuple(self._order)

    def reaches_layers(self, field: str) -> bool | None:
        """Return whether non-finite values of a field of the batch reach a layer with weights; None if no such ran."""
        has_layers = any(one.has_weights and one.calls for one in self._modules.values())
        return field in self._fields_read if has_layers else None

    def activations(self) -> tuple[Activation, ...]:
        """Return what was recorded of the modules without children, in the order of execution."""
        return tuple(self._activation(name, self._modules[name]) for name in self._order if self._modules[name].rms)

    def _before(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any) -> None:
            if not self._modules[name].calls:
                self._order.append(name)
            self._modules[name].calls += 1
            if self._modules[name].has_weights:
                sources = [self._observer.origins.of(one).source for one in flat((inputs,))]
                self._fields_read.update(one.name for one in sources if one is not None and one.kind == "batch")
            self._observer.module_stack.append((name, self._modules[name].kind))

        return note

    def _after(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._observer.module_stack:
                self._observer.module_stack.pop()
            self._observer.paused = True
            try:
                self._measure(self._modules[name], output)
            finally:
                self._observer.paused = False

        return note

    def _measure(self, module: _Module, output: Any) -> None:
        tensors = flat(output.values() if isinstance(output, dict) else (output,))
        tensor = next((one for one in tensors if one.is_floating_point()), None)
        values = None if tensor is None else plain(tensor)
        if tensor is None or values is None or not module.is_leaf:
            return
        values = values.double() if values.device.type == "cpu" else values.float()
        module.rms.append(values.square().mean().sqrt())
        largest = values.abs().max()
        module.largest = largest if module.largest is None else torch.maximum(module.largest, largest)
        share = _saturated(module.kind, values)
        if share is not None:
            module.saturated.append(share)
        if tensor.requires_grad:
            call = module.calls
            tensor.register_hook(lambda gradient: self._gradient(module, call, gradient))  # type: ignore[no-untyped-call]

    def _gradient(self, module: _Module, call: int, gradient: Tensor) -> None:
        self._observer.paused = True
        try:
            values = plain(gradient)
            if values is not None:
                module.gradients.append((call, torch.linalg.vector_norm(values, dtype=_wide(values))))
        finally:
            self._observer.paused = False

    @staticmethod
    def _activation(name: str, module: _Module) -> Activation:
        gradients = [(call, float(norm)) for call, norm in module.gradients]
        shares = [float(one) for one in module.saturated]
        return Activation(
            module=name,
            kind=module.kind,
            rms=float(module.rms[-1]),
            largest=float("nan" if module.largest is None else module.largest),
            saturated=sum(shares) / len(shares) if shares else None,
            gradient_norm=max(gradients)[1] if gradients else None,
            calls=module.calls,
            first_rms=float(module.rms[0]),
            first_gradient_norm=min(gradients)[1] if gradients else None,
        )


def _saturated(kind: str, values: Tensor) -> Tensor | None:
    if kind in _FLAT:
        return (values.abs() >= _FLAT[kind]).double().mean() if values.device.type == "cpu" else None
    if kind in _FLAT_SIGMOIDS:
        return ((values - 0.5).abs() >= 0.47).float().mean()
    return (values == 0).float().mean() if kind in _RECTIFIERS else None


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.device.type == "cpu" else torch.float32
