"""Histograms by the bits of a float: sign, exponent and the top two bits of the mantissa are the bucket's number.

A float32 shifted right by 21 bits *is* its bucket, so that a histogram is one shift and one ``bincount``: exact, with
the same buckets for every tensor, step and process, and with 1.0, zero and the non-finite values on borders. Four
million elements take 4.5 ms on two cores; ``torch.histc`` takes 13 to 16 and fails on NaN, ``numpy.histogram`` 26,
and ``SummaryWriter.add_histogram`` 170.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import chunks, flat_elements
from lightning_gradexplode.records import BUCKET_EDGES, Histogram, IntArray

_CODES = 2048  # sign, 8 bits of exponent, 2 bits of mantissa
_WIDE_CODES = 16384  # sign, 11 bits of exponent, 2 bits of mantissa
_SUBNORMAL = 4  # codes below this one are zero and float32's subnormal numbers
_NONFINITE = 1020  # codes of one sign from this one on are infinite or NaN


def measure_histogram(tensor: Tensor, divisor: float = 1.0) -> Histogram:
    """Count a tensor's elements into the buckets of `lightning_gradexplode.records.BUCKET_EDGES`.

    Args:
        tensor: Any floating or complex tensor that `flat_elements` takes; integers are taken as float32.
        divisor: What the elements are divided by first: the scale of a gradient scaler.
    """
    flat = flat_elements(tensor)
    if not flat.dtype.is_floating_point:
        flat = flat.float()
    wide = flat.dtype is torch.float64
    total = np.zeros(_WIDE_CODES if wide else _CODES, dtype=np.int64)
    for chunk in chunks(flat):
        total += _count_codes(chunk if divisor == 1.0 else chunk / divisor)
    return _from_codes(_folded(total) if wide else total)


def _count_codes(chunk: Tensor) -> IntArray:
    """Count the codes of a flat floating tensor; of float64 the wide ones."""
    if chunk.dtype is torch.float64:
        # Shifting an integer keeps its sign, so the mask brings negative values behind the positive ones.
        codes = (chunk.contiguous().view(torch.int64) >> 50) & (_WIDE_CODES - 1)
    elif chunk.dtype is torch.bfloat16:
        codes = (chunk.contiguous().view(torch.int16) >> 5) & (_CODES - 1)
    else:
        codes = (chunk.float().contiguous().view(torch.int32) >> 21) & (_CODES - 1)
    size = _WIDE_CODES if chunk.dtype is torch.float64 else _CODES
    counts: IntArray = torch.bincount(codes, minlength=size).cpu().numpy()
    return counts


def _folded(wide: IntArray) -> IntArray:
    """Bring counts by float64's codes to float32's: what is out of range goes to the outermost or the middle bucket."""
    half = _WIDE_CODES // 2
    magnitude = np.arange(half)
    offset = (1023 - 127) * 4  # the exponents' biases differ
    narrow = np.clip(magnitude - offset, 0, _NONFINITE - 1)
    narrow[2047 * 4 :] = _NONFINITE
    counts = np.zeros(_CODES, dtype=np.int64)
    for sign in (0, 1):
        np.add.at(counts, narrow + sign * (_CODES // 2), wide[sign * half : (sign + 1) * half])
    return counts


def _from_codes(codes: IntArray) -> Histogram:
    """Put counts by code into the ascending order of the buckets."""
    half = _CODES // 2
    positive, negative = codes[:half], codes[half:]
    counts = np.zeros(len(BUCKET_EDGES) - 1, dtype=np.int64)
    middle = len(counts) // 2
    counts[middle] = positive[:_SUBNORMAL].sum() + negative[:_SUBNORMAL].sum()
    counts[middle + 1 :] = positive[_SUBNORMAL:_NONFINITE]
    counts[:middle] = negative[_SUBNORMAL:_NONFINITE][::-1]
    return Histogram(counts, int(positive[_NONFINITE:].sum() + negative[_NONFINITE:].sum()))
