"""L2 norms of many tensors at once: exact to 1e-6, at about the cost of reading them once.

A float32 sum loses digits as it grows: of 1024 equal values the norm is off by up to 8e-7, of 16384 by 1e-5, of four
million random ones by up to 2e-4. A float64 sum costs two to ten times as much. So the norms of rows of up to 512
elements are taken first, in float32 (as fast as one float32 sum, off by at most 4e-7); these, and tensors too small or
too odd for rows as they are, are put side by side and their squares added up in float64, on a processor by numpy. By
``python -m benchmarks.norm_kernels``, right after a backward pass on two cores with AVX-512, that takes 0.99 ms for 7.4
million elements in 72 tensors (``aminmax`` of each, a bare read, 0.82; ``torch._foreach_norm`` in float32, ``stack``
and one read 1.05; ``vector_norm`` in float64 8.3), and 2.3 ms for 2 million in 1000 tensors (2.4, 2.1 and 3.7). Values
whose squares leave float32's range are found by their result (the norm is infinite, or next to zero) and measured
again, slowly, in float64. On an accelerator it is the launches that cost, and not the sums: ``torch._foreach_norm``
adds up all squares in float64, by few kernels, and all norms are read at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import PLAIN_TYPES, flat_elements
from lightning_gradexplode.measure.exact_norms import are_trusted, careful_norms, is_doubtful
from lightning_gradexplode.measure.reading import PendingRead, is_on_host, read, widest
from lightning_gradexplode.measure.small_tensors import ROW, SHORT, UsualTensors, norms_side_by_side
from lightning_gradexplode.records import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """L2 norms per tensor and of all together.

    Args:
        each: Shape ``(tensors,)``; 0 for an empty or missing tensor, NaN or inf where elements are.
        nonfinite: Number of NaN and infinite elements, shape ``(tensors,)``; NaN where it is not known.
    """

    each: FloatArray
    nonfinite: FloatArray

    @property
    def total(self) -> float:
        """The norm of all tensors' elements together."""
        return combined_norm(self.each)

    def divided_by(self, divisor: float) -> Norms:
        """Give the norms of the same tensors, each element divided by a number."""
        return self if divisor == 1.0 else Norms(self.each / divisor, self.nonfinite)

    @property
    def nonfinite_total(self) -> int | None:
        """Number of NaN and infinite elements in all tensors together, None where it is not known."""
        total = float(self.nonfinite.sum())
        return None if math.isnan(total) else int(total)


def combined_norm(norms: FloatArray) -> float:
    """Combine norms of parts to the norm of the whole, with no overflow on the way."""
    total = math.hypot(*norms.tolist())
    return total if total < math.inf or not np.isnan(norms).any() else math.nan  # to hypot, infinity wins over NaN


def measure_norms(tensors: Iterable[Tensor | None], divisor: float = 1.0) -> Norms:
    """Measure the L2 norm of each tensor, with one read from the device.

    Args:
        tensors: Tensors of any kind that `flat_elements` takes; None counts as empty. A generator may make them on
            the way, each to be measured while it still is in the processor's cache.
        divisor: What the norms are divided by: the scale of a gradient scaler.

    Returns:
        The norms, in the order of the tensors, relative error below 1e-6 for float32 and float64; a half-precision
        tensor is summed in float32.
    """
    return PendingNorms(tensors, ()).norms().divided_by(divisor)


class PendingNorms:
    """Norms on their way: on a processor they are there at once, on an accelerator nobody waits before they are needed.

    Args:
        tensors: What to measure, as `measure_norms` takes it; kept until the norms are asked for.
        scalars: Tensors of one real element that are read along with the norms.
    """

    def __init__(self, tensors: Iterable[Tensor | None], scalars: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self._tensors, self._places, parts = _parts(tensors)
            self.are_there = all(map(is_on_host, parts))
            if self.are_there:
                self._known, self._read = self._finished(norms_side_by_side(parts)), PendingRead(scalars)
            else:
                self._read = PendingRead([*torch._foreach_norm(parts, dtype=widest(parts[0].device)), *scalars])

    def norms(self, intact: bool = True) -> Norms:
        """Wait for the norms, and give them.

        Args:
            intact: Whether the tensors are as they were. If not, what is not finite in them cannot be counted any more.
        """
        return self._known if self.are_there else self._finished(self._read.values()[: len(self._places)], intact)

    def _finished(self, measured: FloatArray, intact: bool = True) -> Norms:
        each, nonfinite = np.zeros(len(self._tensors)), np.zeros(len(self._tensors))
        each[self._places] = measured
        if intact:
            mend(each, nonfinite, self._tensors, self._places, measured)
        else:
            nonfinite[~np.isfinite(each)] = np.nan
        return Norms(each, nonfinite)

    def scalars(self) -> FloatArray:
        """Wait for the scalars, and give them in float64, shape ``(scalars,)``."""
        return self._read.values()[0 if self.are_there else len(self._places) :]


class KnownNorms:
    """Norms that are there already, to be asked for like those that are not.

    Args:
        norms: The norms.
        scalars: What was read along with them, in float64.
    """

    are_there = True

    def __init__(self, norms: Norms, scalars: FloatArray) -> None:
        self._norms, self._scalars = norms, scalars

    def norms(self, intact: bool = True) -> Norms:
        """Give the norms."""
        return self._norms

    def scalars(self) -> FloatArray:
        """Give the scalars."""
        return self._scalars


def start_norms(
    tensors: Sequence[Tensor | None], scalars: Sequence[Tensor], usual: UsualTensors
) -> PendingNorms | KnownNorms:
    """Begin to measure norms, knowing beforehand which tensors are the usual ones.

    Args:
        tensors: One for each of the tensors that `usual` was made of.
        scalars: Tensors of one real element, to be read along with the norms.
        usual: Measures the usual ones among them.
    """
    found = usual.norms(tensors) if usual.places else None
    if found is None:
        return PendingNorms(tensors, scalars)
    each, nonfinite = np.zeros(len(tensors)), np.zeros(len(tensors))
    each[usual.places] = found
    if usual.others:
        pending = PendingNorms([tensors[place] for place in usual.others], scalars)
        others, numbers = pending.norms(), pending.scalars()
        each[usual.others], nonfinite[usual.others] = others.each, others.nonfinite
    else:
        numbers = read(scalars)
    mend(each, nonfinite, tensors, usual.places, found)
    return KnownNorms(Norms(each, nonfinite), numbers)


def mend(
    each: FloatArray,
    nonfinite: FloatArray,
    tensors: Sequence[Tensor | None] | Mapping[int, Tensor],
    places: list[int],
    norms: FloatArray,
) -> None:
    """Measure those of the norms again that cannot be trusted, in place."""
    if are_trusted(norms):
        return
    doubtful = [place for place, norm in zip(places, norms.tolist(), strict=True) if is_doubtful(norm)]
    with torch.no_grad():
        each[doubtful], nonfinite[doubtful] = careful_norms([tensors[place] for place in doubtful])


def _parts(tensors: Iterable[Tensor | None]) -> tuple[list[Tensor | None], list[int], list[Tensor]]:
    """List the tensors; and for each that has elements, give its place and few real numbers with the same norm."""
    listed: list[Tensor | None] = []
    places: list[int] = []
    parts: list[Tensor] = []
    strided, float32 = torch.strided, torch.float32
    for place, tensor in enumerate(tensors):
        listed.append(tensor)
        if tensor is None or not (count := tensor.numel()):
            continue
        if count <= SHORT and tensor.dtype is float32 and type(tensor) in PLAIN_TYPES and tensor.layout is strided:
            places.append(place)
            parts.append(tensor)
        elif (flat := flat_elements(tensor)).numel():
            places.append(place)
            parts.append(flat if flat.dtype is torch.float64 or _sums_in_float64(flat) else _row_norms(flat))
    return listed, places, parts


def _sums_in_float64(flat: Tensor) -> bool:
    """Tell whether the norm will be taken by an accelerator that adds up in float64."""
    return not is_on_host(flat) and widest(flat.device) is torch.float64


def _row_norms(flat: Tensor) -> Tensor:
    """Norms in float32 of rows of `ROW` elements, the rest that fills no row being one more."""
    whole = flat.numel() // ROW * ROW
    kind = None if flat.dtype is torch.float32 else torch.float32
    rows: Tensor = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=kind)
    if whole == flat.numel():
        return rows
    return torch.cat([rows, torch.linalg.vector_norm(flat[whole:], dtype=kind).view(1)])
