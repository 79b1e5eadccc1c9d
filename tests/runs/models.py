"""Small modules, each with one trait that a monitor can stumble over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

Batch = tuple[Tensor, Tensor]
Build = Callable[[Any], Any]


class Numbers(IterableDataset[Batch]):
    """A data set whose length is not known."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.size):
            values = torch.randn(6, generator=torch.Generator().manual_seed(index))
            yield values, values.sum().view(1)


class Regression(pl.LightningModule):
    """A two-layer network with dropout.

    Args:
        build: Makes the optimizer of the parameters.
        batches: Number of batches in an epoch.
        iterable: Whether the data set's length is unknown.
        layers: The network; it takes six numbers and gives one.
    """

    def __init__(
        self, build: Build | None = None, batches: int = 8, iterable: bool = False, layers: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layers = layers or nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 1))
        self.build = build or (lambda parameters: torch.optim.SGD(parameters, lr=0.05))
        self.batches = batches
        self.iterable = iterable

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs).float(), targets.float())

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        """Build the optimizer."""
        return self.build([p for p in self.parameters() if p.requires_grad])

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of four."""
        if self.iterable:
            return DataLoader(Numbers(4 * self.batches), batch_size=4)
        inputs = torch.randn(4 * self.batches, 6, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)


class Manual(Regression):
    """Several optimizers, each over one linear layer, stepped by hand.

    Args:
        optimizers: Number of layers and optimizers.
        toggled: Whether each backward pass reaches only the parameters of its own optimizer.
        repeats: Steps of each optimizer per batch.
        returns: What training_step gives back.
    """

    def __init__(
        self,
        optimizers: int = 2,
        toggled: bool = False,
        repeats: int = 1,
        returns: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(optimizers)), nn.Linear(6, 1))
        self.layers[-1].requires_grad_(False)
        self.toggled = toggled
        self.repeats = repeats
        self.returns = returns or (lambda loss: None)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step every optimizer in turn; without toggling, each finds stale gradients of the losses before."""
        found: Any = self.optimizers()
        loss = torch.zeros(())
        for optimizer in found if isinstance(found, list) else [found]:
            for _ in range(self.repeats):
                if self.toggled:
                    self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                optimizer.step()
                if self.toggled:
                    self.untoggle_optimizer(optimizer)
        return self.returns(loss.detach())

    def configure_optimizers(self) -> list[Optimizer]:
        """Build one optimizer for each layer but the last."""
        layers = list(self.layers.children())[:-1]
        return [torch.optim.SGD(layer.parameters(), lr=0.01 * (place + 1)) for place, layer in enumerate(layers)]


class Odd(Regression):
    """All odd kinds of parameters at once: tied, unused, frozen, sparse, complex, without dimensions, and empty."""

    def __init__(self, build: Build | None = None) -> None:
        super().__init__(build)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
        self.layers[2].weight = self.layers[0].weight
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.table = nn.Embedding(20, 6, sparse=True)
        self.phases = nn.Parameter(torch.randn(6, dtype=torch.complex64))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 4))

    def loss(self, batch: Batch) -> Tensor:
        """Return a loss that uses all that is not unused; rows of the table are looked up more than once."""
        inputs, targets = batch
        rows = self.table(torch.tensor([1, 5, 5, 7])).sum(dim=0)
        mixed = self.frozen(inputs) * self.phases.abs() + rows + self.nothing.sum()
        return nn.functional.mse_loss(self.layers(mixed) * self.temperature, targets)
