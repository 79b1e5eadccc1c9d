"""The tensors of a batch of any kind, under the names that the user's code has for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_gradexplode.distributed.shard_layout import local_part

MAX_FIELDS = 64
"""Number of fields of a batch that are looked at."""

_DEPTH = 8
_MANY = 8
"""A list of more tensors than this is one field with a row for each, such as images of different sizes."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field of a batch.

    Args:
        name: Where it is in the batch, see `lightning_gradexplode.records.FieldFacts`.
        shape: Its shape.
        dtype: Name of its type.
        tensors: Its elements. The first dimension of each, one after the other, is that of its rows.
        rows: Returns the row that each index of that dimension belongs to; None where the index is the row itself.
        has_rows: Whether it has rows at all.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    tensors: tuple[Tensor, ...]
    rows: Callable[[], Tensor] | None = None
    has_rows: bool = True


def fields_of(batch: Any) -> list[Field]:
    """Return the fields of a batch, at most 64, without copying a tensor.

    Args:
        batch: Tensors (dense, sparse, nested, complex), arrays and numbers in lists, tuples, named tuples, mappings,
            dataclasses, packed sequences, and objects with tensors or a method ``to``, such as graphs. What holds no
            numbers, such as strings, is passed over; iterators are left alone.
    """
    leaves: dict[str, Tensor | PackedSequence | list[Tensor]] = {}
    for name, value in islice(_leaves("", batch, _DEPTH), MAX_FIELDS):
        leaves.setdefault(name or "batch", value)
    size = _size([_shape(value) for value in leaves.values()])
    return [_field(name, value, size) for name, value in leaves.items()]


def batch_size(batch_fields: Sequence[Field]) -> int | None:
    """Return the number of rows of a batch, None if it has none."""
    return _size([field.shape for field in batch_fields])


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor | PackedSequence | list[Tensor]]]:
    """Iterate over the tensors of a batch, and over lists of tensors that are rows of one field."""
    if isinstance(value, (Tensor, PackedSequence)):
        yield name, value
    elif isinstance(value, (np.ndarray, np.generic, bool, int, float)):
        yield from ((name, tensor) for tensor in _converted(value))
    elif depth == 0 or isinstance(value, (str, bytes, nn.Module, type)):
        return
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        yield from _elements(name, value, depth - 1)
    else:
        for key, one in _entries(value):
            yield from _leaves(_joined(name, key), one, depth - 1)


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Return what a mapping, named tuple, dataclass or object with tensors holds, by name; else nothing."""
    if isinstance(value, Mapping):
        return [(str(key), one) for key, one in value.items()]
    if isinstance(value, tuple):
        return list(zip(value._fields, value, strict=False))  # type: ignore[attr-defined]
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    # Numbers in private attributes are internal to an object, but graphs keep all their tensors in one.
    numbers = (Tensor, np.ndarray, int, float)
    return [one for one in attributes(value).items() if not (one[0].startswith("_") and isinstance(one[1], numbers))]


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that has a method ``to`` or holds a tensor; nothing of any other object."""
    if isinstance(value, type):
        return {}
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if name not in ("__dict__", "__weakref__")]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)} | dict(
        getattr(value, "__dict__", {})
    )
    is_container = callable(getattr(value, "to", None)) or any(isinstance(one, Tensor) for one in found.values())
    return found if is_container else {}


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _elements(
    name: str, values: Sequence[Any], depth: int
) -> Iterator[tuple[str, Tensor | PackedSequence | list[Tensor]]]:
    if _are_numbers(values):
        yield from ((name, tensor) for tensor in _converted(values))
    elif rows := _rows(values):
        yield name, rows
    elif len(values) > 1 and all(isinstance(one, Mapping) and one.keys() == values[0].keys() for one in values):
        for key in list(values[0]):  # one mapping a row, as the targets of a detection network
            yield from _elements(_joined(name, str(key)), [one[key] for one in values], depth)
    else:
        for index, one in enumerate(values):
            yield from _leaves(f"{name}[{index}]", one, depth)


def _are_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(one, (bool, int, float)) for one in values)


def _rows(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of a list that holds one tensor, array or list of numbers a row; nothing of another list."""
    if len(values) <= _MANY:
        return []
    found: list[Tensor] = []
    for one in values:
        if isinstance(one, Tensor) and one.layout is torch.strided:
            found.append(one)
        elif isinstance(one, np.ndarray) or (isinstance(one, (list, tuple)) and _are_numbers(one)):
            found += _converted(one)
        else:
            return []
    alike = {(one.dim(), one.dtype, one.device) for one in found}
    return found if len(found) == len(values) and len(alike) == 1 else []


def _converted(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensor that an array, a number or a list of numbers is, or nothing."""
    array = np.asarray(value)
    if array.dtype.kind in "biufc":
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        if any(stride < 0 for stride in native.strides) or not native.flags.writeable:
            native = native.copy()  # torch takes no negative strides, and warns of memory that it must not write to
        if native.dtype.itemsize <= 8 or native.dtype.kind == "c":
            yield torch.from_numpy(native)


def _joined(name: str, key: str) -> str:
    """Return the name of an attribute or entry; that of a private one is left out."""
    if key.startswith("_"):
        return name
    return f"{name}.{key}" if name else key


def _shape(value: Tensor | PackedSequence | list[Tensor]) -> tuple[int, ...]:
    if isinstance(value, list):
        shapes = {tuple(one.shape) for one in value}
        return (len(value), *(shapes.pop() if len(shapes) == 1 else ()))
    if isinstance(value, PackedSequence):
        return (int(value.batch_sizes[0]), len(value.batch_sizes), *value.data.shape[1:])
    if value.is_nested:
        return (value.size(0),)
    return tuple(value.shape)


def _size(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return the number of rows of a batch with fields of these shapes.

    It is the first dimension of a field that most fields have among their dimensions; where that is undecided, that
    most fields have as their first one.
    """
    firsts = Counter(shape[0] for shape in shapes if shape)
    return max(firsts, key=lambda size: (sum(size in shape for shape in shapes), firsts[size]), default=None)


def _field(name: str, value: Tensor | PackedSequence | list[Tensor], size: int | None) -> Field:
    shape = _shape(value)
    if isinstance(value, list):
        tensors, dtype = tuple(map(_plain, value)), _dtype(value[0])
        if len(value) != size and len(shape) > 2 and shape[1] == size:  # one tensor with all rows for each time step
            return Field(name, shape, dtype, tensors, lambda: torch.arange(shape[1], device="cpu").repeat(shape[0]))
        return Field(name, shape, dtype, tuple(one.unsqueeze(0) for one in tensors))
    if isinstance(value, PackedSequence):
        return Field(name, shape, _dtype(value.data), (_plain(value.data),), lambda: _packed_rows(value))
    tensor, dtype = _plain(value), _dtype(value)
    if tensor.is_nested:
        return _nested_field(name, shape, dtype, tensor)
    if tensor.layout is torch.sparse_coo:
        return Field(name, shape, dtype, (tensor._values(),), lambda: tensor._indices()[0])
    if tensor.layout is torch.sparse_csr:
        return Field(name, shape, dtype, (tensor.values(),), lambda: _spanned_rows(tensor.crow_indices()))
    if tensor.layout is not torch.strided:
        return Field(name, shape, dtype, (tensor.values(),), has_rows=False)
    if not shape:
        return Field(name, shape, dtype, (tensor.unsqueeze(0),), has_rows=False)
    if shape[0] != size and size not in (None, 1) and shape.count(size) == 1:
        tensor = tensor.movedim(shape.index(size), 0)
    return Field(name, shape, dtype, (tensor,))


def _nested_field(name: str, shape: tuple[int, ...], dtype: str, nested: Any) -> Field:
    if nested.layout is torch.jagged and nested.lengths() is None and nested._ragged_idx == 1:
        return Field(name, shape, dtype, (nested.values(),), lambda: _spanned_rows(nested.offsets()))
    return Field(name, shape, dtype, tuple(part.unsqueeze(0) for part in nested.unbind()))


def _packed_rows(packed: PackedSequence) -> Tensor:
    """Return the sequence that each element of a packed batch belongs to."""
    places = torch.cat([torch.arange(int(count), device="cpu") for count in packed.batch_sizes])
    return places if packed.sorted_indices is None else packed.sorted_indices.cpu()[places]


def _spanned_rows(offsets: Tensor) -> Tensor:
    """Return the span that each element belongs to, given where spans begin, and where the last one ends."""
    return torch.arange(len(offsets) - 1, device="cpu").repeat_interleave(offsets.diff().cpu())


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor without gradient history, without the class of a user's own, and the part in this process."""
    tensor = local_part(tensor.detach())
    if type(tensor) is not Tensor and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        return tensor.as_subclass(Tensor)
    return tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
