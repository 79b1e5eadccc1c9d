"""A dispatch mode that finds the first operation of a step that made a non-finite value out of finite ones.

Each operation with a non-finite result is an event, or inherits the event of one of its inputs. The event of a
non-finite loss or gradient is therefore the first operation at fault, and not a harmless infinity (a mask, the
logarithm of a zero that is not part of the sum).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.faults.operations import FILLS, SYMMETRIC_LOSSES
from lightning_gradexplode.diagnose.replay.observation.batch_rows import BatchRows
from lightning_gradexplode.diagnose.replay.observation.batch_shape import BatchShape
from lightning_gradexplode.diagnose.replay.observation.events import UNKNOWN, Event, Input, Origin, Origins, inherited
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
from lightning_gradexplode.diagnose.replay.observation.forward_operations import ForwardOperations, Module
from lightning_gradexplode.diagnose.replay.observation.guard import HALF, Guard
from lightning_gradexplode.diagnose.replay.observation.operation_calls import flat, is_view, name_of, read, written
from lightning_gradexplode.diagnose.replay.observation.source_line import SourceLine, calling_line
from lightning_gradexplode.records import LossTerm, Operation

EVENTS = 200
"""Largest number of events that are recorded with their operands."""

LOSS_TERMS = 32
"""Largest number of loss functions that are recorded."""

OPERANDS = 8
"""Largest number of inputs of an operation that are recorded."""

LARGE = 1 << 24
"""A tensor with more elements is not cloned before an operation overwrites it."""

_FILLS = {*FILLS, "full", "full_like", "new_full", "scalar_tensor", "tril", "triu"}
"""Operations that fill in values and compute none: their infinite elements are intended."""

GROWN = 1e8
"""Absolute value of a finite result above which later operations may overflow."""

JUST = 20
"""Number of operations between a test of a value and the exception that it leads to, such as those of its message."""

_EXPONENTIALS = {"cosh", "exp", "exp2", "expm1", "sinh", "special_exp2"}

_LOSSES = {
    "_ctc_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "huber_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss_forward",
    "nll_loss2d_forward",
    "nll_loss_forward",
    "smooth_l1_loss",
    "soft_margin_loss",
}
"""Operations that are recorded as loss functions."""

_DECOMPOSITIONS = ("linalg_", "_linalg_")
"""How the names of operations begin for which torch raises an exception after the operation, if it has failed."""

_UNINITIALIZED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "resize"}
"""Operations whose result holds whatever was in memory."""

Result = Literal["nan", "inf", "-inf", "large"]


class Observer(Guard):  # type: ignore[no-untyped-call]
    """Observes each operation of a step.

    Args:
        batch_shape: The sizes by which the rows of the batch are recognized.
        batch: The tensors of the batch.
        origins: The tensors that were not finite before the step.
        settings: The arguments of `Guard`.

    Attributes:
        module_stack: The modules that are running, kept by the hooks of the copy.
        origins: Where the values of each non-finite tensor come from.
        loss_terms: The loss functions of the forward pass.
        half_precision: Whether an operation computed in half precision.
        tested: The last tensor that is not finite, by no intention, and that the forward pass has compared, read, or
            passed to an operation that raised an exception.
        grown: The first exponential function of the forward pass whose finite result is beyond 1e8.
    """

    def __init__(self, batch_shape: BatchShape, batch: Iterable[Tensor], origins: Origins, **settings: Any) -> None:
        super().__init__(**settings)
        self.module_stack: list[Module] = []
        self.origins = origins
        self.loss_terms: list[LossTerm] = []
        self.half_precision = False
        self.tested: Tensor | None = None
        self._tested_at = 0
        self.grown: Operation | None = None
        self._batch_shape = batch_shape
        self._rows = BatchRows(batch)
        self._events = 0
        self._forward = ForwardOperations()
        self._by_node: dict[int, Event] = {}

    def run(self, func: Any, args: Any, kwargs: Any, taken: Set[int | None]) -> Any:
        """Run an operation and check its result."""
        own_node = self._forward.record(flat((args, kwargs.values())), self._module, self._rows.are_in)
        if is_view(func):
            return func(*args, **kwargs)
        overwritten = {id(one): _kept(one) for one in written(func, args, kwargs)}
        try:
            result = func(*args, **kwargs)
        except Exception:
            self._record_tested(read(func, args, kwargs))  # such as a decomposition, which refuses a matrix with NaN
            raise
        name = name_of(func)
        if name in _UNINITIALIZED:
            return result
        self._rows.update(func, args, kwargs, taken, {storage_key(one) for one in flat((result,))})
        node = torch._C._current_autograd_node()
        outputs = [one for one in flat((result,)) if one.is_floating_point() or one.is_complex()]
        self.half_precision |= any(one.dtype in HALF for one in outputs)
        if node is None and name in _LOSSES and len(self.loss_terms) < LOSS_TERMS:
            self.loss_terms.append(_loss_term(name, flat((args, kwargs.values())), outputs))
        finite = {id(one): all_finite(one) for one in outputs}
        bad = [one for one in outputs if not finite[id(one)]]
        if node is None and self.grown is None and not bad and name.rstrip("_") in _EXPONENTIALS:
            self._record_growth(name, [overwritten.get(id(one), one) for one in read(func, args, kwargs)], outputs[0])
        if node is None and (not outputs or name.startswith(_DECOMPOSITIONS)):
            self._record_tested(read(func, args, kwargs))
        if bad:
            inputs = [Input(overwritten.get(id(one), one), self.origins.of(one)) for one in read(func, args, kwargs)]
            self._record_nonfinite(name, node, own_node, inputs, _scalars(args, kwargs), bad)
        for one in outputs:
            # After a write to a part of a tensor, the rest may still be non-finite.
            is_whole = not overwritten or one.numel() * one.element_size() >= storage_bytes(one)
            if finite[id(one)] and is_whole:
                self.origins.clear(one)
        return result

    @property
    def _module(self) -> Module | None:
        """The module that is running."""
        return self.module_stack[-1] if self.module_stack else None

    def _record_nonfinite(
        self,
        name: str,
        node: Any,
        own_node: int | None,
        inputs: list[Input],
        scalars: tuple[float, ...],
        bad: list[Tensor],
    ) -> None:
        """Record the origin of results that are not finite."""
        is_backward = node is not None
        bad_inputs = [one for one in inputs if not one.is_finite]
        made_nan = has_nan(bad[0])
        origin = inherited(bad_inputs, made_nan, is_backward=is_backward)
        # As in ``x[mask] = -math.inf``, where the constant is a tensor.
        writes_constant = origin is UNKNOWN and not is_backward and name.rstrip("_") in {*_FILLS, "copy"}
        if origin is None or writes_constant:
            is_constant = not inputs or (not made_nan and not all(map(math.isfinite, scalars))) or writes_constant
            event = Event(
                operation=self._operation(
                    name, node, [one.values for one in inputs], scalars, bad[0], nonfinite_mask(bad[0]), kind_of(bad[0])
                ),
                order=self.operations,
                is_fill=not is_backward and (is_constant or (not made_nan and name in _FILLS)),
                is_backward=is_backward,
                cause=self._cause(node, bad_inputs) if is_backward else None,
                source=next((one.origin.source for one in bad_inputs if one.origin.source is not None), None),
            )
            if own_node is not None:
                self._by_node[own_node] = event
            origin = Origin(event)
        for one in bad:
            self.origins.set(one, origin)

    def _record_tested(self, inputs: Iterable[Tensor]) -> None:
        """Record a tensor that is not finite and whose values are compared or read."""
        for one in inputs:
            event = self.origins.of(one).event
            if one.is_floating_point() and not (event is not None and event.is_fill) and not all_finite(one):
                self.tested, self._tested_at = one, self.operations

    @property
    def has_just_tested(self) -> bool:
        """Whether `tested` was compared or read by one of the last operations."""
        return self.tested is not None and self.operations - self._tested_at < JUST

    def _record_growth(self, name: str, inputs: list[Tensor], output: Tensor) -> None:
        """Record an exponential function whose result is large."""
        mask = output.detach().abs() > GROWN
        if bool(mask.any()):
            self.grown = self._operation(name, None, inputs, (), output, mask, "large")

    def _cause(self, node: Any, bad_inputs: list[Input]) -> Event | None:
        """Return the event of the forward pass that made an operation of the backward pass non-finite."""
        events = [one.origin.event for one in bad_inputs if one.origin.event is not None]
        return events[0] if events else self._by_node.get(node._sequence_nr())

    def _place(self, node: Any) -> tuple[SourceLine | None, Module | None]:
        """Return the line and the module of an operation; in the backward pass, of the forward one it belongs to."""
        if node is None:
            return calling_line(), self._module
        forward = self._forward.of(node)
        # A custom function's own backward pass, or a checkpoint's second forward pass, has lines of its own.
        return calling_line() or forward.line, forward.module or self._module

    def _has_rows(self, node: Any, output: Tensor) -> bool:
        """Return whether a result has the rows of the batch; in the backward pass, is the gradient of such a one."""
        if node is None:
            return self._rows.are_in(output)
        # The gradient of an argument has its shape. A weight has none of the shapes of the batch's own arguments.
        return tuple(output.shape) in self._forward.of(node).batch_shapes

    def _operation(
        self,
        name: str,
        node: Any,
        inputs: list[Tensor],
        scalars: tuple[float, ...],
        output: Tensor,
        mask: Tensor | None,
        result: Result,
    ) -> Operation | None:
        self._events += 1
        if self._events > EVENTS:
            return None
        line, module = self._place(node)
        place = first_place(mask)
        return Operation(
            name=name,
            phase="forward" if node is None else "backward",
            result=result,
            module=module[0] if module else None,
            module_kind=module[1] if module else None,
            **_line_of(line),
            expression=line.expression if line else None,
            function=line.function if line else None,
            node=None if node is None else str(node.name()),
            inputs=tuple(operand(one, place, output.shape) for one in inputs[:OPERANDS]),
            scalars=scalars,
            rows=self._batch_shape.rows(mask) if mask is not None and self._has_rows(node, output) else (),
            element_count=1 if mask is None else int(mask.sum()),
        )


def _kept(tensor: Tensor) -> Tensor:
    """Return a copy of an argument that an operation is about to overwrite."""
    return tensor.clone() if tensor.numel() <= LARGE else tensor


def _loss_term(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> LossTerm:
    if name in SYMMETRIC_LOSSES and not inputs[0].requires_grad and inputs[1].requires_grad:
        inputs.reverse()
    return LossTerm(
        name=name,
        inputs=tuple(
            replace(operand(one, None, one.shape), is_constant=not one.requires_grad) for one in inputs[:OPERANDS]
        ),
        value=float(outputs[0]) if outputs and outputs[0].numel() == 1 else None,
        **_line_of(calling_line()),
    )


def _line_of(line: SourceLine | None) -> dict[str, Any]:
    return {} if line is None else {"file": line.file, "line": line.line, "code": line.text}


def _scalars(args: Iterable[Any], kwargs: dict[str, Any]) -> tuple[float, ...]:
    values = [*args, *kwargs.values()]
    return tuple(float(one) for one in values if isinstance(one, (int, float)) and not isinstance(one, bool))
