"""Lines, one output and the values of a policy, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RangeOfTheInput(Case):
    """A straight line by one weight and one bias, one sample a step, with inputs from 0 to 999.

    Report: github.com/deeplearning4j/deeplearning4j/issues/3346. Shown by the reporter with five ranges of the same
    data: the line is learned where the inputs are small, and the weights are NaN where they are not.
    """

    kinds = ("unscaled-data", "learning-rate")
    host = "plain"
    good = 0.05
    scale = 1.0
    cure = settings(scale=0.001)
    cured_by = r"scal|normali|standardi"
    batch_size = 1
    lr = 0.01
    steps = 1200

    def build(self) -> None:
        self.out = nn.Linear(1, 1)

    def data(self) -> dict[str, Tensor]:
        x = self.scale * torch.arange(1000.0)[:, None]
        return {"features": x, "labels": 15 + 5 * x}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(batch["features"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)


class GradientsOfTheLine(Case):
    """A straight line from a tutorial, whose gradients are not set to zero between the steps.

    Report: github.com/greebear/pytorch-learning/issues/1. Solved by the reporter and fixed by the author: the loss does
    not go on falling even with a very small rate; the gradients have to be cleared.
    """

    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.1
    clears = False
    cure = settings(clears=True)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 40
    lr = 0.01
    steps = 300

    def build(self) -> None:
        self.w, self.b = nn.Parameter(torch.rand(1)), nn.Parameter(torch.zeros(1))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(20501)
        x = 5 * torch.rand(40, generator=generator)
        return x, 2 * x + 1 + 0.2 * torch.randn(40, generator=generator)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return 0.5 * (x * self.w + self.b - y).square().mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()
        if self.clears:
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SoftmaxOfOneOutput(Case):
    """Two classes by a small network with one output, of which a softmax is taken.

    Report: github.com/FluxML/Flux.jl/issues/1546. Shown by the reporter: the loss is the same in all epochs, and falls
    without the softmax. The softmax of a single value is one, and its gradient is zero.
    """

    kinds = ("empty-reduction", "unknown")
    host = "plain"
    good = 0.1
    takes_softmax = True
    cure = settings(takes_softmax=False)
    cured_by = r"softmax"
    batch_size = 25
    lr = 0.01
    steps = 400

    def build(self) -> None:
        self.linear1, self.linear2 = nn.Linear(2, 8), nn.Linear(8, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(1000, 2, generator=noise(20502))
        return x, (x[:, :1] + 0.5 * x[:, 1:] > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        out = self.linear2(self.linear1(x).sigmoid())
        if self.takes_softmax:
            out = out.softmax(1)
        return functional.mse_loss(out, y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class NoEndOfTheEpisode(Case):
    """The values of states of an arm that moves objects, from stored steps, whose episodes end and begin anew.

    Report: github.com/RLinf/RLinf/pull/661. Found by the author of the change: the loss of the critic rises steadily,
    since the value of the next state is added where an episode has ended; without it the loss falls.
    """

    kinds = ("moving-target",)
    host = "plain"
    good = 0.05
    knows_the_end = False
    cure = settings(knows_the_end=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"terminat|\bdone\b|end of (?:the|an) episode|bootstrap"
    batch_size = 64
    lr = 3e-3
    steps = 900
    gamma = 0.99

    def build(self) -> None:
        self.value_head = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(20503)
        step = torch.randint(6, (1920,), generator=generator)
        following = (step + 1) % 6
        done = step == 5
        return {
            "states": self.states(step, generator),
            "next_states": self.states(following, generator),
            "rewards": torch.where(done, 1.0, 0.0) + 0.05 * torch.randn(1920, generator=generator),
            "terminations": done.float(),
        }

    def states(self, step: Tensor, generator: torch.Generator) -> Tensor:
        angle = 0.8 * step[:, None] + torch.tensor([0.0, 1.0, 2.0, 3.0])
        return angle.sin() + 0.05 * torch.randn(len(step), 4, generator=generator)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            next_values = self.value_head(batch["next_states"])[:, 0]
            if self.knows_the_end:
                next_values = next_values * (1 - batch["terminations"])
        returns = batch["rewards"] + self.gamma * next_values
        return functional.mse_loss(self.value_head(batch["states"])[:, 0], returns)

    def score(self) -> float:
        """The squared error of the values."""
        step = torch.arange(6)
        values = self.value_head(self.states(step, noise(9)))[:, 0]
        return float((values - self.gamma ** (5 - step)).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
