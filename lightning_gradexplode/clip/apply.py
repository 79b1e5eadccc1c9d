"""Operations on gradients in place, where the training loop does not clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


def clip_gradients(
    gradients: Sequence[Tensor | None], threshold: float, algorithm: str, norm: float, scale: float = 1.0
) -> None:
    """Clip gradients in place, as ``torch.nn.utils.clip_grad_norm_`` and ``clip_grad_value_`` do; also sparse ones.

    Args:
        gradients: The gradients that the optimizer is about to get.
        threshold: The clip value.
        algorithm: ``"norm"`` or ``"value"``.
        norm: L2 norm of all the gradients, with the scale divided out.
        scale: What the gradients in memory are still multiplied by.
    """
    dense = [gradient for gradient in gradients if gradient is not None and not gradient.is_sparse]
    sparse = [gradient for gradient in gradients if gradient is not None and gradient.is_sparse]
    if algorithm == "value":
        limit = threshold * scale
        for gradient in sparse:
            summed = gradient.coalesce()  # entries of the same index add up
            summed._values().clamp_(-limit, limit)
            gradient.copy_(summed)
        if dense:
            torch._foreach_clamp_min_(dense, -limit)
            torch._foreach_clamp_max_(dense, limit)
    elif not norm + 1e-6 <= threshold:
        factor = threshold / (norm + 1e-6)
        for gradient in sparse:
            gradient.mul_(factor)
        if dense:
            torch._foreach_mul_(dense, factor)


def has_sparse(gradients: Sequence[Tensor | None]) -> bool:
    """Return whether any gradient is sparse, so that torch's own clipping would raise."""
    return any(gradient is not None and gradient.is_sparse for gradient in gradients)


def scale_gradients(gradients: Sequence[Tensor], factors: Sequence[float]) -> None:
    """Multiply each gradient by its factor, in place."""
    with torch.no_grad():
        for gradient, factor in zip(gradients, factors, strict=True):
            gradient.mul_(factor)


def clip_by_total_norm(gradients: Sequence[Tensor | None], threshold: float, total: Tensor) -> None:
    """Clip gradients by a norm that torch has measured, to the same bits as ``torch.nn.utils.clip_grad_norm_``.

    Args:
        gradients: Dense tensors on one device.
        threshold: The clip value.
        total: What ``torch.nn.utils.get_total_norm`` returned for these gradients.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    with torch.no_grad():
        torch._foreach_mul_(present, torch.clamp(float(threshold) / (total + 1e-6), max=1.0))


def drop_gradients(optimizer: Optimizer) -> None:
    """Remove all gradients from an optimizer, so that its step changes neither the weights nor its own state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
