"""Histograms by the bits of a float: sign, exponent and the top two bits of the mantissa are the bucket's number.

A float32 shifted right by 21 bits *is* its bucket, so that a histogram is one shift and one ``bincount``: exact, with
the same buckets for every tensor, step and process, and with 1.0, zero and the non-finite values on borders. On a
processor numpy shifts into 16 bits, of which ``torch.bincount`` takes a quarter less time than of 32: four million
elements took 4.6 ms; ``torch.histc`` took 13 to 16 and fails on NaN, ``numpy.histogram`` 26, and
``SummaryWriter.add_histogram`` 170.

On an accelerator ``bincount`` would wait for the device at every call, since its result is as long as the largest code
requires. There ``histc`` counts the codes, which are whole numbers, and all counts are read at once. It needs 8 bytes
for each float32 element, where ``scatter_add_`` would need 12, and adds in the fast memory of each part of a GPU, where
``scatter_add_`` would have all of them add to the same few numbers (read in the kernels' source; not measured yet:
``python -m benchmarks.overhead --device cuda`` compares the three).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.records import BUCKET_EDGES, Histogram, IntArray

_CODES = 2048  # sign, 8 bits of exponent, 2 bits of mantissa
_WIDE_CODES = 16384  # sign, 11 bits of exponent, 2 bits of mantissa
_SUBNORMAL = 4  # codes below this one are zero and float32's subnormal numbers
_NONFINITE = 1020  # codes of one sign from this one on are infinite or NaN
_CODED: dict[torch.dtype, tuple[torch.dtype, Any, int]] = {
    torch.bfloat16: (torch.int16, np.uint16, 5),
    torch.float32: (torch.int32, np.uint32, 21),
    torch.float64: (torch.int64, np.uint64, 50),
}
"""Types whose bits hold their code: as which integers torch and numpy see them, and how far those are shifted."""

_PIECE = 1 << 18
"""Elements that a processor counts by one call; their codes stay in its cache meanwhile."""
_SMALL = 1 << 14
"""Largest number of elements of a tensor that is counted together with others."""
_TOGETHER = 64
"""So many small tensors are counted together."""
_DEVICE_PIECE = 1 << 22
"""Elements that an accelerator counts by one call: float32 holds the counts exactly up to four times as many."""


def measure_histograms(tensors: Sequence[Tensor], divisor: float = 1.0) -> list[Histogram]:
    """Count each tensor's elements into the buckets of `lightning_gradexplode.records.BUCKET_EDGES`.

    Args:
        tensors: Floating or complex tensors that `flat_elements` takes; integers are taken as float32.
        divisor: What the elements are divided by first: the scale of a gradient scaler.

    Returns:
        The histograms, in the order of the tensors.
    """
    with torch.no_grad():
        flats = [flat_elements(tensor) for tensor in tensors]
        on_host = all(map(reading.is_on_host, flats))
        counts = _counts_on_host(flats, divisor) if on_host else _counts_on_device(flats, divisor)
    return _from_codes(counts)


def measure_histogram(tensor: Tensor, divisor: float = 1.0) -> Histogram:
    """Count one tensor's elements, as `measure_histograms` does."""
    return measure_histograms([tensor], divisor)[0]


def _counts_on_host(flats: Sequence[Tensor], divisor: float) -> IntArray:
    """Count codes, a row for each flat tensor."""
    counts = np.zeros((len(flats), _CODES), dtype=np.int64)
    small = [row for row, flat in enumerate(flats) if flat.dtype is torch.float32 and 0 < flat.numel() <= _SMALL]
    for start in range(0, len(small), _TOGETHER):
        rows = small[start : start + _TOGETHER]
        counts[rows] = _count_together([flats[row] for row in rows], divisor)
    for row in set(range(len(flats))).difference(small):
        for piece in torch.split(flats[row], _PIECE) if flats[row].numel() else ():
            counts[row] += _count(piece, divisor)
    return counts


def _count_together(flats: Sequence[Tensor], divisor: float) -> IntArray:
    """Count the codes of small float32 tensors, for a call for each would cost more than the counting."""
    together = _prepared(_flatten_dense_tensors(flats), divisor)  # type: ignore[no-untyped-call]
    codes = together.numpy().view(np.uint32) >> 21
    codes += np.repeat(np.arange(0, len(flats) * _CODES, _CODES, dtype=np.uint32), [flat.numel() for flat in flats])
    counts = torch.bincount(torch.from_numpy(codes.view(np.int32)), minlength=len(flats) * _CODES)
    table: IntArray = counts.numpy().reshape(len(flats), _CODES)
    return table


def _count(piece: Tensor, divisor: float) -> IntArray:
    """Count the codes of some elements of a flat tensor."""
    values = _prepared(piece, divisor)
    as_integer, unsigned, shift = _CODED[values.dtype]
    bits = values.view(as_integer).numpy().view(unsigned)
    codes = np.empty(len(bits), dtype=np.uint16)
    np.right_shift(bits, shift, out=codes, casting="unsafe")  # of unsigned numbers, so that no mask is needed
    counts: IntArray = torch.bincount(torch.from_numpy(codes.view(np.int16)), minlength=_size(values)).numpy()
    return _folded(counts)


def _counts_on_device(flats: Sequence[Tensor], divisor: float) -> IntArray:
    """Count codes, a row for each flat tensor, with one read from the device."""
    tables = []
    for flat in flats:
        table = torch.zeros(_size(flat), dtype=torch.int64, device=flat.device)
        for piece in torch.split(flat, _DEVICE_PIECE) if flat.numel() else ():
            table += _count_on_device(_prepared(piece, divisor), len(table))
        tables.append(table)
    together = torch.cat([table.to(tables[0].device) for table in tables]).cpu().numpy()
    ends = np.cumsum([len(table) for table in tables])
    return np.stack([_folded(one) for one in np.split(together, ends[:-1])])


def _count_on_device(values: Tensor, size: int) -> Tensor:
    """Count the codes of some elements on their device."""
    as_integer, _, shift = _CODED[values.dtype]
    codes = values.view(as_integer) >> shift
    codes &= size - 1  # shifting an integer keeps its sign: this brings negative values behind the positive ones
    if not torch.are_deterministic_algorithms_enabled():
        return torch.histc(codes.float(), size, 0, size).long()
    # These forbid ``histc``, although the order in which whole numbers are added does not matter.
    one = torch.ones((), dtype=torch.int64, device=values.device)
    return one.new_zeros(size).scatter_add_(0, codes.long(), one.expand(len(codes)))


def _prepared(piece: Tensor, divisor: float) -> Tensor:
    """Return the elements, divided, in a type whose bits hold their code."""
    if piece.dtype not in _CODED or (divisor != 1.0 and piece.dtype is torch.bfloat16):
        piece = piece.float()  # divided in half precision they would underflow
    return (piece if divisor == 1.0 else piece / divisor).contiguous()


def _size(values: Tensor) -> int:
    return _WIDE_CODES if values.dtype is torch.float64 else _CODES


def _folded(counts: IntArray) -> IntArray:
    """Map counts by float64's codes to float32's; the outermost and middle buckets include what is out of range."""
    if len(counts) == _CODES:
        return counts
    half = _WIDE_CODES // 2
    magnitude = np.arange(half)
    offset = (1023 - 127) * 4  # the exponents' biases differ
    narrow = np.clip(magnitude - offset, 0, _NONFINITE - 1)
    narrow[2047 * 4 :] = _NONFINITE
    folded = np.zeros(_CODES, dtype=np.int64)
    for sign in (0, 1):
        np.add.at(folded, narrow + sign * (_CODES // 2), counts[sign * half : (sign + 1) * half])
    return folded


def _from_codes(codes: IntArray) -> list[Histogram]:
    """Sort counts by code, a row for each tensor, into the ascending order of the buckets."""
    half = _CODES // 2
    positive, negative = codes[:, :half], codes[:, half:]
    counts = np.empty((len(codes), len(BUCKET_EDGES) - 1), dtype=np.int64)
    middle = counts.shape[1] // 2
    counts[:, middle] = positive[:, :_SUBNORMAL].sum(axis=1) + negative[:, :_SUBNORMAL].sum(axis=1)
    counts[:, middle + 1 :] = positive[:, _SUBNORMAL:_NONFINITE]
    counts[:, :middle] = negative[:, _SUBNORMAL:_NONFINITE][:, ::-1]
    nonfinite = positive[:, _NONFINITE:].sum(axis=1) + negative[:, _NONFINITE:].sum(axis=1)
    return [Histogram(row, int(count)) for row, count in zip(counts, nonfinite, strict=True)]
