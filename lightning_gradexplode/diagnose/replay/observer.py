"""A dispatch mode that finds the first operation of a step that made a non-finite value out of finite ones.

Each operation whose result is not finite is an event, or inherits the event of one of its inputs; the event of a
tensor is kept by its storage. So the loss, or a gradient, leads back to the operation that began it, past infinities
that did no harm (a mask, the logarithm of a zero that was left out of the sum).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay.finiteness import (
    all_finite,
    first_place,
    has_nan,
    kind_of,
    nonfinite_mask,
    operand,
    rows_of,
    storage_bytes,
    storage_key,
)
from lightning_gradexplode.diagnose.replay.guard import HALF, Guard, flat, is_view, name_of, written
from lightning_gradexplode.diagnose.replay.source_line import SourceLine, calling_line
from lightning_gradexplode.records import LossTerm, Operand, Operation

EVENTS = 200
"""At most so many events are recorded with their operands."""

LARGE = 1 << 24
"""An argument with more elements is not cloned before an operation overwrites it."""

_FILLS = {
    "masked_fill",
    "fill",
    "full",
    "full_like",
    "new_full",
    "constant_pad_nd",
    "scalar_tensor",
    "lift_fresh",
    "where",
    "scatter",
    "index_fill",
    "index_put",
    "masked_scatter",
    "tril",
    "triu",
}
"""Operations that put values in place and compute none: what they make infinite was meant to be."""

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

LOSS_TERMS = 32
"""At most so many loss functions are recorded."""

_UNINITIALIZED = ("empty", "resize", "set", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(slots=True, eq=False)
class Event:
    """An operation that made non-finite values.

    Args:
        operation: The operation, None for one beyond the most that are recorded.
        order: How many operations ran before it.
        is_fill: Whether the values were put there deliberately.
        backward: Whether it ran in the backward pass.
        cause: In the backward pass: the event of the forward pass whose values came back here.
        source: A tensor of the run whose infinities it made NaN of.
    """

    operation: Operation | None
    order: int
    is_fill: bool = False
    backward: bool = False
    cause: Event | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the run that held non-finite values before the step.

    Args:
        kind: ``"batch"``, ``"parameter"``, ``"buffer"`` or ``"attribute"``.
        name: Name of the field, parameter, buffer or attribute.
        has_nan: Whether they include NaN.
        rows: Its rows with such values, for a field of the batch.
    """

    kind: str
    name: str
    has_nan: bool
    rows: tuple[int, ...] = ()


@dataclass(slots=True)
class _Origin:
    """Where the non-finite values of a tensor come from."""

    event: Event | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """A tensor that an operation took, with its values as they were before it."""

    values: Tensor
    origin: _Origin

    @property
    def is_finite(self) -> bool:
        return not (self.values.is_floating_point() or self.values.is_complex()) or all_finite(self.values)


class Observer(Guard):  # type: ignore[no-untyped-call]
    """Observes each operation of a step.

    Args:
        size: Number of rows of the batch, None if unknown.
        sources: Tensors that were not finite before the step, by the address of their storage.
        settings: The arguments of `Guard`.

    Attributes:
        module_stack: Names and classes of the modules that are running, kept by the hooks of the copy.
        events: All events in the order of execution.
        loss_terms: The loss functions of the forward pass.
        half_precision: Whether an operation computed in half precision.
    """

    def __init__(self, size: int | None, sources: Mapping[int, Source], **settings: Any) -> None:
        super().__init__(**settings)
        self.module_stack: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self.loss_terms: list[LossTerm] = []
        self.half_precision = False
        self._size = size
        self._origins: dict[int, _Origin] = {key: _Origin(source=one) for key, one in sources.items()}
        self._lines: dict[int, tuple[SourceLine | None, tuple[str, str] | None]] = {}
        self._by_node: dict[int, Event] = {}
        self._new_node: int | None = None

    def origin(self, tensor: Tensor) -> tuple[Event | None, Source | None]:
        """Return the event, and the tensor of the run, that a tensor's non-finite values come from."""
        found = self._origins.get(storage_key(tensor) or 0, _Origin())
        return found.event, found.source

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation and look at its result."""
        node = torch._C._current_autograd_node()
        self._note_line()
        if is_view(func):
            return func(*args, **kwargs)
        overwritten = self._kept(func, args, kwargs)
        result = func(*args, **kwargs)
        if name_of(func) in _UNINITIALIZED:
            return result
        outputs = [one for one in flat((result,)) if one.is_floating_point() or one.is_complex()]
        if node is None and name_of(func) in _LOSSES and len(self.loss_terms) < LOSS_TERMS:
            self.loss_terms.append(_loss_term(func, args, kwargs, outputs))
        self.half_precision |= any(one.dtype in HALF for one in outputs)
        bad = []
        for one in outputs:
            if not all_finite(one):
                bad.append(one)
            elif not overwritten or one.numel() * one.element_size() >= storage_bytes(one):
                self._origins.pop(storage_key(one) or 0, None)
        if bad:
            inputs = [
                _Input(overwritten.get(id(one), one), self._origins.get(storage_key(one) or 0, _Origin()))
                for one in flat((args, tuple(kwargs.values())))
            ]
            self._found(func, node, inputs, args, kwargs, bad)
        return result

    def _note_line(self) -> None:
        """Record the line of the operation that the latest autograd node belongs to."""
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        self._new_node = None if number in self._lines else number
        if self._new_node is not None:
            self._lines[number] = (calling_line(), self.module_stack[-1] if self.module_stack else None)

    def _kept(self, func: Any, args: Any, kwargs: Any) -> dict[int, Tensor]:
        """Return copies of the arguments that the operation is about to overwrite, by ``id``."""
        return {id(one): one.clone() if one.numel() <= LARGE else one for one in written(func, args, kwargs)}

    def _found(self, func: Any, node: Any, inputs: list[_Input], args: Any, kwargs: Any, bad: list[Tensor]) -> None:
        bad_inputs = [one for one in inputs if not one.is_finite]
        made_nan = has_nan(bad[0])
        origin = _inherited(bad_inputs, made_nan, backward=node is not None)
        if origin is None:
            scalars = _scalars(args, kwargs)
            is_constant = not inputs or (not made_nan and not all(map(math.isfinite, scalars)))
            is_fill = node is None and (is_constant or (not made_nan and name_of(func) in _FILLS))
            operation = None
            if len(self.events) < EVENTS:
                operation = self._operation(func, node, [one.values for one in inputs], scalars, bad[0])
            cause = None if node is None else self._cause(node, bad_inputs)
            source = next((one.origin.source for one in bad_inputs if one.origin.source is not None), None)
            event = Event(operation, self.operations, is_fill, node is not None, cause, source)
            self.events.append(event)
            if node is None and self._new_node is not None:
                self._by_node[self._new_node] = event
            origin = _Origin(event)
        for one in bad:
            self._origins[storage_key(one) or 0] = origin

    def _place(self, node: Any) -> tuple[SourceLine | None, tuple[str, str] | None]:
        module = self.module_stack[-1] if self.module_stack else None
        if node is None:
            return calling_line(), module
        line, forward_module = self._lines.get(node._sequence_nr(), (None, None))
        # A custom function's own backward pass, or a checkpoint's second forward pass, has lines of its own.
        return calling_line() or line, forward_module or module

    def _cause(self, node: Any, bad_inputs: list[_Input]) -> Event | None:
        """Return the event of the forward pass that an operation of the backward pass met."""
        events = [one.origin.event for one in bad_inputs if one.origin.event is not None]
        return events[0] if events else self._by_node.get(node._sequence_nr())

    def _operation(
        self,
        func: Any,
        node: Any,
        inputs: list[Tensor],
        scalars: tuple[float, ...],
        output: Tensor,
    ) -> Operation:
        line, module = self._place(node)
        mask = nonfinite_mask(output)
        place = first_place(mask)
        return Operation(
            name=name_of(func),
            phase="forward" if node is None else "backward",
            result=kind_of(output),  # type: ignore[arg-type]
            module=module[0] if module else None,
            module_kind=module[1] if module else None,
            file=line.file if line else None,
            line=line.line if line else None,
            code=line.text if line else None,
            expression=line.expression if line else None,
            function=line.function if line else None,
            node=None if node is None else str(node.name()),
            inputs=tuple(_operand(one, place, output.shape) for one in inputs[:8]),
            scalars=scalars,
            rows=rows_of(mask, self._size),
            element_count=1 if mask is None else int(mask.sum()),
        )


def _loss_term(func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> LossTerm:
    line = calling_line()
    return LossTerm(
        name=name_of(func),
        inputs=tuple(_operand(one, None, one.shape) for one in flat((args, tuple(kwargs.values())))[:8]),
        value=float(outputs[0]) if outputs and outputs[0].numel() == 1 else None,
        file=line.file if line else None,
        line=line.line if line else None,
        code=line.text if line else None,
    )


def _inherited(bad_inputs: list[_Input], made_nan: bool, *, backward: bool) -> _Origin | None:
    """Return the origin of a result's non-finite values.

    Args:
        bad_inputs: The operation's inputs that are not finite.
        made_nan: Whether the result holds NaN.
        backward: Whether the operation runs in the backward pass.

    Returns:
        The origin of an input's values; None if the operation made them: out of finite values, NaN out of infinities
        that were meant to be, or in the backward pass out of what the forward pass had hidden.
    """
    events = [one.origin.event for one in bad_inputs if one.origin.event is not None]
    if not bad_inputs or (backward and not any(one.backward for one in events)):
        return None
    alike = [one for one in bad_inputs if has_nan(one.values)] if made_nan else bad_inputs
    like = [one.origin.event for one in alike if one.origin.event is not None]
    computed = [one for one in like or events if not one.is_fill]
    if computed:
        return _Origin(min(computed, key=lambda one: one.order))
    if not alike:
        return None
    return next((one.origin for one in alike if one.origin.source is not None), alike[0].origin)


def _operand(tensor: Tensor, place: tuple[int, ...] | None, shape: torch.Size) -> Operand:
    try:
        return operand(tensor, place, shape)
    except (RuntimeError, TypeError, NotImplementedError):
        return Operand(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _scalars(args: Any, kwargs: Any) -> tuple[float, ...]:
    values = [*args, *kwargs.values()]
    return tuple(float(one) for one in values if isinstance(one, (int, float)) and not isinstance(one, bool))
