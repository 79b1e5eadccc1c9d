"""Buffers that a forward pass has made NaN or infinite, such as the running averages of batch normalization."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradexplode.distributed.shard_layout import local_part
from lightning_gradexplode.measure.reading import PendingRead

INTERVAL = 16
"""Number of steps from one look at running averages to the next."""

Place = tuple[nn.Module, str, str]
"""A module, its name, and the name of one of its buffers."""


class BufferCopies:
    """Keeps the buffers that training changes as they were after the last step, if it left them finite.

    A held-back update leaves the weights as they are; the forward pass has written its running averages already.

    All buffers are copied at the start. After the first step those that it has not changed are dropped, except
    running averages of normalization, which may be frozen at first. From then on a step costs one copy of the
    others.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copies: dict[Place, Tensor] = {}
        self._finite: dict[Place, bool] = {}
        self._is_settled = False

    def start(self) -> None:
        """Copy all buffers, at the start of a fit."""
        with torch.no_grad():
            places = _places(self._module)
            self._copies = {place: local_part(_tensor(place)).clone() for place in places}
            self._finite = {place: is_finite(_tensor(place)) for place in places}
        self._is_settled = False

    def clear(self) -> None:
        """Drop all copies."""
        self._copies, self._finite = {}, {}

    def update(self) -> None:
        """Copy the buffers, at the end of a step."""
        with torch.no_grad():
            if not self._is_settled:
                self._is_settled = True
                self._copies = {place: copy for place, copy in self._copies.items() if _changes(place, copy)}
            alike: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for place, copy in self._copies.items():
                local = local_part(_tensor(place))
                if _is_alike(copy, local):
                    alike[copy.dtype].append((copy, local))
                else:
                    self._copies[place] = local.clone()
            for pairs in alike.values():
                torch._foreach_copy_([copy for copy, _ in pairs], [local for _, local in pairs])

    def restore(self) -> tuple[list[str], list[str]]:
        """Restore the buffers of each module of which one is not finite.

        Returns:
            Names of the buffers that were not finite and are restored, and of those that are not finite still, since
            there is no copy of them.
        """
        restored: list[str] = []
        lost: list[str] = []
        with torch.no_grad():
            places = _places(self._module)
            bad = [place for place in places if not is_finite(_tensor(place)) and self._is_wrong(place)]
            for module in dict.fromkeys(module for module, _, _ in bad):
                for place in places:
                    if place[0] is module and place in self._copies:
                        _restore(_tensor(place), self._copies[place])
            for place in bad:
                (restored if is_finite(_tensor(place)) else lost).append(_name(place))
        return restored, lost

    def _is_wrong(self, place: Place) -> bool:
        """Return whether a buffer should be finite: not a mask of infinities, there at the start or made later."""
        is_average = hasattr(place[0], "running_mean")
        return self._finite.get(place, is_average or bool(torch.isnan(local_part(_tensor(place))).any()))


class RunningAverages:
    """Finds running averages of normalization that are not finite, although loss and gradients may be.

    In training a layer divides by the deviation of the batch, so that an average which has overflowed shows in
    validation first, and stays infinite for ever. The averages are looked at every `INTERVAL` steps. They are copied
    then where they may be restored, and a copy counts once it is known to be finite.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._steps = 0
        self._known: dict[Place, Tensor] = {}
        self._new: dict[Place, Tensor] = {}
        self._pending: PendingRead | None = None

    def look(self, copies: bool, now: bool = False) -> list[str]:
        """Check the averages if they are due, at the end of a step.

        On an accelerator their norms are read at the next time, by when they have arrived.

        Args:
            copies: Whether they may be restored.
            now: Whether it is time in any case, and the host may wait.

        Returns:
            Names of those that are not finite, or were not at the last look.
        """
        self._steps += 1
        if not now and self._steps % INTERVAL:
            return []
        with torch.no_grad():
            places = self._places()
            if not places:
                return []
            if self._pending is not None and self._arrived():
                return self._names()
            tensors = [local_part(_tensor(place)) for place in places]
            self._new = {place: one.clone() for place, one in zip(places, tensors, strict=True)} if copies else {}
            self._pending = PendingRead(torch._foreach_norm(tensors))
            return self._names() if (now or self._pending.is_there) and self._arrived() else []

    def restore(self) -> bool:
        """Restore the averages from the last copy that was finite, and return whether there is one of each."""
        with torch.no_grad():
            places = self._places()
            for place in places:
                if place in self._known:
                    _restore(_tensor(place), self._known[place])
            return all(is_finite(_tensor(place)) for place in places)

    def clear(self) -> None:
        """Drop all copies."""
        self._known, self._new, self._pending = {}, {}, None

    def _arrived(self) -> bool:
        """Read the norms of the last look, and return whether one is not finite."""
        assert self._pending is not None
        is_finite = bool(np.isfinite(self._pending.values()).all())
        if is_finite:
            self._known = self._new
        self._new, self._pending = {}, None
        return not is_finite

    def _names(self) -> list[str]:
        return [_name(place) for place in self._places() if not is_finite(_tensor(place))]

    def _places(self) -> list[Place]:
        return [place for place in _places(self._module) if place[2] in ("running_mean", "running_var")]


def _places(module: nn.Module) -> list[Place]:
    """Return where the buffers of a network are, each tensor once, without those that hold no plain numbers yet."""
    seen: set[int] = set()
    places = []
    for name, one in module.named_modules():
        for key, tensor in one._buffers.items():
            if tensor is not None and _is_plain(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                places.append((one, name, key))
    return places


def _name(place: Place) -> str:
    return f"{place[1]}.{place[2]}".lstrip(".")


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return is_dense and not is_lazy(tensor)


def _tensor(place: Place) -> Tensor:
    module, _, key = place
    tensor = module._buffers.get(key)
    return torch.zeros(0) if tensor is None else tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether all elements of a tensor, or of the part of it that this process holds, are finite."""
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return not is_number or bool(torch.isfinite(local_part(tensor)).all())


def _restore(tensor: Tensor, copy: Tensor) -> None:
    local = local_part(tensor)
    if _is_alike(copy, local):
        local.copy_(copy)


def _changes(place: Place, copy: Tensor) -> bool:
    local = local_part(_tensor(place))
    return hasattr(place[0], "running_mean") or not (_is_alike(copy, local) and torch.equal(copy, local))


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
