"""What runs under watch are tested with: a logger that records, and small modules that explode.

In a test of your own::

    class Network(ExplodingRegression, LightningModule):
        pass


    logger, monitor = RecordingLogger(), GradientExplosionMonitor(report=False)
    Trainer(logger=logger, callbacks=[monitor], max_steps=30, log_every_n_steps=1).fit(Network())
    assert monitor.exploded
    assert len(logger.values("gradexplode/grad_norm")) == 30
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode.hosts import lightning as _lightning

Pair = tuple[Tensor, Tensor]


class RecordingLogger(_lightning.Logger):
    """A Lightning logger, of both namespaces, that keeps in memory what it is given.

    Args:
        name: Its name.
    """

    def __init__(self, name: str = "recording") -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        """The step and the values of each call of `log_metrics`, oldest first."""
        self._name = name

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def version(self) -> int:
        """Always 0."""
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep values."""
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Take hyperparameters, and forget them."""

    def values(self, name: str) -> list[tuple[int | None, float]]:
        """Give each step at which a metric was logged, with its value, oldest first."""
        return [(step, metrics[name]) for step, metrics in self.metrics if name in metrics]


class ExplodingRegression(nn.Module):
    """A linear regression by gradient descent whose steps are too long: the loss, and all else, grows exponentially.

    Mix it with the ``LightningModule`` of your namespace: ``class Network(ExplodingRegression, LightningModule): ...``.

    Args:
        learning_rate: Above about 2 the loss grows from step to step; 0.1 trains well.
    """

    def __init__(self, learning_rate: float = 4.0) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layer = nn.Linear(8, 1)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """Give half the mean squared error."""
        inputs, targets = batch
        return nn.functional.mse_loss(self.layer(inputs), targets) / 2

    def configure_optimizers(self) -> Optimizer:
        """Build plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def train_dataloader(self) -> DataLoader[Any]:
        """Give 100 batches, the same ones in each process and epoch."""
        inputs = torch.randn(1600, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=16)


class ExplodingRecurrence(nn.Module):
    """A linear recurrent network that multiplies its error gradients by a gain at each time step, until they overflow.

    Mix it with the ``LightningModule`` of your namespace: ``class Network(ExplodingRecurrence, LightningModule): ...``.

    Args:
        gain: The recurrent matrix at the start is this number times a rotation; with 0.9 it trains well.
        time_steps: Length of the sequences.
    """

    def __init__(self, gain: float = 4.0, time_steps: int = 100) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.inward = nn.Linear(1, 8, bias=False)
        self.recurrent = nn.Linear(8, 8, bias=False)
        self.outward = nn.Linear(8, 1, bias=False)
        nn.init.orthogonal_(self.recurrent.weight, gain)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """Give the mean squared error of the output after the last time step."""
        inputs, targets = batch
        state = inputs.new_zeros(len(inputs), 8)
        for values in inputs.unbind(dim=1):
            state = self.recurrent(state) + self.inward(values.unsqueeze(1))
        return nn.functional.mse_loss(self.outward(state), targets)

    def configure_optimizers(self) -> Optimizer:
        """Build plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        """Give 100 batches, the same ones in each process and epoch."""
        inputs = torch.randn(800, self.time_steps, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, inputs[:, :1]), batch_size=8)
