"""The buffers of a network, and a check that their elements are finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradexplode.distributed.shard_layout import local_part

_AVERAGES = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer of a module, identified by its key, since the module may replace the tensor.

    Args:
        module: The module that has registered it.
        module_name: Name of the module within the network.
        key: Name of the buffer within the module.
    """

    module: nn.Module
    module_name: str
    key: str

    @property
    def name(self) -> str:
        """Name of the buffer within the network."""
        return f"{self.module_name}.{self.key}".lstrip(".")

    @property
    def tensor(self) -> Tensor:
        """The present tensor; an empty one if the module has set the buffer to None."""
        tensor = self.module._buffers.get(self.key)
        return torch.zeros(0) if tensor is None else tensor

    @property
    def local(self) -> Tensor:
        """The elements of the tensor that this process holds."""
        return local_part(self.tensor)

    @property
    def is_average(self) -> bool:
        """Whether it is a running average of a normalization layer."""
        return self.key in _AVERAGES

    @property
    def is_of_normalization(self) -> bool:
        """Whether its module keeps running averages."""
        return hasattr(self.module, "running_mean")

    def write(self, copy: Tensor) -> None:
        """Write a copy back in place, if it still has the shape, type and device of the buffer."""
        local = self.local
        if is_alike(copy, local):
            local.copy_(copy)


def buffers_of(network: nn.Module, prefix: str = "") -> list[Buffer]:
    """Return the buffers of a network, each tensor once, without sparse, quantized and uninitialized ones.

    Args:
        network: The network.
        prefix: Name of the network within a larger one.
    """
    seen: set[int] = set()
    found = []
    for module_name, module in network.named_modules(prefix=prefix):
        for key, tensor in module._buffers.items():
            if tensor is not None and _holds_numbers(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                found.append(Buffer(module, module_name, key))
    return found


def is_finite(tensor: Tensor) -> bool:
    """Return whether all elements of a tensor, or of the part of it that this process holds, are finite."""
    is_number = (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta
    return not is_number or bool(torch.isfinite(local_part(tensor)).all())


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, type and device."""
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _holds_numbers(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return is_dense and not is_lazy(tensor)
