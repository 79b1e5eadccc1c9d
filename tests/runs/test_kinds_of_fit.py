"""Logged norms equal those of the probe with averaged weights, compiled modules, several fits and changed gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from tests.runs.agreement import assert_agrees
from tests.runs.models import Regression
from tests.runs.probe import QUIET, Watched


class Unfreeze(BaseFinetuning):
    """Trains the last layer first, and the first one too from the second epoch on."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        """Freeze the first layer."""
        self.freeze(pl_module.layers[0])  # type: ignore[index]

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        """Thaw it."""
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.layers[0], optimizer, lr=0.01)  # type: ignore[index]


class Average(pl.Callback):
    """Keeps an exponential moving average of the weights, as many users do."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights."""
        self.average = copy.deepcopy(list(pl_module.parameters()))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Follow the weights."""
        with torch.no_grad():
            for mean, weight in zip(self.average, pl_module.parameters(), strict=True):
                mean.lerp_(weight, 0.1)


class Validated(Regression):
    """Has a validation loop, and with it sanity checks."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Look at the loss."""
        self.log("validation_loss", self.loss(batch))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the training data."""
        return self.train_dataloader()


def test_parameters_thawed_in_mid_run() -> None:
    """A parameter group that joins the optimizer later is measured from then on."""
    run = Watched(Regression(batches=3), callbacks=[Unfreeze()], max_epochs=3, max_steps=-1)
    assert_agrees(run, 9)
    assert [len(record.parameters) for record in run.probe.records] == [2] * 3 + [4] * 6


def test_large_layers_that_are_thawed_are_no_growth_of_the_weights() -> None:
    """They join a small last layer, and the weights of the optimizer have many times their norm from then on."""
    first = nn.Linear(6, 10)
    with torch.no_grad():
        first.weight.mul_(100.0)
    module = Regression(batches=30, layers=nn.Sequential(first, nn.Tanh(), nn.Linear(10, 1)))
    run = Watched(module, callbacks=[Unfreeze()], max_epochs=3, max_steps=-1)
    assert len(run.probe.records[-1].parameters) == 4
    assert "weight-growth" not in {finding.sign for finding in run.monitor.findings}


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules_keep_their_names(whole: bool) -> None:
    """Compiled modules and submodules are measured, under the names that they had before."""
    module = Regression()
    names = [name for name, _ in module.named_parameters()]
    if whole:
        run = Watched(torch.compile(module, backend="eager"), max_steps=3)  # type: ignore[arg-type]
    else:
        module.layers = torch.compile(module.layers, backend="aot_eager")  # type: ignore[assignment]
        run = Watched(module, max_steps=3)
    assert_agrees(run, 3)
    assert list(run.probe.records[-1].parameters) == names


def test_averages_of_weights_disturb_no_number() -> None:
    """Averages of the weights, Lightning's own and a user's, do not disturb the numbers."""
    callbacks = [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1), Average()]
    run = Watched(Regression(batches=3), callbacks=callbacks, max_epochs=3, max_steps=-1)
    assert_agrees(run, 9)


@pytest.mark.parametrize(
    "trainer",
    [
        {"overfit_batches": 2, "max_epochs": 2, "max_steps": -1},
        {"num_sanity_val_steps": 2, "val_check_interval": 2, "max_epochs": 1, "max_steps": -1},
        {"limit_train_batches": 4, "max_epochs": 1, "max_steps": -1},
    ],
    ids=["overfit_batches", "validation", "limit_train_batches"],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_parts_of_the_data(trainer: dict[str, Any]) -> None:
    """Validation, sanity checks and shortened epochs are no steps."""
    assert_agrees(Watched(Validated(), **trainer), 8 if "num_sanity_val_steps" in trainer else 4)


def test_fast_dev_run_and_barebones() -> None:
    """Where Lightning allows no logger, the run goes its way and the record is there."""
    run = Watched(Validated(), fast_dev_run=2, max_steps=-1)
    assert run.monitor.last is not None
    assert len(run.probe.records) == 2
    bare = Watched(Regression(), barebones=True, logger=None, enable_checkpointing=None)
    assert len(bare.probe.records) == 5


def test_several_fits_of_one_monitor() -> None:
    """A second fit, of another module, is measured as the first one was."""
    first = Watched(Regression(), max_steps=3)
    module = Regression(layers=nn.Linear(6, 1))
    trainer = pl.Trainer(**{**QUIET, "max_steps": 4}, logger=first.logger, callbacks=[first.monitor, first.probe])
    trainer.fit(module)
    assert_agrees(first, 7)
    assert first.monitor.last is not None
    assert first.monitor.last.parameters == ("layers.weight", "layers.bias")


def test_fit_that_goes_on() -> None:
    """A trainer that fits on with more epochs goes on counting steps."""
    run = Watched(Regression(batches=3), max_epochs=1, max_steps=-1)
    run.trainer.fit_loop.max_epochs = 2
    run.trainer.fit(run.module)
    assert_agrees(run, 6)
    assert [step for step, _ in run.logger.values("gradexplode/grad_norm")] == list(range(6))


@pytest.mark.parametrize("mode", ["plain", "accumulated"])
def test_gradients_that_the_module_changes(mode: str) -> None:
    """What is logged is what the optimizer is handed, though the module's hook changes it after the monitor's."""

    class Halves(Regression):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(0.5)

    assert_agrees(Watched(Halves(), accumulate_grad_batches=1 if mode == "plain" else 2), 5)


def test_gradients_that_a_tensor_replaces() -> None:
    """A gradient that is exchanged for another tensor is measured anew."""

    class Replaces(Regression):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                parameter.grad = torch.full_like(parameter, 2.0)

    assert_agrees(Watched(Replaces()), 5)


def test_gradients_written_through_data() -> None:
    """A gradient that is written to through ``.data`` is measured as the optimizer receives it."""

    class Writes(Regression):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad.data.mul_(3.0)

    assert_agrees(Watched(Writes()), 5)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_window_resumed_in_its_middle(tmp_path: Path) -> None:
    """A checkpoint in the middle of an accumulation window loses its gradients; what remains is measured."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.fit_loop.batch_idx == 4:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "max_epochs": 1, "max_steps": -1}
    Watched(Regression(batches=9), callbacks=[Saves()], **settings)
    run = Watched(Regression(batches=9), ckpt_path=str(tmp_path / "middle.ckpt"), **settings)
    assert_agrees(run, 2)
