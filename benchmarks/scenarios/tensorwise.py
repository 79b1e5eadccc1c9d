"""The base class of optimizers that update each tensor by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class TensorwiseOptimizer(Optimizer):
    """An optimizer whose subclasses implement the update of one tensor.

    Args:
        parameters: The parameters.
        settings: The settings of each group.
    """

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all tensors that have a gradient, and return the result of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self.update(tensor, tensor.grad, self.state[tensor], group)
        return loss

    def update(self, tensor: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update one tensor in place.

        Args:
            tensor: The tensor.
            gradient: Its gradient.
            state: What the optimizer keeps for it.
            group: The settings of its group.
        """
        raise NotImplementedError
