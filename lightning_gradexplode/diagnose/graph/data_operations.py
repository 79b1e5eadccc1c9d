"""Operations without a gradient, by which a training loop computes data and targets from its batches.

An autograd graph holds none of them, and the loop of a user's own cannot be run again. They are observed while the loop
runs, in the batches after one in which such a tensor was not finite, until one of them returns such a tensor again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from lightning_gradexplode.diagnose.faults.operations import FILLS
from lightning_gradexplode.diagnose.graph.function_calls import name_of_function, overwritten
from lightning_gradexplode.diagnose.replay.observation.finiteness import (
    all_finite,
    first_place,
    has_nan,
    kind_of,
    nonfinite_mask,
    operand,
    storage_bytes,
    storage_key,
)
from lightning_gradexplode.diagnose.replay.observation.observer import LARGE, OPERANDS
from lightning_gradexplode.diagnose.replay.observation.operation_calls import flat
from lightning_gradexplode.diagnose.replay.observation.source_line import calling_line
from lightning_gradexplode.records import Operation

SECONDS = 3.0
"""Time that all observations of a run may take."""

_OTHER_CODE = ("lightning_gradexplode.", "torch.optim.", "torch.autograd.", "torch.amp.")
"""Modules whose calls compute no data."""

_FILLING = {*FILLS, "full_like", "new_full", "setitem", "fill_diagonal", "nan_to_num"}
"""Functions that fill in values and compute none."""


_WITH_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""Modules that compute in another way within a function mode, when they are evaluated without gradients."""


def is_the_same_within_a_mode(module: nn.Module) -> bool:
    """Return whether all results of a network are the same, bit by bit, within a function mode."""
    return not any(isinstance(one, _WITH_FAST_PATH) for one in module.modules())


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor without a gradient among the arguments of an operation with one.

    Args:
        shape: Its shape.
        operation: The operation that has made it non-finite.
    """

    shape: tuple[int, ...]
    operation: Operation


class DataOperations(TorchFunctionMode):
    """Observes the operations without a gradient of this thread, from `begin` to `end`.

    A function mode sees the calls of torch's functions, and changes no result: each function gets its own arguments.

    Args:
        seconds: Time that the observation may take.

    Attributes:
        seconds: Time that is left.
        entries: Non-finite tensors that operations with a gradient have taken, and the operations that made them.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__()
        self.seconds = seconds
        self.entries: list[Entry] = []
        # By storage; a weak reference keeps its address from being used again.
        self._made: dict[int, tuple[StorageWeakRef, Operation]] = {}
        self._process = os.getpid()
        self._is_on = False

    def begin(self) -> bool:
        """Begin to observe; not within a mode of the user's own, or once functions are compiled or time is up.

        Returns:
            Whether operations are observed from now on.
        """
        if self.seconds <= 0 or _entered() or _is_any_compiled():
            return False
        self.entries.clear()
        self._made.clear()
        self._is_on, self._thread = True, threading.get_ident()
        _push_mode(self)  # type: ignore[no-untyped-call]
        return True

    def end(self) -> None:
        """Stop to observe, and leave modes that were entered meanwhile as they are."""
        self._is_on = False
        if threading.get_ident() != self._thread or self not in _entered():
            return
        later = []
        while (mode := _pop_mode()) is not self:  # type: ignore[no-untyped-call]
            later.append(mode)
        for mode in reversed(later):
            _push_mode(mode)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function, and check its result."""
        kwargs = kwargs or {}
        if not self._observes():
            return func(*args, **kwargs)
        begin = time.perf_counter()
        name, before = name_of_function(func), None
        try:
            before = overwritten(func, args, kwargs)
        except Exception:  # such as a tensor of another library that has no elements
            name = ""
        self.seconds -= time.perf_counter() - begin
        result = func(*args, **kwargs)
        begin = time.perf_counter()
        if name and name != "get":
            try:
                self._check(name, args, kwargs, result, before)
            except Exception:
                self._made.clear()
        self.seconds -= time.perf_counter() - begin
        return result

    def _observes(self) -> bool:
        """Return whether the function that is called may compute data, and looking at its result is harmless."""
        if not self._is_on or self.seconds <= 0 or os.getpid() != self._process:
            return False
        if torch._C._is_tracing() or torch._C._functorch.maybe_current_level() is not None or _is_captured():
            return False
        return not str(sys._getframe(2).f_globals.get("__name__", "")).startswith(_OTHER_CODE)

    def _check(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, before: dict[int, Tensor] | None
    ) -> None:
        """Record results of a function that are not finite, or that have a gradient and take tensors that are not."""
        inputs = flat((*args, *kwargs.values()))
        for output in flat((args[0] if name == "setitem" else result,)):
            if not output.is_floating_point() or output.is_meta:
                continue
            if output.requires_grad:
                self._enter(inputs)
            elif output.numel() <= LARGE:
                self._check_data(name, inputs, (*args, *kwargs.values()), output, before)

    def _enter(self, inputs: Iterable[Tensor]) -> None:
        """Note which arguments of an operation with a gradient were made non-finite."""
        for one in inputs if self._made else ():
            operation = None if one.requires_grad else self._maker(one)
            if operation is not None:
                self.entries.append(Entry(tuple(one.shape), operation))

    def _check_data(
        self,
        name: str,
        inputs: Sequence[Tensor],
        given: Iterable[Any],
        output: Tensor,
        before: dict[int, Tensor] | None,
    ) -> None:
        """Record the operation that has made a result non-finite, unless its values came from outside."""
        key = storage_key(output)
        if key is None or (before is None and any(storage_key(one) == key for one in inputs)):
            return  # a view, which shares the origin of what it shows
        if all_finite(output):
            if before is None or output.numel() * output.element_size() >= storage_bytes(output):
                self._made.pop(key, None)
            return
        values = [one if before is None else before.get(id(one), one) for one in inputs]
        bad = [(one, value) for one, value in zip(inputs, values, strict=True) if not all_finite(value)]
        makers = [maker for one, _ in bad if (maker := self._maker(one)) is not None]
        # NaN of infinities, such as inf - inf, is made here; a mask may hold the infinities.
        made_nan = has_nan(output)
        if makers:
            operation = makers[0]
        elif not inputs or name in _FILLING or (bad and not (made_nan and not any(has_nan(one) for _, one in bad))):
            return  # the values came from outside, or were filled in
        else:
            operation = _operation(name, values, given, output)
        self._made[key] = _weak(output), operation

    def _maker(self, tensor: Tensor) -> Operation | None:
        """Return the operation that has made a tensor non-finite, None if it is finite or came from outside."""
        key = storage_key(tensor)
        kept = None if key is None else self._made.get(key)
        return None if kept is None else kept[1]


def _is_captured() -> bool:
    """Return whether a CUDA graph is being captured, during which no value may be read."""
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return is_in_use and torch.cuda.is_current_stream_capturing()


def _is_any_compiled() -> bool:
    """Return whether ``torch.compile`` was used, which would compile its functions again within a mode."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("frames"))


def _entered() -> list[TorchFunctionMode]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _weak(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _operation(name: str, inputs: Sequence[Tensor], given: Iterable[Any], output: Tensor) -> Operation:
    mask = nonfinite_mask(output)
    place, line = first_place(mask), calling_line()
    numbers = [float(one) for one in given if isinstance(one, (int, float)) and not isinstance(one, bool)]
    return Operation(
        name=name,
        phase="forward",
        result=kind_of(output),
        file=line.file if line else None,
        line=line.line if line else None,
        code=line.text if line else None,
        expression=line.expression if line else None,
        function=line.function if line else None,
        inputs=tuple(operand(one, place, output.shape) for one in inputs[:OPERANDS]),
        scalars=tuple(numbers),
        element_count=1 if mask is None else int(mask.sum()),
    )
