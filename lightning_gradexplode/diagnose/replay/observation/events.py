"""Where the non-finite values of a step come from: operations that made them, and tensors that held them before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_gradexplode.diagnose.replay.observation.finiteness import all_finite, has_nan, storage_key
from lightning_gradexplode.records import Operation

Kind = Literal["batch", "parameter", "buffer", "attribute"]
"""What a tensor of the run is."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the run that held non-finite values before the step.

    Args:
        kind: ``"batch"``, ``"parameter"``, ``"buffer"`` or ``"attribute"``.
        name: Name of the field, parameter, buffer or attribute.
        has_nan: Whether they include NaN.
        rows: Its rows with such values, for a field of the batch.
        storage: What `storage_key` returns of it.
    """

    kind: Kind
    name: str
    has_nan: bool
    rows: tuple[int, ...] = ()
    storage: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """An operation that made non-finite values.

    Args:
        operation: The operation, None for one beyond the most that are recorded.
        order: How many operations ran before it.
        is_fill: Whether the values were put there deliberately.
        is_backward: Whether it ran in the backward pass.
        cause: In the backward pass: the event of the forward pass whose values made it non-finite.
        source: A tensor of the run whose infinities it made NaN of.
    """

    operation: Operation | None
    order: int
    is_fill: bool = False
    is_backward: bool = False
    cause: Event | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where the non-finite values of one tensor come from; neither is known for constants of the user's own."""

    event: Event | None = None
    source: Source | None = None


UNKNOWN = Origin()
"""The origin of values that existed before the replay, in a tensor that is no part of the module or the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """An argument of an operation, with its values from before the operation."""

    values: Tensor
    origin: Origin

    @property
    def is_finite(self) -> bool:
        """Whether all of its values are finite."""
        return all_finite(self.values)


@dataclass(slots=True)
class Origins:
    """The origin of each tensor that is not finite, kept by its storage, so that views share it."""

    _by_storage: dict[int, Origin] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> Origin:
        """Return the origin of a tensor's non-finite values."""
        key = storage_key(tensor)
        return UNKNOWN if key is None else self._by_storage.get(key, UNKNOWN)

    def set(self, tensor: Tensor, origin: Origin) -> None:
        """Record where a tensor's values come from."""
        key = storage_key(tensor)
        if key is not None:
            self._by_storage[key] = origin

    def clear(self, tensor: Tensor) -> None:
        """Record that a tensor has become finite."""
        key = storage_key(tensor)
        if key is not None:
            self._by_storage.pop(key, None)


def inherited(bad_inputs: Sequence[Input], made_nan: bool, *, is_backward: bool) -> Origin | None:
    """Return the origin that an operation's result has from its inputs.

    Args:
        bad_inputs: The operation's inputs that are not finite.
        made_nan: Whether the result holds NaN.
        is_backward: Whether the operation runs in the backward pass.

    Returns:
        The origin of an input's values; None if the operation made them: from finite values, NaN from intended
        infinities, or in the backward pass from non-finite values that did not reach the loss. None also for NaN of
        unknown origin, such as a constant of the user's own: the operation that reads it is the first one known.
    """
    events = [one.origin.event for one in bad_inputs if one.origin.event is not None]
    if not bad_inputs or (is_backward and not any(one.is_backward for one in events)):
        return None
    alike = (
        [one.origin for one in bad_inputs if has_nan(one.values)] if made_nan else [one.origin for one in bad_inputs]
    )
    like = [one.event for one in alike if one.event is not None]
    computed = [one for one in like or events if not one.is_fill]
    if computed:
        return Origin(earliest(computed))
    if not alike or (made_nan and all(one is UNKNOWN for one in alike)):
        return None
    return next((one for one in alike if one.source is not None), alike[0])


def earliest(events: Iterable[Event]) -> Event:
    """Return the event that ran first."""
    return min(events, key=lambda one: one.order)
