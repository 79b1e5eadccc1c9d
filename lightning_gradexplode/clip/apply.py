"""Acting on gradients directly, where the trainer does not do it for us."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


def clip_gradients(
    gradients: Sequence[Tensor | None], threshold: float, algorithm: str, norm: float, scale: float = 1.0
) -> None:
    """Clip gradients in place, as ``torch.nn.utils.clip_grad_norm_`` and ``clip_grad_value_`` do.

    Args:
        gradients: What the optimizer is about to be handed.
        threshold: The clip value.
        algorithm: ``"norm"`` or ``"value"``.
        norm: L2 norm of all the gradients, with the scale divided out.
        scale: What the gradients in memory are still multiplied by.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return
    if algorithm == "value":
        torch._foreach_clamp_min_(present, -threshold * scale)
        torch._foreach_clamp_max_(present, threshold * scale)
    elif not norm + 1e-6 <= threshold:
        torch._foreach_mul_(present, threshold / (norm + 1e-6))


def scale_gradients(gradients: Sequence[Tensor], factors: Sequence[float]) -> None:
    """Multiply each gradient by a factor of its own, in place."""
    with torch.no_grad():
        for gradient, factor in zip(gradients, factors, strict=True):
            gradient.mul_(factor)


def clip_by_total_norm(gradients: Sequence[Tensor | None], threshold: float, total: Tensor) -> None:
    """Clip gradients by a norm that torch has measured, to the same bits as ``torch.nn.utils.clip_grad_norm_``.

    Args:
        gradients: Dense tensors on one device.
        threshold: The clip value.
        total: What ``torch.nn.utils.get_total_norm`` gives for these gradients.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    with torch.no_grad():
        torch._foreach_mul_(present, torch.clamp(float(threshold) / (total + 1e-6), max=1.0))


def drop_gradients(optimizer: Optimizer) -> None:
    """Take all gradients from an optimizer, so that its step changes neither the weights nor its own state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
