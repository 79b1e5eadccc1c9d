"""A mode under which NumPy cannot write to the memory of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_SHARING = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
"""Methods that return something which shares the tensor's memory; what writes to it is no operation of torch."""


class PrivateArrays(TorchFunctionMode):
    """Makes arrays of copies, where a tensor's memory belongs to the run.

    Args:
        owns: Returns whether a tensor may be written to.
    """

    def __init__(self, owns: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._owns = owns

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call one function of torch."""
        if func in _SHARING and not self._owns(args[0]):
            args = (args[0].detach().clone().requires_grad_(args[0].requires_grad), *args[1:])
        return func(*args, **(kwargs or {}))
