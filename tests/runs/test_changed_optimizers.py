"""Optimizers, parameters and groups that change in mid-run."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_gradexplode.hosts.lightning_namespaces import Callback
from tests.runs.optimizers import Changing, Uninitialized, fitted
from tests.runs.probe import norm


def replace_list(module: pl.LightningModule) -> None:
    """Assign another optimizer to the trainer."""
    module.trainer.optimizers = [torch.optim.Adam(module.parameters(), lr=0.01)]


def set_up_again(module: pl.LightningModule) -> None:
    """Set up the optimizers anew."""
    module.trainer.strategy.setup_optimizers(module.trainer)


def replace_parameter(module: Any) -> None:
    """Replace a parameter by a new one, in the module and in its group, whose length stays."""
    old = module.layers[0].weight
    module.layers[0].weight = torch.nn.Parameter(old.detach().clone())
    group = module.trainer.optimizers[0].param_groups[0]
    group["params"] = [module.layers[0].weight if one is old else one for one in group["params"]]


def add_group(module: Any) -> None:
    """Add a layer with a group of its own."""
    module.layers[3] = torch.nn.Sequential(module.layers[3], torch.nn.Linear(1, 1))
    module.trainer.optimizers[0].add_param_group({"params": list(module.layers[3][1].parameters()), "lr": 0.02})


def remove_group(module: Any) -> None:
    """Remove all groups but one of two parameters."""
    group = module.trainer.optimizers[0].param_groups[0]
    group["params"] = group["params"][:2]


@pytest.mark.parametrize("response", ["warn", "skip"])
@pytest.mark.parametrize(
    ("change", "when"),
    [
        (replace_list, "start"),
        (replace_list, "batch"),
        (replace_list, "step"),
        (set_up_again, "batch"),
        (replace_parameter, "batch"),
        (add_group, "batch"),
        (remove_group, "batch"),
    ],
)
def test_optimizers_that_change_are_followed(change: Any, when: str, response: str) -> None:
    """Every batch has its record, of the parameters that the optimizer has by then; only the NaN is skipped."""
    module = Changing(change, when)
    norms: list[float] = []

    class Truth(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            handed = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
            norms.append(norm(*handed))

    monitor, records = fitted(module, Truth(), on_explosion=response)
    assert not monitor.failed
    assert [record and record.grad_norm for record in records] == pytest.approx(norms, rel=1e-6, nan_ok=True)
    if response == "skip":
        assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]


def test_a_scheduler_made_during_a_fit_wraps_the_step_of_an_optimizer_without_hooks() -> None:
    """Its own mark on the step stays after the fit."""

    def swap(module: Any) -> None:
        module.scheduler = torch.optim.lr_scheduler.StepLR(module.trainer.optimizers[0], 2)

    module = Changing(swap)
    module.build = Uninitialized
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    module.trainer.optimizers[0].step()
    assert monitor.last is not None
    assert monitor.last.step == 7
