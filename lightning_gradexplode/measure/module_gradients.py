"""Error gradients of nodes: hooks on the modules without children, for one batch at a time.

A hook notes the norm of a gradient that passes by and gives nothing back, so that autograd goes on with the very same
tensors: losses and weights stay bit-identical. It is laid on a module's input before the module runs and on its output
right after, which is what autograd wants of tensors that are changed in place later on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradexplode.distributed.process_group import ProcessGroup
from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.measure.recurrent import singular_value, time_dimension
from lightning_gradexplode.records.module_gradients import MANY_CALLS, FloatArray, ModuleGradients, growth_rate

logger = logging.getLogger("lightning_gradexplode")

MOST_CALLS = 512
"""Of more calls of one module the first so many are measured."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call of a module: norms of the gradients that came by, as tensors that are not read yet."""

    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    above: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    elements: int = 0


class ModuleGradientProbe:
    """Measures the error gradients of a network's nodes at the batches for which it is attached.

    It stands down, with one line, where modules are compiled or scripted, and after a failure of its own.

    Args:
        network: Of its modules, those without children are watched.
        world: The processes of the run; what is measured is taken together over all of them.
    """

    def __init__(self, network: nn.Module, world: ProcessGroup) -> None:
        leaves = ((name, module) for name, module in network.named_modules() if name and _is_leaf(module))
        self._modules = {plain_name(name): module for name, module in leaves}
        self._names = tuple(self._modules)
        self._world = world
        self._handles: list[RemovableHandle] = []
        self._calls: dict[str, list[_Call]] = {}
        self._running: dict[str, _Call] = {}
        self._border: float | Tensor = 1.0
        self._attached = False
        self._works = True
        if reason := _reason_to_stand_down(network):
            self._stand_down(reason)

    def attach(self, scale: Tensor | None) -> None:
        """Watch the coming forward and backward passes.

        Args:
            scale: What AMP multiplies the loss by, None for nothing.
        """
        self.detach()
        if not self._works:
            return
        self._border = 1.0 if scale is None else scale.detach().clone()
        self._attached = True
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._before(name, module), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))

    def detach(self) -> None:
        """Watch no longer, and forget what was seen."""
        self._attached = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._calls, self._running = {}, {}

    def take(self) -> ModuleGradients | None:
        """Read what was seen since `attach` or the last `take`; in a run of several processes, on all of them.

        Returns:
            None if no module has seen a gradient.
        """
        sums = np.zeros((_FIELDS, len(self._names)))
        try:
            sums = self._sums()
        except Exception as error:
            self._stand_down(f"a measurement failed ({error!r})")
        self._calls, self._running = {}, {}
        return self._profile(_together(self._world, sums))

    # What the hooks do.

    def _before(self, name: str, module: nn.Module) -> Callable[..., None]:
        time = time_dimension(module)

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            calls = self._calls.setdefault(name, [])
            if not self._is_watching() or len(calls) >= MOST_CALLS:
                return
            call = self._running[name] = _Call()
            calls.append(call)
            for tensor in _tensors((args, kwargs)):
                self._hook(tensor, lambda gradient: call.inputs.append(_norm(gradient)))
            if time is not None and args and isinstance(args[0], Tensor) and args[0].dim() == 3:
                self._hook(args[0], lambda gradient: call.times.append(_norms_in_time(gradient, time)))

        return self._guarded(look)

    def _after(self, name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            call = self._running.pop(name, None)
            if call is None or not self._is_watching():
                return

            def note(gradient: Tensor) -> None:
                call.outputs.append(_norm(gradient))
                call.above.append(_count_at_least(gradient, self._border))
                call.elements += gradient.numel()

            for tensor in _tensors(output):
                if tensor.dim():  # a loss has no nodes
                    self._hook(tensor, note)

        return self._guarded(look)

    def _hook(self, tensor: Tensor, note: Callable[[Tensor], None]) -> None:
        if tensor.requires_grad and not tensor.is_leaf and is_plain(tensor) and tensor.is_floating_point():

            def look(gradient: Tensor) -> None:
                if self._attached:
                    with torch.no_grad():
                        note(gradient.detach())

            tensor.register_hook(self._guarded(look))  # type: ignore[no-untyped-call]

    def _is_watching(self) -> bool:
        return self._attached and torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def _guarded(self, look: Callable[..., None]) -> Callable[..., None]:
        """Let no failure reach the run: an error in a hook would end its backward pass."""

        def guarded(*args: Any) -> None:
            try:
                look(*args)
            except Exception as error:
                self._stand_down(f"a hook failed ({error!r})")

        return guarded

    def _stand_down(self, reason: str) -> None:
        self._attached = False
        if self._works:
            self._works = False
            logger.warning("gradexplode: error gradients of nodes (backward-gain) are not measured: %s", reason)

    # From what was seen to a profile.

    def _sums(self) -> FloatArray:
        """Add up what this process has seen, by quantity and module, so that processes can be added up."""
        seen = {name: [call for call in calls if call.outputs] for name, calls in self._calls.items()}
        pending = [tensor for calls in seen.values() for call in calls for tensor in _pending(call)]
        border = self._border if isinstance(self._border, Tensor) else torch.ones(())
        singles = [one for tensor in pending for one in (tensor.unbind() if tensor.dim() else (tensor,))]
        *values, scale = read([*singles, border]).tolist()
        numbers = iter(values)

        def next_of(tensors: list[Tensor]) -> list[float]:
            return [next(numbers) for tensor in tensors for _ in range(tensor.numel())]

        sums = np.zeros((_FIELDS, len(self._names)))
        places = {name: place for place, name in enumerate(self._names)}
        for order, (name, calls) in enumerate((name, calls) for name, calls in seen.items() if calls):
            outputs, inputs, growths, above = [], [], [], 0.0
            for call in calls:
                outputs.append(math.hypot(*next_of(call.outputs)) / scale)
                inputs.append(math.hypot(*next_of(call.inputs)) / scale)
                above += sum(next_of(call.above))
                growths.append(growth_rate(np.array(next_of(call.times))) if call.times else math.nan)
            if len(calls) >= MANY_CALLS:
                growths.append(growth_rate(np.array(outputs)))
            gains = _log_ratios(inputs, outputs)
            known = [math.log(growth) if growth else -math.inf for growth in growths if not math.isnan(growth)]
            of_module = {
                _SEEN: 1,
                _ORDER: order,
                _OUTPUT: sum(norm * norm for norm in outputs),
                _INPUT: sum(norm * norm for norm in inputs),
                _GAIN: sum(gains),
                _GAINS: len(gains),
                _ABOVE: above,
                _ELEMENTS: sum(call.elements for call in calls),
                _GROWTH: sum(known),
                _GROWTHS: len(known),
                _CALLS: len(calls),
            }
            sums[list(of_module), places[name]] = list(of_module.values())
        return sums

    def _profile(self, sums: FloatArray) -> ModuleGradients | None:
        places = np.flatnonzero(sums[_SEEN])
        if not len(places):
            return None
        places = places[np.argsort(sums[_ORDER, places] / sums[_SEEN, places], kind="stable")]
        chosen = sums[:, places]
        names = tuple(self._names[place] for place in places)
        with np.errstate(divide="ignore", invalid="ignore"):
            return ModuleGradients(
                modules=names,
                calls=chosen[_CALLS] / chosen[_SEEN],
                output_norm=np.sqrt(chosen[_OUTPUT]),
                input_norm=np.where(chosen[_INPUT] > 0, np.sqrt(chosen[_INPUT]), np.nan),
                gain=np.exp(chosen[_GAIN] / chosen[_GAINS]),
                share_above_one=chosen[_ABOVE] / chosen[_ELEMENTS],
                growth_in_time=np.exp(chosen[_GROWTH] / chosen[_GROWTHS]),
                singular_value=np.array([singular_value(self._modules[name]) for name in names]),
            )


_SEEN, _ORDER, _OUTPUT, _INPUT, _GAIN, _GAINS, _ABOVE, _ELEMENTS, _GROWTH, _GROWTHS, _CALLS = range(11)
_FIELDS = 11


def _together(world: ProcessGroup, sums: FloatArray) -> FloatArray:
    """Add up what all processes have seen."""
    if world.size == 1:
        return sums
    total: FloatArray = world.gather(sums.reshape(-1)).sum(axis=0).reshape(sums.shape)
    return total


def _pending(call: _Call) -> Iterator[Tensor]:
    """List a call's numbers in the order in which they are used up."""
    for tensors in (call.outputs, call.inputs, call.above, call.times):
        yield from tensors


def _log_ratios(inputs: list[float], outputs: list[float]) -> list[float]:
    """Give the logarithms of the gains of the calls whose gradients are both finite and not zero."""
    pairs = zip(inputs, outputs, strict=True)
    return [math.log(i) - math.log(o) for i, o in pairs if 0 < i < math.inf and 0 < o < math.inf]


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and not isinstance(module, torch.jit.ScriptModule)


def _reason_to_stand_down(network: nn.Module) -> str | None:
    if getattr(network, "_compiler_ctx", None) is not None:
        return "the LightningModule is compiled"
    for name, module in network.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return f"{plain_name(name) or 'the module'} is compiled"
    return None


def _tensors(nested: Any) -> Iterator[Tensor]:
    """List the tensors in nested tuples, lists and dictionaries."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from _tensors(value)


def _norm(gradient: Tensor) -> Tensor:
    """Give the L2 norm, in float32 at least."""
    values = _values(gradient)
    norm: Tensor = torch.linalg.vector_norm(values, dtype=_wide(values))
    return norm


def _norms_in_time(gradient: Tensor, time: int) -> Tensor:
    """Give the L2 norm of each time step's gradient."""
    values = _values(gradient)
    others = [dimension for dimension in range(values.dim()) if dimension != time]
    norms: Tensor = torch.linalg.vector_norm(values, dim=others, dtype=_wide(values))
    return norms


def _count_at_least(gradient: Tensor, border: float | Tensor) -> Tensor:
    values = _values(gradient)
    limit = border.to(values.device) if isinstance(border, Tensor) else border
    return (~(values.abs() < limit)).sum()


def _values(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.layout is not torch.strided else gradient


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype is torch.float64 else torch.float32
