"""Plain gradient descent, for cases of which it is no part of the story."""

from __future__ import annotations

from typing import Any

import torch


class GradientDescent:
    """Trains all parameters with SGD; the base of cases, before `Case`."""

    momentum = 0.0
    lr: float

    def configure_optimizers(self) -> Any:
        """Return SGD."""
        module: Any = self
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=self.momentum)
