"""Copies of the weights from before an update, from which its step can be computed again afterwards."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradexplode.distributed.shard_layout import local_part
from lightning_gradexplode.measure.parameters import plain_name

WEIGHT_BYTES = 256 << 20
"""Largest total size of parameters and buffers of which a copy is kept, in bytes."""

RESERVE = 4
"""Free memory that an accelerator must have for a copy, in multiples of the size of the copy."""


def keep_weights(module: nn.Module, most_bytes: int = WEIGHT_BYTES) -> dict[str, Tensor] | None:
    """Copy the parameters and buffers of a module.

    Args:
        module: The module.
        most_bytes: Size up to which they are copied.

    Returns:
        The copies by name; None where they are too large, memory is short, or some have no shape yet.
    """
    named = dict(chain(module.named_parameters(), module.named_buffers()))
    if any(map(is_lazy, named.values())):
        return None
    tensors = {plain_name(name): one.detach() for name, one in named.items()}
    size = sum(one.numel() * one.element_size() for one in tensors.values())
    if size > most_bytes or any(one.is_meta for one in tensors.values()):
        return None
    for device in {one.device for one in tensors.values() if one.device.type == "cuda"}:
        if torch.cuda.mem_get_info(device)[0] < RESERVE * size:
            return None
    return {name: one.clone() for name, one in tensors.items()}


def checksums(module: nn.Module) -> tuple[float, ...]:
    """Return a number for each parameter, buffer and gradient, by which a change is detected; one read per device."""
    tensors: dict[torch.device, list[Tensor]] = {}
    for one in chain(module.parameters(), module.buffers(), (each.grad for each in module.parameters())):
        if one is not None and one.layout is torch.strided and not one.is_meta:
            tensors.setdefault(one.device, []).append(local_part(one.detach()))
    sums = [torch.stack([_sum(one) for one in each]) for each in tensors.values()]
    return tuple(number for each in sums for number in each.tolist())


def _sum(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    total = real.sum() if real.is_floating_point() else real.long().sum()
    return total.float().nan_to_num()
