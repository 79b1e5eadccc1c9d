"""Integer, empty, sparse and complex parameters, under every clip policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gradexplode import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    ConstantClip,
    PercentileClip,
    ZScoreClip,
)
from tests.runs.models import Batch
from tests.runs.optimizers import NanAtThree, fitted, sgd


class Numbers(NanAtThree):
    """Has parameters of integers and without elements, all of them in the optimizer."""

    def __init__(self, build: Any = sgd) -> None:
        super().__init__(build)
        self.counts = torch.nn.Parameter(torch.arange(3), requires_grad=False)
        self.nothing = torch.nn.Parameter(torch.zeros(0, 4))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return super().loss(batch) + self.nothing.sum()

    def configure_optimizers(self) -> Any:
        """Build the optimizer of all parameters."""
        return self.build(list(self.parameters()))


class Sparse(NanAtThree):
    """Has an embedding with sparse gradients, some rows of it twice in a batch.

    Args:
        manual: Whether it steps by hand.
    """

    def __init__(self, manual: bool = False) -> None:
        super().__init__(sgd)
        self.table = torch.nn.Embedding(10, 6, sparse=True)
        self.automatic_optimization = not manual

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss."""
        rows = self.table(torch.tensor([1, 3, 3, 7]))
        return torch.nn.functional.mse_loss(self.layers(batch[0] + rows), batch[1])

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step by hand where that is wanted."""
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


class Complex(NanAtThree):
    """Has complex parameters, which torch's own clipping by value refuses."""

    def __init__(self) -> None:
        super().__init__(sgd)
        self.waves = torch.nn.Parameter(torch.ones(3, dtype=torch.cfloat))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return super().loss(batch) + self.waves.abs().square().sum()


POLICIES: dict[str, Any] = {
    "none": lambda: None,
    "constant": lambda: 0.5,
    "value": lambda: ConstantClip(0.01, "value"),
    "auto": lambda: "auto",
    "units": lambda: AdaptiveGradientClip(0.02),
    "tensors": lambda: AdaptiveTensorClip(warmup=1, factor=0.5),
    "percentile": PercentileClip,
    "z-score": ZScoreClip,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "module",
    [Numbers, Sparse, lambda: Sparse(manual=True), Complex],
    ids=["integers", "sparse", "sparse by hand", "complex"],
)
def test_odd_parameters_under_every_policy(module: Any, policy: str) -> None:
    """Nothing fails in mid-run, and a step is clipped where the policy says so; the NaN is skipped."""
    monitor, records = fitted(module(), clip=POLICIES[policy](), on_explosion="skip")
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    if policy in ("constant", "value", "units", "tensors"):
        assert any(
            one.grad_norm_clipped < 0.95 * one.grad_norm
            for one in records
            if one is not None and one.grad_norm and one.grad_norm_clipped
        )
