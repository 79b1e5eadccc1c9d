"""Tensors of every kind that a gradient may be, and what they hold, computed by plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradexplode.records import BUCKET_EDGES, IntArray

NAN, INF = math.nan, math.inf


class Subclass(Tensor):
    """A tensor of a subclass, as some libraries have; the results of its operations are of that class, too."""


WILD: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.zeros(0),
    "empty matrix": lambda: torch.zeros(3, 0),
    "scalar": lambda: torch.tensor(-2.5),
    "zero": lambda: torch.zeros(7),
    "negative zero": lambda: torch.tensor([-0.0, 0.0, -0.0]),
    "ones": lambda: torch.tensor([1.0, -1.0, 0.9999999, -0.9999999]),
    "subclass": lambda: torch.tensor([[1.0, -2.0], [NAN, 0.5]]).as_subclass(Subclass),
    "NaN": lambda: torch.tensor([1.0, NAN, 2.0]),
    "infinities": lambda: torch.tensor([1.0, INF, -INF]),
    "NaN and infinity": lambda: torch.tensor([NAN, INF, -INF, -NAN, 3.0]),
    "all NaN": lambda: torch.full((4, 3), NAN),
    "1e20": lambda: torch.tensor([1e20, -3e20, 1.0]),
    "largest float32": lambda: torch.tensor([3.4028234e38, -3.4028234e38]),
    "1e-25": lambda: torch.tensor([1e-25, -3e-25]),
    "subnormal": lambda: torch.tensor([1e-42, -1e-45, 1e-40]),
    "huge and tiny": lambda: torch.tensor([1e-30, 1e30, -1e-45]),
    "float64 1e300": lambda: torch.tensor([1e300, -3e300, 1.0], dtype=torch.float64),
    "float64 1e-300": lambda: torch.tensor([1e-300, -3e-300, 1e-310], dtype=torch.float64),
    "float64 wild": lambda: torch.tensor([1e200, NAN, -INF, -0.0, 1.0, 1e-200], dtype=torch.float64),
    "float16": lambda: torch.tensor([65504.0, -1.0, 6e-8, 0.1], dtype=torch.float16),
    "float16 wild": lambda: torch.tensor([NAN, INF, -INF, 1.0], dtype=torch.float16),
    "bfloat16": lambda: torch.tensor([3e38, -1.0, 1e-40, 0.1], dtype=torch.bfloat16),
    "bfloat16 wild": lambda: torch.tensor([NAN, INF, -INF, 1.0], dtype=torch.bfloat16),
    "transposed": lambda: torch.randn(6, 5).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "every other": lambda: torch.randn(9, 8)[::2, 1::3],
    "with an offset": lambda: torch.randn(20)[7:],
    "transposed with an offset": lambda: torch.randn(6, 5)[2:].t(),
    "expanded": lambda: torch.randn(3, 1).expand(3, 4),
    "negated view": lambda: torch.conj(torch.tensor([1 + 2j, 3 - 4j])).imag,
    "parameter": lambda: torch.nn.Parameter(torch.randn(4, 3)),
    "sparse with duplicates": lambda: torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 4], [0, 0, 2]]), torch.tensor([3.0, -1.0, 0.5]), (6, 3)
    ),
    "sparse rows": lambda: torch.sparse_coo_tensor(
        torch.tensor([[2, 0, 2]]), torch.arange(-5.0, 7.0).view(3, 4), (5, 4)
    ),
    "sparse with NaN": lambda: torch.sparse_coo_tensor(torch.tensor([[0, 3]]), torch.tensor([NAN, 1.0]), (5,)),
    "sparse without entries": lambda: torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (5,)
    ),
    "sparse rows (CSR)": lambda: torch.tensor([[0.0, 2.0], [-3.0, 0.0]]).to_sparse_csr(),
    "complex": lambda: torch.tensor([3 + 4j, -0.6 + 0.7j, 1j]),
    "complex transposed": lambda: torch.randn(3, 4, dtype=torch.complex64).t(),
    "complex conjugate": lambda: torch.conj(torch.tensor([3 + 4j, 1 - 2j])),
    "complex wild": lambda: torch.tensor([complex(NAN, 1.0), complex(INF, -INF), 1 + 1j]),
    "complex128": lambda: torch.tensor([3e100 + 4e100j, 1j], dtype=torch.complex128),
}
"""Builders of tensors, by what is wild about them."""

_WIDTHS: dict[torch.dtype, Literal[16, 32, 64]] = {
    torch.float64: 64,
    torch.float32: 32,
    torch.bfloat16: 32,
    torch.float16: 16,
}


@st.composite
def float_tensors(draw: st.DrawFn) -> Tensor:
    """Draw a float tensor of any values, shape, type and layout."""
    dtype = draw(st.sampled_from(list(_WIDTHS)))
    rows, columns = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    size = rows * columns
    values = draw(st.lists(st.floats(width=_WIDTHS[dtype]), min_size=size, max_size=size))
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype).view(rows, columns)
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda whole: whole,
        lambda whole: whole.t(),
        lambda whole: whole[::2],
        lambda whole: whole[:, 1:],
        lambda whole: whole.t()[1::2],
        lambda whole: whole.unsqueeze(1).expand(-1, 2, -1),
    ]
    return draw(st.sampled_from(layouts))(tensor)


def held(tensor: Tensor) -> list[Any]:
    """List the elements that a tensor holds: of a sparse one what it stores, entries at one place added up."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.layout is torch.sparse_csr:
        return list(tensor.values().tolist())
    if tensor.layout is not torch.sparse_coo:
        return list(tensor.flatten().tolist())
    sums: dict[tuple[int, ...], float] = {}
    for place, entry in zip(tensor._indices().t().tolist(), tensor._values(), strict=True):
        for offset, value in enumerate(entry.flatten().tolist()):
            key = (*place, offset)
            sums[key] = sums.get(key, 0.0) + value
    return list(sums.values())


def real_parts(tensor: Tensor) -> list[float]:
    """List the real numbers that a tensor holds, two for a complex element."""
    values = held(tensor)
    return [part for value in values for part in (value.real, value.imag)] if tensor.is_complex() else values


def true_norm(values: list[float]) -> float:
    """Work out an L2 norm with no overflow and no lost digit; NaN wins over infinity."""
    largest = max(map(abs, values), default=0.0)
    if any(math.isnan(value) for value in values):
        return NAN
    if largest == 0.0 or math.isinf(largest):
        return largest
    return largest * math.sqrt(math.fsum((value / largest) ** 2 for value in values))


def true_counts(values: list[float]) -> IntArray:
    """Count finite values between the bucket edges, one on an edge going to the bucket farther from zero."""
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    positive, _ = np.histogram(finite[finite >= 0], BUCKET_EDGES)
    negative, _ = np.histogram(-finite[finite < 0], BUCKET_EDGES)
    counts: IntArray = positive + negative[::-1]
    return counts


def stored_bytes(tensor: Tensor) -> list[bytes]:
    """Read what a tensor stores, bit for bit, so that NaN and the sign of zero count."""
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout is torch.sparse_csr:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    else:
        parts = [tensor.resolve_conj().resolve_neg()]
    return [part.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for part in parts]
