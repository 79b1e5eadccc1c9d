"""Incidents on a GPU: found at the right step, explained, remedied on the device, and never a change of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor
from tests.gpu.runs import fit, weights
from tests.runs.test_device_waits import fused

FAULT = 6
"""The batch at fault."""
ROW = 2
"""The row at fault."""


class Network(pl.LightningModule):
    """Two layers with dropout and batch normalization, and nothing at fault.

    Args:
        build: Makes the optimizer of the parameters.
    """

    def __init__(self, build: Any = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.build = build or (lambda parameters: torch.optim.SGD(parameters, lr=1e-2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss."""
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Build the optimizer."""
        return self.build(self.parameters())

    def train_dataloader(self) -> Any:
        """Return batches of eight."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(96, 4, generator=generator)
        return DataLoader(TensorDataset(values, torch.randint(0, 3, (96,), generator=generator)), 8)


class Root(Network):
    """Takes the root of a negative number in one row of one batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss."""
        outputs = self.body(batch[0]).float().abs() + 1.0
        factor = torch.ones(len(outputs), 1, device=self.device)
        if batch_idx == FAULT:
            factor[ROW] = -1.0
        return torch.sqrt(outputs * factor).mean()  # fault


class NaNData(Network):
    """One value of one batch is NaN."""

    def train_dataloader(self) -> Any:
        """Put the NaN into the data."""
        loader = super().train_dataloader()
        loader.dataset.tensors[0][8 * FAULT + ROW, 1] = torch.nan
        return loader


class HalfOverflow(Network):
    """Its activations are too large for float16 from one step on."""

    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss."""
        self.calls += 1
        hidden = self.body[0](batch[0] * (1e6 if self.calls > FAULT else 1.0))
        return nn.functional.cross_entropy(self.body[1:](hidden).float(), batch[1])


class Spike(Network):
    """The loss of one batch is NaN although its data are finite, and the batch itself is as all others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss."""
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss * torch.nan if batch_idx == FAULT else loss


def diagnosis_of(module: pl.LightningModule, folder: Path, steps: int = 10, **arguments: Any) -> dict[str, Any]:
    """Train with a monitor; return what ``diagnosis.json`` holds."""
    trainer = {name: arguments.pop(name) for name in ("precision",) if name in arguments}
    monitor = GradientExplosionMonitor(report=folder, **arguments)
    fit(module, monitor, steps=steps, **trainer)
    assert not monitor.failed
    assert monitor.exploded
    found: dict[str, Any] = json.loads((folder / "diagnosis.json").read_text())
    return found


@pytest.mark.parametrize("arguments", [{"on_explosion": "skip"}, {"on_explosion": ["skip", "rollback"], "clip": 1.0}])
def test_the_operation_is_named(arguments: dict[str, Any], tmp_path: Path) -> None:
    """The step is computed again on the GPU: the root, its line, its row and its step are found."""
    found = diagnosis_of(Root(fused), tmp_path, **arguments)
    assert found["replay"]["status"] == "reproduced"
    assert (found["replay"]["first"]["name"], found["replay"]["first"]["rows"]) == ("sqrt", [ROW])
    assert found["causes"][0]["kind"] == "undefined-operation"


def test_the_field_of_the_batch_is_named(tmp_path: Path) -> None:
    """A NaN in the data is the first cause, with its row."""
    found = diagnosis_of(NaNData(fused), tmp_path, on_explosion="skip")
    assert found["causes"][0]["kind"] == "nonfinite-input"
    assert str(ROW) in json.dumps(found["causes"][0])


def test_an_overflow_of_half_precision_is_named(tmp_path: Path) -> None:
    """Activations beyond float16 under autocast are no fault of the learning rate."""
    found = diagnosis_of(HalfOverflow(fused), tmp_path, steps=40, precision="16-mixed", on_explosion="skip")
    assert found["causes"][0]["kind"] in ("half-precision", "forward-overflow")


@pytest.mark.parametrize("build", [None, fused], ids=["sgd", "fused"])
@pytest.mark.parametrize("on_explosion", ["skip", "rollback", ["skip", "rollback"]])
def test_a_poisoned_update_never_reaches_the_weights(build: Any, on_explosion: Any) -> None:
    """After a batch whose loss is NaN the run goes on with finite weights."""
    module = Spike(build)
    monitor = GradientExplosionMonitor(report=False, on_explosion=on_explosion, log_every_n_steps=0)
    fit(module, monitor)
    assert not monitor.failed
    assert monitor.exploded
    assert next(one.step for one in monitor.findings if one.sign == "nonfinite-loss") == FAULT
    assert all(bool(one.isfinite().all()) for one in weights(module))
    assert all(bool(one.isfinite().all()) for one in module.buffers())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("build", [Root, NaNData, Spike])
def test_an_incident_changes_nothing(build: Any, precision: str, tmp_path: Path) -> None:
    """With ``"warn"`` weights, buffers and random numbers are those of the run without a monitor, NaN for NaN."""
    states = []
    for watched in (True, False):
        module = build()
        monitor = [GradientExplosionMonitor(report=tmp_path)] if watched else []
        fit(module, *monitor, precision=precision)
        assert all(one.exploded and not one.failed for one in monitor)
        tensors = [*module.parameters(), *module.buffers(), torch.cuda.get_rng_state(), torch.get_rng_state()]
        states.append([one.numpy(force=True).tobytes() for one in tensors])
    assert states[0] == states[1]


def test_a_rollback_restores_random_numbers_and_weights_of_a_rate_too_high() -> None:
    """A run that diverges is brought back, and ends with a loss that is not above its start."""

    class Diverging(Network):
        """Its rate is far too high from one step on."""

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = 1e4 if self.trainer.global_step >= 20 and not self.calm else group["lr"]
            self.calm = self.calm or self.trainer.global_step > 21

        calm = False

    module = Diverging()
    monitor = GradientExplosionMonitor(report=False, on_explosion=["skip", "rollback"], log_every_n_steps=0)
    fit(module, monitor, steps=60)
    assert not monitor.failed
    assert all(bool(one.isfinite().all()) for one in weights(module))
