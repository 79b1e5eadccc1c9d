"""Packages of optimizers: with two steps in place of one, without a schedule, with private gradients."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.packages.training import Training, part
from lightning_gradexplode import GradientWatch

NAN, RAW = "a row with NaN", "a feature of millions"


class _Regression(Training):
    """A small network that an optimizer of a package trains."""

    faults: ClassVar = {NAN: ("nonfinite-input",), RAW: ("unscaled-data",)}
    optimizer: Any

    def train(self, fault: str, rate: float) -> None:
        self.inputs = torch.randn(512, 8)
        targets = 2 * self.inputs[:, :1] + self.inputs[:, 1:2] ** 2
        if fault == NAN:
            self.inputs[300, 2] = torch.nan
        elif fault == RAW:
            self.inputs[:, 3] = 1e6 * self.inputs[:, 3] + 3e6
        layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)]
        self.data = torch.utils.data.TensorDataset(self.inputs, targets)
        self.loader: Any = torch.utils.data.DataLoader(self.data, batch_size=32)
        self.prepare(nn.Sequential(*layers), rate)
        if self.is_monitored:
            self.monitor = GradientWatch(self.module, self.optimizer, step=self.loss, report=False)
        for batch in [batch for _ in range(5) for batch in self.loader]:
            if self.monitor is not None:
                self.monitor.batch(batch)
            self.step(batch)
        if self.monitor is not None:
            self.monitor.close()

    def prepare(self, network: nn.Module, rate: float) -> None:
        """Set `module` and `optimizer`."""
        raise NotImplementedError

    def step(self, batch: Any) -> None:
        """Train on a batch."""
        self.optimizer.zero_grad()
        self.backward(batch)
        self.optimizer.step()

    def backward(self, batch: Any) -> None:
        """Compute the gradients."""
        loss = self.loss(self.module, batch)
        if self.monitor is not None:
            self.monitor.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def loss(self, network: Any, batch: Any) -> Tensor:
        """Compute the loss of a batch."""
        return nn.functional.mse_loss(network(batch[0]), batch[1])


class SharpnessAware(_Regression):
    """SAM of pytorch-optimizer: the optimizer that it wraps is stepped in ``second_step``."""

    package = "pytorch-optimizer"
    rates = (0.01, 30.0)

    def prepare(self, network: nn.Module, rate: float) -> None:
        """Wrap gradient descent."""
        self.module = network
        self.optimizer = part("pytorch_optimizer", "SAM")(network.parameters(), torch.optim.SGD, lr=rate)

    def step(self, batch: Any) -> None:
        """Move the weights along the gradient, and step with the gradient of there."""
        self.backward(batch)
        self.optimizer.first_step(zero_grad=True)
        self.backward(batch)
        self.optimizer.second_step(zero_grad=True)


class ScheduleFree(_Regression):
    """AdamW of schedulefree, whose weights in training are not those of an evaluation."""

    package = "schedulefree"
    rates = (2.5e-3, 30.0)

    def prepare(self, network: nn.Module, rate: float) -> None:
        """Switch to the weights of the training."""
        self.module = network
        self.optimizer = part("schedulefree", "AdamWScheduleFree")(network.parameters(), lr=rate, warmup_steps=10)
        self.optimizer.train()


class PrivateGradients(_Regression):
    """Opacus: gradients of single samples, which the optimizer clips, sums and adds noise to."""

    package = "opacus"
    rates = (0.1, 1000.0)

    def prepare(self, network: nn.Module, rate: float) -> None:
        """Make network, optimizer and batches private."""
        self.module, self.optimizer, self.loader = part("opacus", "PrivacyEngine")().make_private(
            module=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=rate),
            data_loader=self.loader,
            noise_multiplier=0.5,
            max_grad_norm=1.0,
        )
