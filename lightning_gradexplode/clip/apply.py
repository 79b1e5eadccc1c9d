"""Clipping of gradients in place, for cases in which the training loop does not clip them."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.distributed.shard_layout import local_part
from lightning_gradexplode.measure.parameters import held_by

_is_sparse = operator.attrgetter("is_sparse")


def clip_gradients(
    gradients: Sequence[Tensor | None], threshold: float, algorithm: str, norm: float, scale: float = 1.0
) -> None:
    """Clip gradients in place, as ``torch.nn.utils.clip_grad_norm_`` and ``clip_grad_value_`` do.

    Sparse gradients are clipped too; by value, real and imaginary parts of complex gradients are clipped separately.

    Args:
        gradients: The gradients that the optimizer is about to get.
        threshold: The clip value.
        algorithm: ``"norm"`` or ``"value"``.
        norm: L2 norm of all the gradients, with the scale divided out.
        scale: Factor that the gradients in memory are multiplied by, such as the AMP loss scale.
    """
    # torch refuses lists that mix whole and sharded tensors; each process scales the elements that it holds.
    dense = [local_part(gradient) for gradient in gradients if gradient is not None and not gradient.is_sparse]
    sparse = [gradient for gradient in gradients if gradient is not None and gradient.is_sparse]
    if algorithm == "value":
        limit = threshold * scale
        for gradient in sparse:
            summed = gradient.coalesce()  # entries of the same index add up
            summed._values().clamp_(-limit, limit)
            gradient.copy_(summed)
        dense = [torch.view_as_real(one) if one.is_complex() else one for one in dense]
        if dense:
            torch._foreach_clamp_min_(dense, -limit)
            torch._foreach_clamp_max_(dense, limit)
    elif not norm + 1e-6 <= threshold:
        factor = threshold / (norm + 1e-6)
        for gradient in sparse:
            gradient.mul_(factor)
        if dense:
            torch._foreach_mul_(dense, factor)


def torch_refuses(gradients: Sequence[Tensor | None], algorithm: str) -> bool:
    """Return whether torch's own clipping would raise: of sparse gradients, and by value of complex ones."""
    present = [*filter(torch.is_tensor, gradients)]
    return any(map(_is_sparse, present)) or (algorithm == "value" and any(map(torch.is_complex, present)))


def scale_gradients(gradients: Sequence[Tensor], factors: Sequence[float]) -> None:
    """Multiply each gradient by its factor, in place."""
    with torch.no_grad():
        for gradient, factor in zip(gradients, factors, strict=True):
            gradient.mul_(factor)


def clip_by_total_norm(gradients: Sequence[Tensor | None], threshold: float, total: Tensor) -> None:
    """Clip gradients on their device, to the same bits as ``torch.nn.utils.clip_grad_norm_`` with the same norm.

    Args:
        gradients: Dense tensors.
        threshold: The clip value.
        total: L2 norm of these gradients.
    """
    with torch.no_grad():
        factor = torch.clamp(float(threshold) / (total + 1e-6), max=1.0)
        for group in _by_kind([gradient for gradient in gradients if gradient is not None]):
            torch._foreach_mul_(group, factor.to(group[0].device, non_blocking=True))


def clip_on_device(gradients: Sequence[Tensor | None], threshold: Tensor, total: Tensor) -> None:
    """Clip gradients by a norm measured on their device, without waiting for the device or measuring again.

    ``clip_grad_norm_`` sums in the data type of the gradients: its factor may differ in the last bits, and by more for
    half precision.

    Args:
        gradients: Dense tensors, also sharded ones.
        threshold: The clip value, of one element.
        total: L2 norm of these gradients, of one element, of all shards together.
    """
    with torch.no_grad():
        for group in _by_kind([local_part(gradient) for gradient in gradients if gradient is not None]):
            wide = total.dtype if group[0].dtype is torch.float64 else torch.float32
            limit, norm = (one.to(group[0].device, wide, non_blocking=True) for one in (threshold, total))
            torch._foreach_mul_(group, torch.clamp(limit / (norm + 1e-6), max=1.0))


def _by_kind(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors by device and data type: one kernel processes such a list, a mixed list needs one per tensor."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return list(groups.values())


def drop_gradients(optimizer: Optimizer) -> None:
    """Remove all gradients from an optimizer, so that its step changes neither the weights nor its own state."""
    for parameter in held_by(optimizer):
        parameter.grad = None
