"""Buffers that a forward pass has made NaN or infinite, such as the running averages of batch normalization."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradexplode.distributed.shard_layout import local_part, version_of
from lightning_gradexplode.measure.reading import PendingRead

INTERVAL = 16
"""Number of steps between two checks of running averages."""

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
        averages: Returns modules whose buffers are averages of those of the network, by name.
    """

    def __init__(self, module: nn.Module, averages: Callable[[], Mapping[str, nn.Module]] = dict) -> None:
        self._module = module
        self._averages = averages
        self._copies: dict[Place, Tensor] = {}
        self._older: dict[Place, Tensor] = {}
        self._finite: dict[Place, bool] = {}
        self._is_settled = False

    def start(self) -> None:
        """Copy all buffers, at the start of a fit."""
        with torch.no_grad():
            places = self._places()
            self._copies = {place: local_part(_tensor(place)).clone() for place in places}
            self._finite = {place: is_finite(_tensor(place)) for place in places}
        self._is_settled = False

    def clear(self) -> None:
        """Drop all copies."""
        self._copies, self._older, self._finite = {}, {}, {}

    def update(self, keeps_last: bool = False) -> None:
        """Copy the buffers, at the end of a step.

        Args:
            keeps_last: Whether the copies of the step before are kept too, since it is not known yet whether this step
                has left the buffers finite.
        """
        with torch.no_grad():
            if keeps_last and self._is_settled:
                self._copies, self._older = self._older or _cloned(self._copies), self._copies
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
            places = self._places()
            bad = [place for place in places if self._is_spoiled(place, local_part(_tensor(place)))]
            for module in dict.fromkeys(module for module, _, _ in bad):
                copies = self._finite_copies([place for place in places if place[0] is module])
                for place, copy in copies.items():
                    _restore(_tensor(place), copy)
            for place in bad:
                (restored if is_finite(_tensor(place)) else lost).append(_name(place))
        return restored, lost

    def lost(self) -> list[str]:
        """Return the names of the buffers of the network that are not finite but should be."""
        with torch.no_grad():
            places = _places(self._module)
            return [_name(place) for place in places if self._is_spoiled(place, local_part(_tensor(place)))]

    def _places(self) -> list[Place]:
        averages = [place for name, one in self._averages().items() for place in _places(one, name)]
        return [*_places(self._module), *averages]

    def _finite_copies(self, places: list[Place]) -> dict[Place, Tensor]:
        """Return the last copies of the buffers of a module that were finite where they should be."""
        for copies in (self._copies, self._older):
            known = {place: copies[place] for place in places if place in copies}
            if not any(self._is_spoiled(place, copy) for place, copy in known.items()):
                return known
        return {}

    def _is_spoiled(self, place: Place, tensor: Tensor) -> bool:
        """Return whether a buffer is not finite but should be: not a mask of infinities, of the start or made later."""
        if is_finite(tensor):
            return False
        is_average = hasattr(place[0], "running_mean")
        return self._finite.get(place, is_average or bool(torch.isnan(tensor).any()))


class RunningAverages:
    """Finds buffers that training changes and that are not finite, although loss and gradients may be.

    In training a normalization divides by the deviation of the batch, so that a running average which has overflowed
    shows in validation first, and stays infinite for ever. The buffers are looked at every `INTERVAL` steps. They are
    copied then where they may be restored, and a copy counts once it is known to be finite.

    Besides running averages, these are the buffers that were written to between two checks. Of them, NaN counts, and
    what is infinite in part in a buffer that was finite before: a value that is reset to infinity is intended.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._steps = 0
        self._seen: dict[Place, tuple[int, int]] = {}
        self._written: set[Place] = set()
        self._finite_once: set[Place] = set()
        self._looked_at: list[Place] = []
        self._known: dict[Place, Tensor] = {}
        self._new: dict[Place, Tensor] = {}
        self._pending: PendingRead | None = None

    def look(self, copies: bool, now: bool = False) -> list[str]:
        """Check the buffers if they are due, at the end of a step.

        On an accelerator their norms are read at the next time, by when they have arrived.

        Args:
            copies: Whether they may be restored.
            now: Whether it is time in any case, and the host may wait.

        Returns:
            Names of those that are not finite, or were not at the last check.
        """
        self._steps += 1
        if not now and self._steps % INTERVAL:
            return []
        with torch.no_grad():
            if self._pending is not None and self._arrived():
                return self._names()
            places = [place for place in _places(self._module) if _is_average(place) or self._is_written(place)]
            if not places:
                return []
            tensors = [local_part(_tensor(place)) for place in places]
            self._new = {place: one.clone() for place, one in zip(places, tensors, strict=True)} if copies else {}
            self._looked_at, self._pending = places, PendingRead(torch._foreach_norm(tensors))
            return self._names() if (now or self._pending.is_there) and self._arrived() else []

    def restore(self) -> bool:
        """Restore the modules of the lost buffers from copies that were finite, and return whether there is one of all.

        To be called where `look` has named any.
        """
        with torch.no_grad():
            lost = [place for place in self._looked_at if self._is_lost(place)]
            modules = {module for module, _, _ in lost}
            for place, copy in self._known.items():
                if place[0] in modules:
                    _restore(_tensor(place), copy)
            return all(is_finite(_tensor(place)) for place in lost)

    def clear(self) -> None:
        """Drop all copies."""
        self._known, self._new, self._pending = {}, {}, None

    def _is_written(self, place: Place) -> bool:
        """Return whether a buffer of floating point was written to, or replaced, since it was first looked at."""
        tensor = _tensor(place)
        if place not in self._written and tensor.is_floating_point():
            now = id(tensor), version_of(tensor)
            if self._seen.setdefault(place, now) != now:
                self._written.add(place)
        return place in self._written

    def _arrived(self) -> bool:
        """Read the norms of the last check, and return whether one is not finite."""
        assert self._pending is not None
        finite = np.isfinite(self._pending.values())
        self._finite_once.update(itertools.compress(self._looked_at, finite))
        if finite.all():
            self._known = self._new
        self._new, self._pending = {}, None
        return not finite.all()

    def _names(self) -> list[str]:
        return [_name(place) for place in self._looked_at if self._is_lost(place)]

    def _is_lost(self, place: Place) -> bool:
        tensor = local_part(_tensor(place))
        if is_finite(tensor):
            return False
        is_partial = bool(torch.isnan(tensor).any()) or not bool(torch.isinf(tensor).all())
        return _is_average(place) or (is_partial and place in self._finite_once)


def _is_average(place: Place) -> bool:
    return place[2] in ("running_mean", "running_var")


def _cloned(copies: dict[Place, Tensor]) -> dict[Place, Tensor]:
    return {place: copy.clone() for place, copy in copies.items()}


def _places(module: nn.Module, prefix: str = "") -> list[Place]:
    """Return where the buffers of a network are, each tensor once, without those that hold no plain numbers yet."""
    seen: set[int] = set()
    places = []
    for name, one in module.named_modules(prefix=prefix):
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
