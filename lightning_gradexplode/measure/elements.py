"""One view of every kind of tensor: flat, real, strided, with the elements that this process holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_gradexplode.distributed.shard_layout import has_own_operations, is_sharded, local_part

CHUNK = 1 << 18
"""Elements processed at a time where a temporary is needed, so that it fits into a processor's cache."""


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, real and floating, no subclass and no lazily negated view."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and not tensor.is_neg()
    )


def flat_elements(tensor: Tensor) -> Tensor:
    """View the elements of a tensor as one flat real tensor, in any order, without a copy where possible.

    Args:
        tensor: Dense, sparse (its stored values, duplicates added up), complex (real and imaginary parts as two
            elements, which keeps the L2 norm), sharded (the elements that this process holds) or of integers.

    Returns:
        A plain contiguous tensor of shape ``(n,)`` without gradient history.

    Raises:
        TypeError: It is a subclass that implements operations itself, so that its memory may not hold its elements.
    """
    tensor = tensor.detach()
    if is_plain(tensor) and tensor.is_contiguous():
        return tensor.view(-1)
    if is_sharded(tensor):
        tensor = local_part(tensor)
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
    if tensor.layout is not torch.strided:
        tensor = tensor.values()
    if type(tensor) is not Tensor:
        tensor = _without_subclass(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    elif not tensor.is_floating_point():
        tensor = tensor.float()
    tensor = tensor.resolve_neg()
    if not tensor.is_contiguous() and _is_gapless(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def chunks(flat: Tensor) -> Iterator[Tensor]:
    """Split a flat tensor into pieces of at most `CHUNK` elements, none of them empty."""
    return iter(torch.split(flat, CHUNK)) if flat.numel() else iter(())


def _without_subclass(tensor: Tensor) -> Tensor:
    """View a tensor of a subclass as a plain one, without a call of the subclass's own code."""
    if has_own_operations(tensor):
        raise TypeError(f"tensors of the type {type(tensor).__name__} cannot be measured")
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _is_gapless(tensor: Tensor) -> bool:
    """Return whether the elements fill one block of memory, as those of a transposed matrix do."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
