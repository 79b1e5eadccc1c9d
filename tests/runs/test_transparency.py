"""The monitor changes nothing: losses and weights are bit for bit those of a run without it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.testing import ExplodingRecurrence, ExplodingRegression, RecordingLogger
from tests.runs.models import Manual, Odd, Regression
from tests.runs.probe import QUIET
from tests.runs.test_modes import fused, scaler


class Losses(pl.Callback):
    """Keeps the loss of each batch."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss."""
        self.losses.append(loss.detach().clone())


def outcome(
    module: pl.LightningModule, monitor: GradientExplosionMonitor | None, settings: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """Train a module from a fixed start.

    Returns:
        All losses and the weights at the end.
    """
    torch.manual_seed(5)
    for parameter in module.parameters():
        if parameter.numel():
            torch.nn.init.normal_(parameter, std=0.3)
    losses = Losses()
    callbacks: list[pl.Callback] = [losses] if monitor is None else [losses, monitor]
    plugins = [scaler()] if settings.get("plugins") else None
    pl.Trainer(**{**QUIET, **settings, "plugins": plugins}, logger=False, callbacks=callbacks).fit(module)
    return losses.losses, [parameter.detach().clone() for parameter in module.parameters()]


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Build Adam."""
    return torch.optim.Adam(parameters, lr=0.01)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    """Build LBFGS."""
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


MODES: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (Regression, {}),
    "clipped": (lambda: Regression(adam), {"gradient_clip_val": 0.1}),
    "accumulated": (Regression, {"accumulate_grad_batches": 2}),
    "bfloat16": (lambda: Regression(adam), {"precision": "bf16-mixed"}),
    "scaled": (lambda: Regression(adam), {"plugins": True}),
    "scaled and fused": (lambda: Regression(fused), {"plugins": True}),
    "line search": (lambda: Regression(lbfgs), {}),
    "manual": (lambda: Manual(2), {}),
    "odd parameters": (Odd, {}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interval", [1, 3])
def test_same_numbers_with_and_without(mode: str, interval: int) -> None:
    """Dropout, optimizer states and all, every loss and every weight is the same."""
    build, settings = MODES[mode]
    monitor = GradientExplosionMonitor(log_every_n_steps=interval, histogram_every_n_steps=1, report=False)
    losses, weights = outcome(build(), monitor, settings)
    expected_losses, expected_weights = outcome(build(), None, settings)
    assert monitor.last is not None
    assert len(losses) == len(expected_losses) > 0
    assert all(torch.equal(a, b) for a, b in zip(losses, expected_losses, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, expected_weights, strict=True))


@pytest.mark.parametrize("namespace", [pl, lightning.pytorch], ids=lambda one: str(one.__name__))
def test_the_monitor_works_in_both_namespaces(namespace: Any) -> None:
    """The monitor, with clipping of its own, and the recording logger work in both of Lightning's namespaces."""
    network = type("Network", (ExplodingRegression, namespace.LightningModule), {})
    logger, monitor = RecordingLogger(), GradientExplosionMonitor(clip=1.0, log_every_n_steps=1, report=False)
    trainer = namespace.Trainer(**{**QUIET, "max_steps": 4}, logger=logger, callbacks=[monitor])
    trainer.fit(network(learning_rate=0.1))
    clipped = [value for _, value in logger.values("gradexplode/grad_norm_clipped")]
    assert clipped == pytest.approx([1.0] * 4, rel=1e-5)
    assert all(value > 1 for _, value in logger.values("gradexplode/grad_norm"))
    assert trainer.gradient_clip_val is None


def test_shipped_modules_explode_and_train() -> None:
    """The modules of the testing module explode by default, and train with a lower learning rate."""
    network: Any = type("Network", (ExplodingRegression, pl.LightningModule), {})
    norms = {}
    for rate in (4.0, 0.1):
        logger, monitor = RecordingLogger(), GradientExplosionMonitor(log_every_n_steps=1, report=False)
        trainer = pl.Trainer(**{**QUIET, "max_steps": 20}, logger=logger, callbacks=[monitor])
        trainer.fit(network(learning_rate=rate))
        norms[rate] = [value for _, value in logger.values("gradexplode/grad_norm")]
        assert monitor.exploded is (rate == 4.0)
    assert norms[4.0][-1] > 1e6 * norms[4.0][0]
    assert norms[0.1][-1] < norms[0.1][0]
    recurrent: Any = type("Recurrent", (ExplodingRecurrence, pl.LightningModule), {})
    for gain in (4.0, 0.9):
        monitor = GradientExplosionMonitor(report=False)
        pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(recurrent(gain=gain))
        assert monitor.exploded is (gain == 4.0)
