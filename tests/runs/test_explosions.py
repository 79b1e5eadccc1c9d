"""Explosions in real runs: each sign of the article is found, logged once, and responded to before weights are lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from lightning_gradexplode import ExplosionError, GradientExplosionMonitor, Severity
from lightning_gradexplode.testing import ExplodingRecurrence, ExplodingRegression
from tests.runs.models import Regression
from tests.runs.probe import QUIET, Watched


class Exploding(ExplodingRegression, pl.LightningModule):
    """Grows without end."""


class Recurrent(ExplodingRecurrence, pl.LightningModule):
    """Overflows at the first step."""


class NaNAt(Regression):
    """Has a loss, or only a gradient, that is NaN at one batch.

    Args:
        step: The batch.
        where: ``"loss"`` or ``"gradient"``.
        build: Makes the optimizer.
    """

    def __init__(self, step: int, where: str = "loss", build: Any = None) -> None:
        super().__init__(build)
        self.step = step
        self.where = where

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss = self.loss(batch)
        return loss * float("nan") if batch_idx == self.step and self.where == "loss" else loss

    def on_after_backward(self) -> None:
        """Spoil one gradient."""
        if self.trainer.global_step == self.step and self.where == "gradient":
            self.layers[0].weight.grad[0, 0] = float("nan")  # type: ignore[index]


class UnreturnedNaN(Regression):
    """In manual optimization, has a loss at one batch that is NaN without a gradient that is, and returns none."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.returns = returns

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Step twice for each update."""
        optimizer: Any = self.optimizers()
        loss = self.loss(batch) + (torch.nan if batch_idx == 4 else 0.0)
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()
        return loss.nan_to_num(0.0) if self.returns else None


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Build an optimizer with a state that zeroed gradients would move."""
    return torch.optim.Adam(parameters, lr=0.01)


def signs(run: Watched, least: Severity = Severity.INFO) -> set[str]:
    """Return the signs of all findings of at least a severity."""
    return {finding.sign for finding in run.monitor.findings if finding.severity >= least}


def test_sign_1_the_loss_does_not_converge() -> None:
    """Training that learns nothing is reported."""
    module = Regression(lambda parameters: torch.optim.SGD(parameters, lr=1e-9))
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # so that each epoch has the same losses
    assert "stalled-loss" in signs(Watched(module, max_steps=260, monitor={"histogram_every_n_steps": 0}))


def test_sign_2_the_loss_is_unstable() -> None:
    """Large jumps of the loss from update to update are reported; so is one that leaves for good."""

    class Jumps(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            step = self.trainer.global_step
            return (
                self.loss(batch) * 0
                + (100.0 if step > 40 and step % 2 else 1.0 + 0.01 * (step % 3))
                + (1e-3 * self.loss(batch))
            )

    assert "unstable-loss" in signs(Watched(Jumps(), max_steps=60, monitor={"histogram_every_n_steps": 0}))
    assert "diverging-loss" in signs(Watched(Exploding(), max_steps=10), Severity.CRITICAL)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_signs_3_and_5_nan(where: str) -> None:
    """A NaN is critical at its own step, and so are the weights that it reaches."""
    run = Watched(NaNAt(3, where), max_steps=6)
    found = {finding.sign: finding for finding in run.monitor.findings}
    expected = {"nonfinite-gradient", "nonfinite-weight"} | ({"nonfinite-loss"} if where == "loss" else set())
    assert expected <= set(found)
    assert {found[sign].step for sign in expected} == {3}
    assert {found[sign].severity for sign in expected} == {Severity.CRITICAL}
    began = {"loss": "layers.3.bias", "gradient": "layers.0.weight"}  # the backward pass of a loss begins at the last
    assert found["nonfinite-gradient"].where == began[where]
    assert found["nonfinite-weight"].where == "layers.0.weight"
    assert run.monitor.exploded


def test_signs_4_and_6_weights_and_gradients() -> None:
    """Weights that change very much, and gradients that stay above one, are reported."""
    run = Watched(Exploding(), max_steps=12)
    assert {"weight-growth", "large-update", "gradient-above-one"} <= signs(run)
    note = next(finding for finding in run.monitor.findings if finding.sign == "gradient-above-one")
    assert note.severity is Severity.INFO


def test_a_recurrent_network_that_overflows_at_once() -> None:
    """The first step is judged too."""
    run = Watched(Recurrent(), max_steps=2)
    assert {"nonfinite-gradient", "nonfinite-weight"} <= signs(run, Severity.CRITICAL)
    assert run.monitor.findings[0].step == 0


def test_a_healthy_run_is_not_alarmed() -> None:
    """Training that goes well has no critical finding, and a severity that says so."""
    run = Watched(Regression(lambda parameters: torch.optim.Adam(parameters, lr=0.003)), max_steps=150)
    assert not run.monitor.exploded
    assert max(one["gradexplode/severity"] for one in run.logged) < Severity.CRITICAL


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_stop_comes_before_the_update(where: str, clip: float | None) -> None:
    """The run ends cleanly, the weights and the optimizer's state being those before the bad step."""
    module, good = NaNAt(3, where, adam), NaNAt(99, where, adam)
    good.load_state_dict(module.state_dict())
    torch.manual_seed(4)
    run = Watched(module, monitor={"on_explosion": "stop", "clip": clip}, max_steps=6)
    torch.manual_seed(4)
    expected = Watched(good, monitor={"clip": clip}, max_steps=3)
    assert run.trainer.global_step == 4
    assert run.trainer.should_stop
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), good.parameters(), strict=True))
    stopped, reached = (one.trainer.optimizers[0].state_dict()["state"] for one in (run, expected))
    assert all(torch.equal(stopped[key][name], reached[key][name]) for key in reached for name in reached[key])
    assert run.logged[-1]["gradexplode/skipped_steps"] == 1


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_raise_comes_before_the_update(where: str) -> None:
    """The error carries the findings, and no weight is bad."""
    module = NaNAt(3, where)
    monitor = GradientExplosionMonitor(on_explosion="raise", report=False)
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[monitor])
    with pytest.raises(ExplosionError, match="nonfinite") as caught:
        trainer.fit(module)
    assert {finding.step for finding in caught.value.findings} == {3}
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert monitor.exploded


def test_an_alarm_once_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    """The console shows each sign before the first critical one, that one in a panel, and three others in one line."""
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        run = Watched(Exploding(), max_steps=15)
    lines = [one.getMessage() for one in caplog.records if "step" in one.getMessage()]
    severities = [finding.severity for finding in run.monitor.findings]
    first = severities.index(Severity.CRITICAL)
    *before, panel, rest = lines
    assert len(before) == severities[:first].count(Severity.WARNING)
    assert f"CRITICAL at step {run.monitor.findings[first].step}" in panel
    later = {one.sign for one in run.monitor.findings[first + 1 :]}
    assert len(rest.splitlines()) == 1
    assert later
    assert sum(sign in rest for sign in later) == min(len(later), 3)
    per_sign = {sign: [f.severity for f in run.monitor.findings if f.sign == sign] for sign in signs(run)}
    assert all(severities == sorted(set(severities)) for severities in per_sign.values())
    critical = [one for one in run.logged if one["gradexplode/severity"] == Severity.CRITICAL]
    assert len(critical) > 5


def test_report_of_a_critical_finding(tmp_path: Path) -> None:
    """The findings and all steps lie in the log folder's ``gradexplode``; a healthy run leaves nothing."""
    for module in (Regression(), NaNAt(3)):
        monitor = GradientExplosionMonitor()
        logger = pl.loggers.CSVLogger(tmp_path, name=type(module).__name__)
        pl.Trainer(**QUIET, logger=logger, callbacks=[monitor]).fit(module)
        folder = Path(logger.log_dir) / "gradexplode"
        assert folder.exists() is (type(module) is NaNAt)
    lines = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    assert [line["sign"] for line in lines] == [finding.sign for finding in monitor.findings]
    assert all(line["severity"] in ("INFO", "WARNING", "CRITICAL") for line in lines)
    with np.load(folder / "steps.npz") as steps:
        assert steps["step"].tolist() == [0, 1, 2, 3, 4]
        assert np.isnan(steps["grad_norm"]).tolist() == [False, False, False, True, True]


def test_report_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    """``report`` takes a folder."""
    monitor = GradientExplosionMonitor(report=tmp_path / "reports")
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(NaNAt(2))
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {
        "findings.jsonl",
        "steps.npz",
        "diagnosis.json",
        "index.html",
    }


def test_metrics_for_early_stopping_and_checkpoints(tmp_path: Path) -> None:
    """The norm, the update ratio and the severity are there for callbacks that monitor a metric."""
    stopping = EarlyStopping(
        "gradexplode/severity", mode="min", patience=100, divergence_threshold=2.5, check_on_train_epoch_end=True
    )
    best = ModelCheckpoint(tmp_path, monitor="gradexplode/grad_norm", mode="min", save_on_train_epoch_end=True)
    settings = {**QUIET, "max_steps": -1, "max_epochs": 6, "enable_checkpointing": True, "limit_train_batches": 1}
    monitor = GradientExplosionMonitor(report=False)
    trainer = pl.Trainer(**settings, logger=False, callbacks=[monitor, stopping, best])
    trainer.fit(Exploding())
    assert trainer.current_epoch < 6
    assert stopping.stopped_epoch > 0
    assert best.best_model_score is not None
    metrics = {name for name in trainer.callback_metrics if name.startswith("gradexplode/")}
    assert metrics == {"gradexplode/grad_norm", "gradexplode/severity"} | (
        {"gradexplode/update_ratio"} if "gradexplode/update_ratio" in metrics else set()
    )
    assert monitor.last is not None
    assert float(trainer.callback_metrics["gradexplode/grad_norm"]) == pytest.approx(monitor.last.grad_norm)


def test_update_ratio_is_a_callback_metric() -> None:
    """Where each step is logged, each step's update ratio is at hand."""
    run = Watched(Regression(layers=nn.Linear(6, 1)))
    assert float(run.trainer.callback_metrics["gradexplode/update_ratio"]) == pytest.approx(
        run.logged[-1]["gradexplode/update_ratio"]
    )


def test_numbers_beyond_float32_reach_the_callbacks() -> None:
    """A gradient norm that no float32 can hold, as explosions bring, is no failure of the monitor's."""

    class Huge(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * 1e60

        def loss(self, batch: Any) -> Any:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layers(inputs.double()), targets.double())

    module = Huge(lambda parameters: torch.optim.SGD(parameters, lr=0.0)).double()
    run = Watched(module)
    assert len(run.logged) == 5
    assert run.monitor.last is not None
    assert run.monitor.last.grad_norm is not None
    assert run.monitor.last.grad_norm > 1e55
    assert float(run.trainer.callback_metrics["gradexplode/grad_norm"]) == run.monitor.last.grad_norm


@pytest.mark.parametrize("returns", [True, False])
def test_a_loss_that_is_not_returned_is_known_where_it_is_not_finite(returns: bool) -> None:
    """A backward pass of NaN counts for the next update, unless another loss is returned; finite ones do not count."""
    monitor = GradientExplosionMonitor(report=False, log_every_n_steps=1)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(UnreturnedNaN(returns))
    assert not monitor.failed
    assert [one.sign for one in monitor.findings] == ([] if returns else ["nonfinite-loss"])
    assert monitor.last is not None
    assert (monitor.last.loss is None) != returns
