"""Networks that judge what others make."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.case import Case, noise, settings


class JudgeWithoutASigmoid(Case):
    """The logarithms of what a judge says and of one less that, of a judge that says any number."""

    # coderoad.ru/45506455
    host = "plain"
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 1.0
    has_sigmoid = False
    cure = settings(has_sigmoid=True)
    cured_by = "sigmoid|between 0 and 1"
    lr = 1e-2
    steps = 150
    batch_size = 64

    def build(self) -> None:
        self.judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        if self.has_sigmoid:
            self.judge.append(nn.Sigmoid())
        else:
            self.judge[2].bias.data.fill_(0.5)  # type: ignore[operator]
        self.maker = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, ...]:
        random = noise(841)
        real = torch.tensor([1.0, 0.5]) + 0.3 * torch.randn(1280, 2, generator=random)
        return real, torch.randn(1280, 4, generator=random)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        return (self.maker(batch[1]).mean(0) - batch[0].mean(0)).norm()

    def optimize(self, model: Any, batch: Any, optimizers: Any, watch: Any, backward: Any) -> None:
        real, hidden = batch
        for turn, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            made = self.judge(self.maker(hidden))
            of_judge = -(torch.log(self.judge(real)) + torch.log(1 - made)).mean()  # fault
            loss = -torch.log(made).mean() if turn else of_judge  # fault
            watch.loss(loss)
            backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=self.lr, betas=(0.5, 0.999)) for one in (self.judge, self.maker)]
