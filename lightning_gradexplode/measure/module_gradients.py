"""Error gradients of modules: norms of the gradients at the inputs and outputs of the modules without children.

A hook reads a gradient in the backward pass and returns nothing, so that autograd goes on with the same tensors: losses
and weights stay bit-identical. It is registered on a module's input before the forward call and on its output right
after, because an in-place operation may change either later. Forward calls are observed by torch's hooks for all
modules, so that nothing is stored on the user's modules, which can be copied and pickled meanwhile.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle, unserializable_hook

from lightning_gradexplode.distributed.process_group import ProcessGroup
from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.measure.graph_capture import is_captured
from lightning_gradexplode.measure.module_profile import FIELDS, ModuleCall, profile_of, sums_of_calls
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.measure.recurrent import time_dimension
from lightning_gradexplode.records import ModuleGradients
from lightning_gradexplode.records.log import logger

MAX_CALLS = 512
"""Calls of one module that are measured in a pass; further ones are not."""


class ModuleGradientProbe:
    """Measures the error gradients of modules in the batches for which it is attached.

    It is switched off, with one warning, where modules are compiled or scripted, and after a failure of its own. What
    the transforms of ``torch.func`` compute, and gradients of several outputs at once, is not measured.

    Args:
        network: Its modules without children are measured, by their positional inputs and their outputs.
        world: The processes of the run; the measurements are combined over all of them.
        is_compiled: Whether the network is called through ``torch.compile``.
    """

    def __init__(self, network: nn.Module, world: ProcessGroup, is_compiled: bool = False) -> None:
        leaves = ((name, module) for name, module in network.named_modules() if name and _is_leaf(module))
        self._modules = {plain_name(name): module for name, module in leaves}
        self._names = {id(module): name for name, module in self._modules.items()}
        self._world = world
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles)
        self._calls: dict[str, list[ModuleCall]] = {}
        self._running: dict[str, ModuleCall] = {}
        self._pass_has_ended = False
        self._threshold: float | Tensor = 1.0
        self._is_enabled = True
        if reason := "the model is compiled" if is_compiled else _reason_against(network):
            self._switch_off(reason)

    def attach(self, scale: Tensor | None) -> None:
        """Measure the coming forward and backward passes.

        Args:
            scale: The AMP scale of the loss, None without one.
        """
        self.detach()
        if self._is_enabled:
            self._threshold = 1.0 if scale is None else scale.detach().clone()
            self._handles += [
                register_module_forward_pre_hook(_without_reference(self._before_call)),
                register_module_forward_hook(_without_reference(self._after_call)),
            ]

    def detach(self) -> None:
        """Stop measuring, and discard what was measured."""
        _remove(self._handles)
        self._calls, self._running, self._pass_has_ended = {}, {}, False

    def pass_ended(self) -> None:
        """Replace what was measured by what the next backward pass has, if there is one before `take`."""
        self._pass_has_ended = True

    def take(self) -> ModuleGradients | None:
        """Return what was measured since `attach` or the last `take`, with one collective of several processes.

        Returns:
            None if no module had a gradient.
        """
        names = tuple(self._modules)
        sums = np.zeros((FIELDS, len(names)))
        try:
            sums = sums_of_calls(names, self._calls, self._threshold)
        except Exception as error:
            self._switch_off(f"a measurement failed ({error!r})")
        self._calls, self._running = {}, {}
        if self._world.size > 1:
            sums = self._world.gather(sums.reshape(-1)).sum(axis=0).reshape(sums.shape)
        return profile_of(self._modules, sums)

    # Hooks.

    def _before_call(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = self._names.get(id(module))
        if name is None or not self._is_measuring():
            return
        # A reentrant checkpoint calls without gradients first, and again in the order of the backward pass.
        calls = self._calls.setdefault(name, [])
        if not torch.is_grad_enabled() or len(calls) >= MAX_CALLS:
            return
        call = self._running[name] = ModuleCall()
        calls.append(call)
        for tensor in _tensors(inputs):
            self._hook(tensor, call.measure_input)
        time = time_dimension(module)
        if time is not None and inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() == 3:
            self._hook(inputs[0], lambda gradient: call.measure_times(gradient, time))

    def _after_call(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = self._running.pop(self._names.get(id(module), ""), None)
        if call is None or not self._is_measuring():
            return
        for tensor in _tensors(output):
            if tensor.dim():  # a loss is no layer
                self._hook(tensor, lambda gradient: call.measure_output(gradient, self._threshold))

    def _hook(self, tensor: Tensor, measure: Callable[[Tensor], None]) -> None:
        if tensor.requires_grad and not tensor.is_leaf and is_plain(tensor) and not is_transformed(tensor):

            def hook(gradient: Tensor | None) -> None:
                if gradient is None:  # a function of the user's own has returned none
                    return
                if self._is_measuring() and not is_transformed(gradient):
                    if self._pass_has_ended:
                        self._drop_measured_calls()
                    with torch.no_grad():
                        measure(gradient.detach())

            tensor.register_hook(unserializable_hook(self._guarded(hook)))  # type: ignore[no-untyped-call]

    def _is_measuring(self) -> bool:
        return bool(self._handles) and not is_captured()

    def _drop_measured_calls(self) -> None:
        self._pass_has_ended = False
        for calls in self._calls.values():
            calls[:] = [call for call in calls if not call.tensors]

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Wrap a hook so that no failure of it ends the forward or backward pass."""

        def guarded(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                self._switch_off(f"a hook failed ({error!r})")

        return guarded

    def _switch_off(self, reason: str) -> None:
        self.detach()
        if self._is_enabled:
            self._is_enabled = False
            logger.warning("gradexplode: error gradients of modules (backward-gain) are not measured: %s", reason)


def _without_reference(hook: Any) -> Callable[..., None]:
    """Wrap a method of a probe so that torch, which holds hooks for all modules, does not keep the probe alive."""
    reference = weakref.WeakMethod(hook)

    def wrapped(*args: Any) -> None:
        if torch.compiler.is_compiling():  # first, since the compiler follows what is called here
            return
        if (bound := reference()) is not None:
            bound.__self__._guarded(bound)(*args)

    return wrapped


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and not isinstance(module, torch.jit.ScriptModule)


def _reason_against(network: nn.Module) -> str | None:
    if getattr(network, "_compiler_ctx", None) is not None:
        return "the LightningModule is compiled"
    for name, module in network.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return f"{plain_name(name) or 'the module'} is compiled"
    return None


def is_transformed(tensor: Tensor) -> bool:
    """Return whether a tensor belongs to a transform of ``torch.func``, and cannot be read after it."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _tensors(nested: Any) -> Iterator[Tensor]:
    """List the tensors in nested tuples, lists and dictionaries."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (Mapping, tuple, list)):
        for value in nested.values() if isinstance(nested, Mapping) else nested:
            yield from _tensors(value)
