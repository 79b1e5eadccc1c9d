"""Which elements of a tensor are not finite, and the record of an argument of an operation."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gradexplode.records import Operand


def plain(tensor: Tensor) -> Tensor | None:
    """Return the elements of a tensor as a strided real tensor, None where they cannot be non-finite or are none."""
    tensor = unwrapped(tensor)
    if tensor.is_sparse:
        tensor = tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc) or tensor.is_nested:
        tensor = tensor.values()
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return None
    tensor = tensor.detach()
    return tensor.float() if tensor.element_size() == 1 else tensor


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor that holds the elements, inside of ``torch.vmap`` and the like."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def all_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite."""
    try:
        values = plain(tensor)
    except (RuntimeError, NotImplementedError):  # a layout that cannot be looked into
        return True
    if values is None:
        return True
    # A finite sum has finite terms only, and costs a tenth of looking at each element.
    total = values.sum(dtype=torch.float32) if values.element_size() == 2 else values.sum()
    return math.isfinite(total.item()) or bool(torch.isfinite(values).all())


def has_nan(tensor: Tensor) -> bool:
    """Return whether an element is NaN."""
    values = plain(tensor)
    return values is not None and bool(torch.isnan(values).any())


def kind_of(tensor: Tensor) -> Literal["nan", "inf", "-inf"]:
    """Return ``"nan"``, ``"inf"`` or ``"-inf"``, the first of them that a non-finite tensor holds."""
    values = plain(tensor)
    if values is None or bool(torch.isnan(values).any()):
        return "nan"
    return "inf" if bool((values == torch.inf).any()) else "-inf"


def storage_key(tensor: Tensor) -> int | None:
    """Return the address of the tensor's storage, None for a tensor that has none of its own."""
    try:
        tensor = unwrapped(tensor)
        if tensor.is_sparse:
            tensor = tensor._values()
        elif tensor.layout is not torch.strided:
            tensor = tensor.values()
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, AttributeError):
        return None


def storage_bytes(tensor: Tensor) -> int:
    """Return the size of the tensor's storage, 0 for a tensor that has none of its own."""
    try:
        return int(tensor.untyped_storage().nbytes())
    except (NotImplementedError, RuntimeError):
        return 0


def is_in_memory(tensor: Tensor) -> bool:
    """Return whether the memory of a tensor's elements exists; True for layouts other than the strided one.

    Between its uses, a whole parameter of FSDP is a tensor whose storage is empty; to read it would end the process.
    """
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return not tensor.is_meta
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return storage_bytes(tensor) >= (tensor.storage_offset() + last + 1) * tensor.element_size()


def nonfinite_mask(tensor: Tensor) -> Tensor | None:
    """Return where a strided tensor is not finite, None for other layouts."""
    tensor = unwrapped(tensor)
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    return ~torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor)


def first_place(mask: Tensor | None) -> tuple[int, ...] | None:
    """Return the index of the first true element, None if there is none."""
    if mask is None or not mask.numel() or not bool(mask.any()):
        return None
    place = int(mask.flatten().to(torch.uint8).argmax())
    index: list[int] = []
    for size in reversed(mask.shape):
        index.append(place % size)
        place //= size
    return tuple(reversed(index))


def operand(tensor: Tensor, place: tuple[int, ...] | None, shape: torch.Size) -> Operand:
    """Record a tensor.

    Args:
        tensor: An argument of an operation.
        place: Index of the first non-finite element of the operation's result.
        shape: Shape of that result.
    """
    described: dict[str, Any] = {"shape": tuple(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    with suppress(RuntimeError, NotImplementedError, TypeError):  # types and layouts without these operations
        described |= _range(unwrapped(tensor))
        described["at_fault"] = _element(unwrapped(tensor), place, shape)
    return Operand(**described)


def _range(tensor: Tensor) -> dict[str, Any]:
    values = plain(tensor)
    if values is None:
        values = tensor.detach().to(torch.int64) if tensor.numel() and not tensor.is_complex() else None
    if values is None:
        return {}
    nan_count = inf_count = 0
    if values.is_floating_point():
        finite = torch.isfinite(values)
        nan_count = int(torch.isnan(values).sum())
        inf_count = values.numel() - int(finite.sum()) - nan_count
        values = values[finite]
    ends = {"least": float(values.min()), "greatest": float(values.max())} if values.numel() else {}
    return {"nan_count": nan_count, "inf_count": inf_count, **ends}


def _element(tensor: Tensor, place: tuple[int, ...] | None, shape: torch.Size) -> float | None:
    """Return the element at a place of a result, where the tensor has the result's shape or is expanded to it."""
    if place is None or tensor.layout is not torch.strided or tensor.dim() > len(shape):
        return None
    trailing = shape[len(shape) - tensor.dim() :]
    if any(mine not in (1, other) for mine, other in zip(tensor.shape, trailing, strict=True)):
        return None
    index = place[len(shape) - tensor.dim() :]
    element = tensor.detach()[tuple(0 if size == 1 else at for size, at in zip(tensor.shape, index, strict=True))]
    return abs(complex(element.item())) if tensor.is_complex() else float(element)
