"""The LightningModule that most families train, and the small networks that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention, softplus
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

Criterion = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[..., Optimizer]


class ScenarioModule(LightningModule):
    """A network, a loss and an optimizer.

    Args:
        network: What is trained; its parameters' names begin with ``network.``.
        criterion: Loss of outputs and targets.
        optimizer: Makes the optimizer of the parameters.
        schedule: Factor of the learning rate at a step, None to keep it.
        events: What to do right before the batch of this number, for accidents and changes of plan.
    """

    needs_gradients = False
    """Whether the loss itself is made of gradients."""

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion,
        optimizer: MakeOptimizer,
        schedule: Callable[[int], float] | None = None,
        events: Mapping[int, Callable[[ScenarioModule], None]] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.events = events or {}
        self.last_loss = self.last_damage = float("nan")

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return self.criterion(self.network(inputs), targets)

    def damage(self, batch: Any, loss: float) -> float:
        """Return the number that the outcome is judged by: another one than the loss where that cannot show it."""
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Apply what is due before the batch."""
        if batch_idx in self.events:
            self.events[batch_idx](self)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss, and note it for the probe."""
        loss = self.loss(batch)
        self.last_loss = float(loss.detach())
        self.last_damage = self.damage(batch, self.last_loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the schedule if there is one."""
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Variational(ScenarioModule):
    """An encoder and a decoder with a random code between them; targets are the weights of the divergence."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the reconstruction's error and the weighted divergence of the code."""
        inputs, weight = batch
        encoder, decoder = self.network.get_submodule("0"), self.network.get_submodule("1")
        mean, log_variance = encoder(inputs).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        error: Tensor = (decoder(code) - inputs).square().sum(1).mean()
        total: Tensor = error + weight * divergence
        return total


class Adversaries(ScenarioModule):
    """A generator of points on a ring, and a critic of them with two optimizers, by hand."""

    def __init__(self, critic_rate: float, generator_rate: float, limited: bool) -> None:
        super().__init__(perceptron([2, 32, 32, 1]), mse_loss, sgd(0.1))
        self.generator = perceptron([4, 32, 2])
        self.rates = critic_rate, generator_rate
        self.limited = limited
        self.automatic_optimization = False

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the critic's loss."""
        real, noise = batch
        real_score, made_score = self.network(real), self.network(self.generator(noise).detach())
        if not self.limited:
            distance: Tensor = (made_score - real_score).mean()
            return distance
        return softplus(made_score).mean() + softplus(-real_score).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Step the critic, then the generator."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        critic, generator = optimizers
        loss = self.loss(batch)
        self.last_loss = self.last_damage = float(loss.detach())
        critic.zero_grad()
        self.manual_backward(loss)
        critic.step()
        generator.zero_grad()
        score = self.network(self.generator(batch[1]))
        self.manual_backward(softplus(-score).mean() if self.limited else -score.mean())
        generator.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """Build an optimizer for each."""
        return [
            torch.optim.Adam(self.network.parameters(), lr=self.rates[0], betas=(0.5, 0.9)),
            torch.optim.Adam(self.generator.parameters(), lr=self.rates[1], betas=(0.5, 0.9)),
        ]


def sgd(rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> MakeOptimizer:
    """Return a builder of stochastic gradient descent."""
    return partial(SGD, lr=rate, momentum=momentum, weight_decay=weight_decay)


def adam(rate: float, **options: Any) -> MakeOptimizer:
    """Return a builder of Adam."""
    return partial(Adam, lr=rate, **options)


def perceptron(
    sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, gain: float | None = None
) -> nn.Sequential:
    """Build a perceptron; with a gain, weights are normal with a deviation of gain / sqrt(inputs)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        if gain is not None:
            nn.init.normal_(linear.weight, std=gain / inputs**0.5)
            nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


class LastOutput(nn.Module):
    """A recurrent network, and a linear layer on the output of its last time step."""

    def __init__(self, recurrent: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, shape ``(batch, outputs)``."""
        hidden, _ = self.recurrent(inputs)
        outputs: Tensor = self.head(hidden[:, -1])
        return outputs


class LanguageModel(nn.Module):
    """Predicts the next character: an embedding, a body on ``(batch, time, width)``, and logits as ``(N, letters)``."""

    def __init__(self, letters: int, width: int, body: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.body = body
        self.head = nn.Linear(width, letters)

    def forward(self, letters: Tensor) -> Tensor:
        """Return the logits of the next letter at each place."""
        hidden = self.body(self.embedding(letters))
        if isinstance(hidden, tuple):
            hidden = hidden[0]
        logits: Tensor = self.head(hidden)
        return logits.flatten(0, 1)


class Block(nn.Module):
    """A transformer's block with a causal single-head attention; without normalisation if so wanted."""

    def __init__(self, width: int, normalised: bool = True) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width) if normalised else nn.Identity()
        self.before_feed = nn.LayerNorm(width) if normalised else nn.Identity()
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add attention and feed-forward to the inputs."""
        query, key, value = self.mix(self.before_attention(inputs)).chunk(3, dim=-1)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        inputs = inputs + self.out(attended)
        outputs: Tensor = inputs + self.feed(self.before_feed(inputs))
        return outputs


class Residual(nn.Module):
    """Adds what the inner module gives to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        """Add."""
        outputs: Tensor = inputs + self.inner(inputs)
        return outputs


def scale_weights(module: nn.Module, factor: float) -> None:
    """Multiply all weights of a module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)


def set_frozen(module: ScenarioModule, frozen: bool) -> None:
    """Freeze or unfreeze all layers but the last."""
    for layer in [*module.network.children()][:-1]:
        layer.requires_grad_(not frozen)
