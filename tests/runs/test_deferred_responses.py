"""Responses to what is found after an update, on an accelerator: nothing is changed under a graph that is still needed.

There is no accelerator here: the monitor is made to believe that tensors lie on one.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lightning_gradexplode import (
    Detector,
    ExplosionError,
    Finding,
    GradientExplosionMonitor,
    GradientWatch,
    Response,
    Severity,
    StepRecord,
)
from lightning_gradexplode.measure import reading
from tests.runs.probe import QUIET

BAD = 4


class AlarmAt(Detector):
    """Finds something critical at one step, before or after its update."""

    sign = "alarm"

    def __init__(self, step: int, reads: str) -> None:
        self.step = step
        self.reads = (reads,)  # type: ignore[misc]

    def check(self, record: StepRecord) -> Finding | None:
        """Alarm, or not."""
        return self.finding(record, Severity.CRITICAL, 1.0, 0.0, "on purpose") if record.step == self.step else None


class Halves(Response):
    """Writes to the weights as soon as it is called."""

    def respond(self, findings: Any, run: Any) -> None:
        """Halve all weights."""
        with torch.no_grad():
            for parameter in run.module.parameters():
                parameter.mul_(0.5)


class Normalized(pl.LightningModule):
    """A network whose backward pass needs its weights and its running averages as the forward pass found them."""

    def __init__(self, spoiled: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spoiled = spoiled
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        self.averages: list[list[Tensor]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Compute a loss; of one batch the inputs are NaN."""
        inputs = batch * torch.nan if batch_idx == self.spoiled else batch
        return torch.as_tensor(self.net(inputs).square().mean())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Copy the running averages."""
        self.averages.append([one.clone() for one in self.buffers()])

    def train_dataloader(self) -> Any:
        """Return ten batches."""
        torch.manual_seed(1)
        return DataLoader(torch.randn(80, 4), batch_size=8)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """Build an optimizer that can leave out an update on its device."""
        return AdamW(self.parameters(), lr=0.01, fused=True)


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that all tensors lie on an accelerator."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)


def train(module: Normalized, **arguments: Any) -> GradientExplosionMonitor:
    """Train for ten steps."""
    monitor = GradientExplosionMonitor(log_every_n_steps=0, histogram_every_n_steps=0, report=False, **arguments)
    pl.Trainer(**{**QUIET, "max_steps": 10}, logger=False, callbacks=[monitor]).fit(module)
    assert not monitor.failed
    assert monitor.last is not None
    assert monitor.last.step == 9
    return monitor


@pytest.mark.parametrize("reads", ["grad_norm", "weight_norm"])
@pytest.mark.parametrize("response", ["rollback", "reduce-lr", "checkpoint", pytest.param(Halves(), id="own")])
def test_a_response_after_the_update_does_not_end_the_run(
    response: Any, reads: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """It acts between the next backward pass and its update, or at the end of that batch, once."""
    monkeypatch.chdir(tmp_path)
    acted: list[int] = []

    class Notes(Response):
        is_remedy = False

        def respond(self, findings: Any, run: Any) -> bool:
            acted.append(run.step)
            return False

    # A step at which the weights are measured, where that is what the detector needs.
    monitor = train(Normalized(), detectors=[AlarmAt(BAD, reads)], on_explosion=[Notes(), response])
    assert [finding.step for finding in monitor.findings] == acted
    assert acted == [BAD] if reads == "grad_norm" else acted in ([], [BAD])


def test_a_step_whose_late_finding_ends_the_run_is_recorded() -> None:
    """The error is raised in the batch after it; its numbers are those of the last step that is known."""
    monitor = GradientExplosionMonitor(log_every_n_steps=0, report=False, on_explosion="raise")
    with pytest.raises(ExplosionError):
        pl.Trainer(**{**QUIET, "max_steps": 10}, logger=False, callbacks=[monitor]).fit(Normalized(BAD))
    assert monitor.last is not None
    assert monitor.last.step >= BAD
    assert monitor.exploded


@pytest.mark.parametrize("response", ["skip", ["skip", "rollback"]], ids=str)
@pytest.mark.parametrize("spoiled", [3, BAD, 9])
def test_running_averages_are_restored_after_a_late_finding(response: Any, spoiled: int) -> None:
    """A batch of NaN, whose update its device has left out, leaves weights and averages finite."""
    module = Normalized(spoiled)
    monitor = train(module, on_explosion=response)
    assert [finding.step for finding in monitor.findings if finding.sign == "nonfinite-loss"] == [spoiled]
    assert all(one.isfinite().all() for one in [*module.parameters(), *module.buffers()])
    if spoiled < 8:  # the batch after it ends with the averages of before it, which that batch cannot have changed
        before, after = module.averages[spoiled], module.averages[spoiled + 2]
        assert all(map(torch.equal, before, after))


def test_a_calm_run_on_a_device_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """With responses that never act, weights and running averages are bit for bit those without a monitor."""
    watched, plain = Normalized(), Normalized()
    train(watched, on_explosion=["skip", "rollback"])
    pl.Trainer(**{**QUIET, "max_steps": 10}, logger=False).fit(plain)
    for one, other in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("on_host", [True, False])
def test_a_fused_update_that_a_scaler_leaves_out_counts_as_not_taken(
    on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer is called, and leaves it out by itself; the buffers of the batch are restored then, too."""
    if on_host:
        monkeypatch.undo()
    module, taken = Normalized(BAD), dict[int, Any]()

    class Notes(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if monitor.last is not None:
                taken[monitor.last.step] = monitor.last.update_taken

    monitor = GradientExplosionMonitor(log_every_n_steps=0, report=False, on_explosion="skip")
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer = pl.Trainer(**{**QUIET, "max_steps": 10}, logger=False, callbacks=[monitor, Notes()], plugins=[scaler])
    trainer.fit(module)
    assert not monitor.failed
    assert taken.pop(BAD, False) is False  # a step that is read late may share its batch with the next one
    assert all(taken.values())
    assert all(one.isfinite().all() for one in [*module.parameters(), *module.buffers()])
    assert all(map(torch.equal, module.averages[BAD], module.averages[BAD + 1 + (not on_host)]))


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("response", ["skip", "rollback"])
def test_a_step_that_a_scaler_leaves_out_of_a_plain_loop_does_not_end_it(
    response: str, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes known in the next backward pass only, which still needs the buffers that are to be restored."""
    if on_host:
        monkeypatch.undo()
    torch.manual_seed(0)
    network = Normalized().net
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=1024.0)
    watch = GradientWatch(network, optimizer, scaler=scaler, on_explosion=response, report=False)
    for step in range(10):
        optimizer.zero_grad()
        loss = network(torch.randn(8, 4) * (torch.inf if step == BAD else 1.0)).square().mean()
        watch.loss(loss)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    watch.close()
    assert not watch.failed
    assert {finding.step for finding in watch.findings if finding.sign == "nonfinite-loss"} == {BAD}
    assert all(one.isfinite().all() for one in [*network.parameters(), *network.buffers()])
