"""A module whose loss depends on the number of the step, as an objective does that changes by plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule

Objective = Callable[[nn.Module, Any, int], Tensor]


class ByStep(ScenarioModule):
    """A network with a loss of network, batch and step.

    Args:
        network: What is trained.
        objective: Return the loss of a batch at a step.
        optimizer: Makes the optimizer.
        outcome: Return the number that the outcome is judged by, if the loss changes by plan.
        schedule: Factor of the learning rate at a step.
        events: What to do right before the batch of this number.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        optimizer: MakeOptimizer,
        outcome: Objective | None = None,
        schedule: Callable[[int], float] | None = None,
        events: Mapping[int, Callable[[ScenarioModule], None]] | None = None,
    ) -> None:
        super().__init__(network, mse_loss, optimizer, schedule, events)
        self.objective = objective
        self.judged_by = outcome
        self.at = 0

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch at this step."""
        return self.objective(self.network, batch, self.at)

    def damage(self, batch: Any, loss: float) -> float:
        """Return the number that the outcome is judged by."""
        return loss if self.judged_by is None else float(self.judged_by(self.network, batch, self.at).detach())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Apply what is due before the batch, and note its number."""
        self.at = batch_idx
        super().on_train_batch_start(batch, batch_idx)


def error(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the mean squared error of a batch, whatever the step."""
    return mse_loss(network(batch[0]), batch[1])
