"""One view of every kind of tensor: a flat, real, strided one with the elements that this process holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

CHUNK = 1 << 18
"""Elements handled at a time where a temporary is needed: small enough to stay in a processor's cache."""


PLAIN_TYPES = (Tensor, nn.Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Tell whether torch's kernels take the tensor as it is: real, dense and whole in this process."""
    return type(tensor) in PLAIN_TYPES and tensor.layout is torch.strided and not tensor.is_complex()


def flat_elements(tensor: Tensor) -> Tensor:
    """View a tensor's elements as one flat real tensor, in any order, without a copy where that is possible.

    Args:
        tensor: Dense, sparse (its stored values count; duplicates are added up first), complex (real and imaginary
            parts side by side, which keeps the L2 norm) or distributed (the elements that this process holds).

    Returns:
        A real tensor of shape ``(n,)`` without gradient history.
    """
    tensor = tensor.detach()
    if is_plain(tensor) and tensor.is_contiguous():  # as nearly always
        return tensor.view(-1)
    if hasattr(tensor, "_local_tensor"):  # a DTensor; asking by name spares the import of torch.distributed
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    if tensor.layout is not torch.strided:
        tensor = stored_values(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_contiguous():
        return tensor.view(-1)
    if _fills_its_storage(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def stored_values(tensor: Tensor) -> Tensor:
    """Give the values that a sparse tensor stores, with several entries at one place added up."""
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    return tensor.values()


def chunks(flat: Tensor) -> Iterator[Tensor]:
    """Split a flat tensor into pieces of at most `CHUNK` elements; an empty one gives nothing."""
    return iter(torch.split(flat, CHUNK)) if flat.numel() else iter(())


def _fills_its_storage(tensor: Tensor) -> bool:
    """Tell whether a tensor's elements lie in one gapless block of memory, as those of a transposed matrix do."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
