"""The first weight that an update has made non-finite, with what the optimizer computed it from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradexplode.distributed.shard_layout import is_sharded
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import UpdateFault


def find_update_fault(
    module: nn.Module,
    optimizers: Sequence[Any],
    before: Mapping[str, Tensor] | None = None,
    *,
    with_gradient: bool,
) -> UpdateFault | None:
    """Return the first weight that is not finite, and the optimizer's state at its place.

    Args:
        module: The network.
        optimizers: The optimizers, after the update.
        before: The weights before it by name, None if they are not known.
        with_gradient: Whether the gradients in memory are those of that update.

    Returns:
        None if all weights are finite. Sharded and sparse parameters are passed over. Finiteness is read once a
        device.
    """
    names = {id(one): plain_name(name) for name, one in module.named_parameters()}
    held = [(place, one) for place, optimizer in enumerate(optimizers) for one in _parameters(optimizer)]
    faulty = next((held[at] for at in _nonfinite([one for _, one in held])), None)
    if faulty is None:
        return None
    place, parameter = faulty
    name = names.get(id(parameter), "")
    bad = ~torch.isfinite(parameter.detach()).reshape(-1)
    index = int(bad.to(torch.uint8).argmax())
    state = getattr(optimizers[place], "state", {}).get(parameter, {})
    earlier = None if before is None else before.get(name)
    return UpdateFault(
        parameter=name,
        dtype=str(parameter.dtype).removeprefix("torch."),
        optimizer=place,
        element_count=int(bad.sum()),
        weight=_at(parameter, index),
        weight_before=None if earlier is None else _at(earlier, index),
        gradient=_at(parameter.grad, index) if with_gradient and parameter.grad is not None else None,
        state={key: number for key, one in state.items() if (number := _state_at(one, parameter, index)) is not None},
    )


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    for group in getattr(optimizer, "param_groups", ()):
        yield from group["params"]


def _nonfinite(tensors: Sequence[Tensor]) -> list[int]:
    """Return the places of the tensors that are not finite, in order."""
    flags: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for at, one in enumerate(tensors):
        if one.layout is torch.strided and not one.is_meta and not is_sharded(one):
            flags.setdefault(one.device, []).append((at, torch.isfinite(one.detach()).all()))
    read = ((at, flag) for each in flags.values() for at, flag in _read(each))
    return sorted(at for at, is_finite in read if not is_finite)


def _read(flags: list[tuple[int, Tensor]]) -> list[tuple[int, bool]]:
    places, tensors = zip(*flags, strict=True)
    return list(zip(places, torch.stack(tensors).tolist(), strict=True))


def _state_at(value: Any, parameter: Tensor, index: int) -> float | None:
    """Return a number of an optimizer's state: at the place of a weight, or of the whole parameter."""
    if isinstance(value, Tensor) and value.layout is torch.strided:
        if value.shape == parameter.shape:
            return _at(value, index)
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, (int, float)) else None


def _at(tensor: Tensor, index: int) -> float | None:
    if tensor.layout is not torch.strided:
        return None
    element = tensor.detach().reshape(-1)[index]
    return float(element.abs() if element.is_complex() else element)
