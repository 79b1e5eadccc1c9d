"""Which tensors of a list are measured together, by which kernels, planned once and used at each step.

A float32 sum loses digits as it grows: the norm of 16384 equal values is off by 1e-5, that of four million random ones
by up to 2e-4; a float64 sum costs two to ten times as much. On the host large tensors are therefore reduced to norms of
rows of 512 elements, in float32 (off by at most 4e-7), small ones are concatenated, and the squares of both are summed
in float64. On an accelerator ``torch._foreach_norm`` sums in float64, a few kernels for each type and device.
``python -m benchmarks.norm_kernels`` compares this with other kernels.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.elements import flat_elements, is_plain
from lightning_gradexplode.records import FloatArray, IntArray

ROW = 512
"""Elements that are summed in float32."""
MIN_ROW = 64
SMALL = 2048
"""Largest number of elements for which a copy costs less than a separate kernel."""
BLOCK = 1 << 15
"""Elements that are copied at a time; with their squares in float64 they fit into a processor's cache."""

SINGLE_RANGE, DOUBLE_RANGE = 1e-12, 1e-140
"""Squares of float32 and float64 elements may have underflown where a norm is smaller than this."""


class _HostBlock:
    """Tensors on the host that are measured together.

    Args:
        sizes: Number of elements of each tensor, by its place in the list of all.
        doubles: Places of the float64 tensors.
    """

    def __init__(self, sizes: dict[int, int], doubles: set[int]) -> None:
        small = [place for place, size in sizes.items() if size <= SMALL]
        large = [place for place, size in sizes.items() if size > SMALL]
        self.places = small + large
        self.select = _selection(self.places)
        self._small = len(small)
        self._large = [_Rows(sizes[place], place in doubles) for place in large]
        self._has_doubles = not doubles.isdisjoint(sizes)
        lengths = [*(sizes[place] for place in small), *(rows.count for rows in self._large)]
        *starts, length = itertools.accumulate(lengths, initial=0)
        # Memory that is allocated anew at each step costs more than the kernels of a small network.
        self._starts, self._squares = np.array(starts), np.empty(length)
        self.least = np.array([0.0] * len(small) + [SINGLE_RANGE] * len(large))
        self.least[[place in doubles for place in self.places]] = DOUBLE_RANGE

    def norms(self, tensors: Sequence[Any]) -> Tensor:
        """Return what `host_norms` measures, as a tensor."""
        return torch.from_numpy(self.host_norms(tensors))

    def host_norms(self, tensors: Sequence[Any]) -> FloatArray:
        """Measure tensors in the order of `places`.

        Raises:
            AttributeError, RuntimeError, TypeError: A tensor is not as planned; to check each would cost more.
        """
        parts = list(tensors[: self._small])
        for tensor, rows in zip(tensors[self._small :], self._large, strict=True):
            parts += rows.norms(tensor)
        flat = torch._C._nn.flatten_dense_tensors(parts)
        if len(flat) != len(self._squares) or flat.is_complex() or (flat.dtype is torch.float64) != self._has_doubles:
            raise TypeError("the tensors are not of the sizes or types that were planned")
        flat, squares = flat.detach(), self._squares
        np.copyto(squares, (flat.float() if flat.dtype is torch.bfloat16 else flat).numpy())  # numpy has no bfloat16
        if self._has_doubles:
            with np.errstate(over="ignore"):
                np.multiply(squares, squares, out=squares)
        else:
            np.multiply(squares, squares, out=squares)
        norms: FloatArray = np.sqrt(np.add.reduceat(squares, self._starts))
        return norms


class _Rows:
    """Rows that a large tensor is divided into.

    Args:
        size: Number of elements.
        is_double: Whether they are float64.

    Attributes:
        count: Number of elements of the tensors that `norms` returns.
    """

    def __init__(self, size: int, is_double: bool) -> None:
        row = math.gcd(size, ROW)
        self._row = row if row >= MIN_ROW else ROW
        self._whole = size // self._row * self._row
        self._rest = size - self._whole
        self.count = size // self._row + self._rest
        self._dtype = torch.float64 if is_double else torch.float32

    def norms(self, tensor: Tensor) -> list[Tensor]:
        """Return the norm of each row, and the elements that fill no row."""
        flat = tensor.view(-1)[: self._whole] if self._rest else tensor
        norms = torch.linalg.vector_norm(flat.view(-1, self._row), dim=1, dtype=self._dtype)
        return [norms, tensor.view(-1)[self._whole :]] if self._rest else [norms]


class _DeviceGroup:
    """Tensors of one type on one accelerator.

    Args:
        places: Their places in the list of all.
        dtype: Their type.
        device: Their device.
    """

    def __init__(self, places: list[int], dtype: torch.dtype, device: torch.device) -> None:
        self.places = places
        self.select = _selection(places)
        self.least = np.zeros(len(places))
        self._dtype = reading.widest_type(device)
        self._range = DOUBLE_RANGE if dtype is torch.float64 else SINGLE_RANGE if self._dtype is torch.float32 else None

    def norms(self, tensors: Sequence[Any]) -> Tensor:
        """Measure tensors in the order of `places`.

        Squares of small elements may underflow. Where a norm is too small to be relied on, the largest absolute value
        is returned in its place, with a minus sign; it is zero only if all elements are, which needs no second look.

        Raises:
            RuntimeError, TypeError: A tensor is not as planned.
        """
        tensors = list(tensors)
        if self._range is None:
            return torch.stack(torch._foreach_norm(tensors, dtype=self._dtype))
        largest = torch.stack(torch._foreach_norm(tensors, math.inf)).to(self._dtype)
        if self._dtype is torch.float32:  # sums of sums of few elements lose fewer digits
            tensors = [_row_norms(tensor.reshape(-1)) for tensor in tensors]
        norms = torch.stack(torch._foreach_norm(tensors, dtype=self._dtype))
        return torch.where(norms < self._range, 0.0 - largest, norms)


def _selection(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return a function that selects the elements of a sequence at some places."""
    return operator.itemgetter(*places) if len(places) > 1 else lambda every: [every[place] for place in places]


def _row_norms(flat: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(flat.float(), (0, -len(flat) % ROW))
    norms: Tensor = torch.linalg.vector_norm(padded.view(-1, ROW), dim=1)
    return norms


class NormPlan:
    """Which tensors of a list are measured together, planned once for tensors that are alike from step to step.

    Args:
        like: Tensors of the same shapes, types, layouts and devices as those that will be measured.
        most: Number of elements that are measured together on the host, or a single tensor.

    Attributes:
        units: Tensors that are measured together, each with the ``places`` that they have in the list.
        places: The places of all units, one after the other.
        least: The least norms that can be relied on, shape ``(places,)``. A negative number of a unit is no norm: it
            is the largest absolute value, negated, of a tensor whose squares are too small for their type.
    """

    def __init__(self, like: Sequence[Tensor | None], most: float = math.inf) -> None:
        self._most = most
        self._plan(like)

    def _plan(self, tensors: Sequence[Tensor | None]) -> None:
        self._absent: list[int] = []
        self._others: list[int] = []
        sizes: dict[int, int] = {}
        doubles: set[int] = set()
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for place, tensor in enumerate(tensors):
            if tensor is None or not tensor.numel():
                self._absent.append(place)
            elif not is_plain(tensor):
                self._others.append(place)
            elif not reading.is_on_host(tensor):
                groups.setdefault((tensor.dtype, tensor.device), []).append(place)
            elif tensor.is_contiguous() or tensor.numel() <= SMALL:
                sizes[place] = tensor.numel()
                if tensor.dtype is torch.float64:
                    doubles.add(place)
            else:
                self._others.append(place)
        blocks = [
            _HostBlock({place: sizes[place] for place in places}, doubles) for places in _blocks(sizes, self._most)
        ]
        self.units: list[_HostBlock | _DeviceGroup] = [
            *blocks,
            *(_DeviceGroup(places, *kind) for kind, places in groups.items()),
        ]
        self.places: IntArray = np.array([place for unit in self.units for place in unit.places], dtype=np.int64)
        self.least = np.concatenate([np.zeros(0), *(unit.least for unit in self.units)])
        is_single = len(blocks) == len(self.units) == 1 and not self._others
        self._single = blocks[0] if is_single else None

    def measure(self, tensors: Sequence[Tensor | None]) -> tuple[IntArray, FloatArray, list[Tensor] | FloatArray]:
        """Measure tensors on their devices; if they are not as planned, they are planned again.

        Returns:
            The places of the tensors that have elements, the least norms that can be relied on, shape ``(places,)``,
            and the norms, in tensors with ``places`` elements together, or in an array if all are on the host.
        """
        try:
            return self._measure(tensors)
        except (AttributeError, RuntimeError, TypeError):
            self._plan(tensors)
            return self._measure(tensors)

    def _measure(self, tensors: Sequence[Any]) -> tuple[IntArray, FloatArray, list[Tensor] | FloatArray]:
        if self._absent and any(tensors[place] is not None and tensors[place].numel() for place in self._absent):
            raise TypeError("a tensor is there that was absent")
        if self._single is not None:  # without `no_grad`, which takes a tenth of the time of these kernels
            return self.places, self.least, self._single.host_norms(self._single.select(tensors))
        with torch.no_grad():
            return self._measure_units(tensors)

    def _measure_units(self, tensors: Sequence[Any]) -> tuple[IntArray, FloatArray, list[Tensor]]:
        norms = [unit.norms(unit.select(tensors)) for unit in self.units]
        if not self._others:
            return self.places, self.least, norms
        flats = [flat_elements(tensors[place]) for place in self._others]
        places, least, others = NormPlan(flats).measure(flats)
        if isinstance(others, np.ndarray):
            others = [torch.from_numpy(others)]
        return (
            np.concatenate([self.places, np.array(self._others)[places]]),
            np.concatenate([self.least, least]),
            [*norms, *others],
        )


def _blocks(sizes: dict[int, int], most: float) -> Iterator[list[int]]:
    """Divide places into blocks of bounded size, in their order."""
    block: list[int] = []
    elements = copied = 0
    for place, size in sizes.items():
        copy = size if size <= SMALL else size // ROW
        if block and (elements + size > most or copied + copy > BLOCK):
            yield block
            block, elements, copied = [], 0, 0
        block.append(place)
        elements, copied = elements + size, copied + copy
    if block:
        yield block
