"""Distributions of numbers, counts and times, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SplineOutsideItsInterval(Case):
    """Parameters of a simulation by a flow of splines between -3 and 3, with values that lie far outside of these.

    Report: github.com/bayesflow-org/bayesflow/issues/721 and pull/759. Found by the author of the change: the spline is
    evaluated outside of its interval as well; its logarithm is of zero there, which `where` hides only in the forward
    pass. The position within a bin is clipped to 0 and 1.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    seed = 2
    good = 6.0
    clips = False
    cure = settings(clips=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|clip|inside|\bwhere\b"
    batch_size = 64
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.subnets = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 23))
            for _ in range(2)
        )
        for subnet in self.subnets:
            nn.init.zeros_(subnet[4].weight)
            nn.init.zeros_(subnet[4].bias)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21001)
        condition = torch.randn(1280, 1, generator=generator)
        volatility = (4 * torch.randn(1280, 2, generator=generator)).exp()
        theta = condition + 0.5 * volatility * torch.randn(1280, 2, generator=generator)
        return {"theta": theta, "condition": condition}

    def spline(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        width, height, slope = parameters.split([8, 8, 7], 1)
        width, height = 6 * (0.01 + 0.92 * width.softmax(1)), 6 * (0.01 + 0.92 * height.softmax(1))
        edge = torch.ones(len(x), 1)
        slope = torch.cat([edge, functional.softplus(slope + 0.541324855), edge], 1)
        knots = torch.cat([-3 * edge, width.cumsum(1) - 3], 1)
        values = torch.cat([-3 * edge, height.cumsum(1) - 3], 1)
        at = (x[:, None] >= knots[:, 1:-1]).sum(1, keepdim=True)
        wk, hk = width.gather(1, at)[:, 0], height.gather(1, at)[:, 0]
        xk, yk = knots.gather(1, at)[:, 0], values.gather(1, at)[:, 0]
        dk, dkp = slope.gather(1, at)[:, 0], slope.gather(1, at + 1)[:, 0]
        xi, sk = (x - xk) / wk, hk / wk
        if self.clips:
            xi = xi.clamp(0, 1)
        bend = sk + (dkp + dk - 2 * sk) * xi * (1 - xi)
        z = yk + hk * (sk * xi**2 + dk * xi * (1 - xi)) / bend
        numerator = sk**2 * (dkp * xi**2 + 2 * sk * xi * (1 - xi) + dk * (1 - xi) ** 2)
        return z, numerator.log() - (bend**2).log()  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        theta, condition = batch["theta"], batch["condition"]
        log_prob, seen = torch.zeros(()), torch.zeros(len(theta), 1)
        for column, subnet in enumerate(self.subnets):
            x = theta[:, column]
            spline, spline_log_jac = self.spline(x, subnet(torch.cat([condition, seen], 1)))
            inside = x.abs() < 3
            z = torch.where(inside, spline, x)
            log_jac = torch.where(inside, spline_log_jac, torch.zeros(()))
            log_prob = log_prob - (3.1416 * (1 + z.square())).log() + log_jac
            seen = x[:, None].clamp(-3, 3)
        return -log_prob.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class LibraryOfACell(Case):
    """Counts of genes in cells by an autoencoder, with an encoder of its own for the size of each cell.

    Report: github.com/scverse/scvi-tools/issues/441. Found by the reporter: the size takes large values in the first
    steps, so that the rate, which is its exponential, is infinite. It is clamped, and its encoder starts small.
    """

    kinds = ("forward-overflow", "unscaled-data")
    places = ("exp", "mul", "l_encoder")
    good = 230.0
    careful = False
    cure = settings(careful=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"clamp|log1p|tanh|scal|normali"
    batch_size = 64
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.z_encoder = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 8))
        self.l_encoder = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 1))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 40))
        self.px_r = nn.Parameter(torch.zeros(40))
        if self.careful:
            with torch.no_grad():
                self.l_encoder[2].weight.mul_(1e-4)
                self.l_encoder[2].bias.fill_(1.0)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21002)
        profile = (1.5 * torch.randn(4, 40, generator=generator)).softmax(1)
        kind = torch.randint(4, (960,), generator=generator)
        size = (8 + 0.5 * torch.randn(960, 1, generator=generator)).exp()
        return {"x": torch.poisson(size * profile[kind], generator=generator)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["x"]
        mean, logvar = self.z_encoder(x.log1p()).chunk(2, 1)
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        library = self.l_encoder(x)
        if self.careful:
            library = library.clamp(-12, 12)
        rate = library.exp() * self.decoder(z).softmax(1)  # fault
        r = self.px_r.exp()
        log_mu = (r + rate + 1e-8).log()
        ll = r * ((r + 1e-8).log() - log_mu) + x * ((rate + 1e-8).log() - log_mu)
        ll = ll + (x + r).lgamma() - r.lgamma() - (x + 1).lgamma()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        return (kl - ll.sum(1)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class MixtureOfNormals(Case):
    """The distribution of a number by a mixture of normals, whose deviations are exponentials.

    Report: github.com/tonyduan/mixture-density-network/pull/4. Found by the author of the change: gradients are NaN;
    the deviations are ELU plus one instead, and the logits are used instead of the logarithm of the weights.
    """

    kinds = ("undefined-operation", "forward-overflow")
    places = ("log", "exp", "div", "pow", "logsumexp")
    host = "plain"
    good = 2.9
    stable = False
    cure = settings(stable=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"log_softmax|elu|softplus|logits|clamp"
    batch_size = 64
    lr = 1e-2
    steps = 600

    def build(self) -> None:
        self.pi_network = nn.Sequential(nn.Linear(1, 32), nn.ELU(), nn.Linear(32, 4))
        self.normal_network = nn.Sequential(nn.Linear(1, 32), nn.ELU(), nn.Linear(32, 8))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(21003)
        y = 20 * torch.rand(1280, 1, generator=generator) - 10
        x = 7 * (0.75 * y).sin() + 0.5 * y + torch.randn(1280, 1, generator=generator)
        return 6 * x, y / 5

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits, (mean, deviation) = self.pi_network(x), self.normal_network(x).chunk(2, 1)
        if self.stable:
            log_pi, sigma = logits.log_softmax(1), functional.elu(deviation) + 1 + 1e-3
        else:
            log_pi, sigma = logits.softmax(1).log(), deviation.exp()
        z = (y - mean) / sigma
        log_prob = -0.5 * z.square() - sigma.log() - 0.919
        return -(log_pi + log_prob).logsumexp(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class CountsOfAForecast(Case):
    """Sales a day by a recurrent network and a negative binomial distribution; many products are not sold for weeks.

    Report: github.com/awslabs/gluonts/issues/287 and pull/1893. Confirmed and fixed: the mean is a softplus, which is
    zero where its input is well below zero, and the likelihood takes the logarithm of it.
    """

    kinds = ("undefined-operation",)
    places = ("log", "softplus")
    good = 1.1
    floor = 0.0
    cure = settings(floor=1e-6)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"\beps|small (?:value|number)|clamp|at least|log_?sigmoid|functional\.softplus"
    batch_size = 32
    lr = 5e-2
    steps = 400

    def build(self) -> None:
        self.rnn = nn.LSTM(2, 24, batch_first=True)
        self.args_proj = nn.Linear(24, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21004)
        rate = (1 + 0.7 * torch.randn(640, 1, generator=generator)).exp()
        sold = torch.rand(640, 1, generator=generator) > 0.7
        counts = torch.poisson((rate * sold).expand(640, 21), generator=generator)
        return {"past_target": counts, "active": sold.float()}

    def softplus(self, x: Tensor) -> Tensor:
        return (1 + x.exp()).log() + self.floor

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        target = batch["past_target"]
        lag = target[:, :-1].log1p()
        inputs = torch.stack([lag, batch["active"].expand_as(lag)], 2)
        mu, alpha = self.softplus(self.args_proj(self.rnn(inputs)[0])).unbind(2)
        x, r = target[:, 1:], 1 / alpha
        ll = x * (alpha * mu / (1 + alpha * mu)).log() - r * (1 + alpha * mu).log()  # fault
        ll = ll + (x + r).lgamma() - (x + 1).lgamma() - r.lgamma()
        return -ll.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
