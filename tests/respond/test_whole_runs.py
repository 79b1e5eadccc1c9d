"""Responses in whole runs whose shape changes, which are killed and resumed, or which nothing can save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as lightning_callbacks
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch import Tensor, nn

from lightning_gradexplode import (
    GradientExplosionMonitor,
    Rollback,
    SaveCheckpoint,
)
from tests.runs.alarms import AlarmAt
from tests.runs.models import Regression
from tests.runs.probe import QUIET, resuming


class Planned(Regression):
    """Its loss is multiplied by planned factors at some steps, NaN among them; the data depend on the step only.

    Args:
        factors: By step.
        layers: The network.
    """

    def __init__(self, factors: dict[int, float], layers: nn.Module | None = None) -> None:
        net = layers or nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 1))
        super().__init__(lambda parameters: torch.optim.Adam(parameters, lr=0.01), layers=net)
        self.factors = factors
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the planned loss."""
        step = self.trainer.global_step
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        self.seen = step
        return self.loss((inputs, inputs.sum(dim=1, keepdim=True))) * self.factors.get(step, 1.0)


def fit(module: pl.LightningModule, responses: Any, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """Train with a monitor in front of other callbacks."""
    ckpt_path, clip = options.pop("ckpt_path", None), options.pop("clip", None)
    settings = {name: options.pop(name) for name in ("detectors", "diagnose") if name in options}
    monitor = GradientExplosionMonitor(on_explosion=responses, clip=clip, report=False, **settings)
    trainer = pl.Trainer(**{**QUIET, **options}, logger=False, callbacks=[monitor, *callbacks])
    trainer.fit(module, **resuming(ckpt_path))
    assert not monitor.failed
    return trainer


def is_finite(module: nn.Module) -> bool:
    """Return whether all weights are finite."""
    return all(bool(torch.isfinite(one).all()) for one in module.parameters())


ACTING: list[Any] = ["skip", "reduce-lr", "rollback", ["checkpoint", "skip"], "stop", ["warn", "skip"]]


@pytest.mark.parametrize("response", ACTING)
def test_weights_stay_finite_whichever_response_acts(response: Any, tmp_path: Path) -> None:
    """From the first NaN on no update is taken that is not finite, up to the end of training."""
    module = Planned(dict.fromkeys(range(6, 90), float("nan")))
    trainer = fit(module, response, max_steps=90, max_epochs=20, default_root_dir=tmp_path)
    assert is_finite(module)
    assert trainer.global_step < 90


def test_skipping_alone_stops_training_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """After three skipped steps nothing is left to try, and the log says so."""
    module = Planned(dict.fromkeys(range(6, 90), float("nan")))
    trainer = fit(module, "skip", max_steps=90, max_epochs=20)
    assert trainer.global_step == 10
    assert "giving up on skipping after 3 steps in a row" in caplog.text
    assert "training is stopped by on_explosion: no response acts any more, because of" in caplog.text


def test_single_bad_batches_are_skipped_for_ever() -> None:
    """A NaN batch now and then costs its own step and never the run."""
    module = Planned(dict.fromkeys(range(6, 64, 5), float("nan")))
    assert fit(module, "skip", max_steps=64, max_epochs=20).global_step == 64
    assert is_finite(module)


@pytest.mark.filterwarnings("ignore:.*should_stop.*")
def test_min_epochs_keeps_a_stopped_run_going_without_bad_updates(caplog: pytest.LogCaptureFixture) -> None:
    """The log says what keeps the run going, and no update that is not finite is taken until it ends."""
    module = Planned(dict.fromkeys(range(6, 90), float("nan")))
    trainer = fit(module, "stop", max_steps=-1, min_epochs=3, max_epochs=9)
    assert trainer.global_step == 24
    assert is_finite(module)
    assert "it goes on until min_epochs=3 is reached" in caplog.text


@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_a_rollback_after_swa_has_swapped_the_schedulers() -> None:
    """The schedule stays the swapped one, the averages go back with the weights, and the model ends finite."""
    module = Planned({33: float("nan"), 60: float("nan")})
    average = StochasticWeightAveraging(0.01, swa_epoch_start=3)
    trainer = fit(module, Rollback(5, 5), average, max_steps=-1, max_epochs=10)
    assert trainer.global_step == 80
    assert is_finite(module)


@pytest.mark.skipif(not hasattr(lightning_callbacks, "EMAWeightAveraging"), reason="Lightning before 2.6")
def test_averages_of_the_weights_come_back_finite() -> None:
    """What is copied into the model when the fit ends is as finite as the model itself."""

    class LateNaN(Planned):
        def on_train_batch_end(self, *arguments: Any) -> None:
            if self.trainer.global_step == 30:
                with torch.no_grad():
                    next(self.parameters()).fill_(float("nan"))

    module = LateNaN({})
    average: Any = getattr(lightning_callbacks, "EMAWeightAveraging")(decay=0.9)  # noqa: B009 (absent before 2.6)
    fit(module, Rollback(5, 5), average, max_steps=40, max_epochs=9)
    assert is_finite(module)


def test_a_rollback_of_lazy_modules(caplog: pytest.LogCaptureFixture) -> None:
    """Without a state at the start, the first healthy ones serve; that there is none yet is no failure to log."""
    module = Planned({25: float("nan")}, nn.Sequential(nn.LazyLinear(10), nn.Tanh(), nn.LazyLinear(1)))
    assert fit(module, Rollback(5, 5), max_steps=40, max_epochs=9).global_step == 40
    assert is_finite(module)
    assert "could not be collected" not in caplog.text


def test_a_rollback_of_a_model_that_grew(caplog: pytest.LogCaptureFixture) -> None:
    """States of the smaller model are dropped; where no other is left, training stops rather than go on with NaN."""

    class Grows(Planned):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 20 and not hasattr(self, "more"):
                self.more = nn.Linear(1, 1)
                self.trainer.optimizers[0].add_param_group({"params": [*self.more.parameters()]})

    soon, late = Grows({22: float("nan")}), Grows({50: float("nan")})
    assert fit(soon, Rollback(5, 5), max_steps=60, max_epochs=9).global_step == 23
    assert "other parameters now" in caplog.text
    assert "there is no state that is known to be good" in caplog.text
    assert fit(late, Rollback(5, 5), max_steps=60, max_epochs=9).global_step == 60
    assert is_finite(soon)
    assert is_finite(late)


def test_a_stretch_of_bad_batches_costs_one_rollback(caplog: pytest.LogCaptureFixture) -> None:
    """After a rollback no update was taken: further batches that are not finite are left out at the same rate."""
    module = Planned(dict.fromkeys(range(20, 30), float("nan")))
    trainer = fit(module, "rollback", max_steps=60, max_epochs=30)
    assert trainer.global_step == 60
    assert "rollback 1 of 10" in caplog.text
    assert "rollback 2 of 10" not in caplog.text
    assert "none was taken since the state at the start of the fit" in caplog.text


def test_the_rate_returns_to_half_of_the_one_that_failed_last() -> None:
    """Two rollbacks in a row cut the rate to an eighth; each new good state raises it, up to a quarter."""
    response = Rollback(5, 5)
    module = Planned({20: float("nan"), 22: float("nan")})
    fit(module, response, max_steps=60, max_epochs=30)
    assert response.scalars()["rollback_rate_factor"] == pytest.approx(0.25)


def test_a_rescue_that_changes_nothing_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Where every batch explodes whatever the weights are, rollbacks end before the rate is next to nothing."""
    module = Planned(dict.fromkeys(range(20, 200), float("nan")))
    trainer = fit(module, "rollback", max_steps=200, max_epochs=30)
    assert trainer.global_step == 46  # of these 20 steps without a rollback, since no update was taken
    assert "giving up after 5 rollbacks in a row" in caplog.text
    assert "learning rate is 3e-05 of its schedule" in caplog.text


def test_checkpoints_on_a_full_disk_leave_nothing_and_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A part of a file is removed, the log says what happened, and training goes on."""

    def full(self: pl.Trainer, path: Path, *arguments: Any, **options: Any) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"a part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full)
    module = Planned({})
    detectors = [AlarmAt({6})]
    trainer = fit(module, [SaveCheckpoint(tmp_path), "skip"], max_steps=12, max_epochs=9, detectors=detectors)
    assert trainer.global_step == 12
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in caplog.text


def test_a_rate_that_is_cut_is_reported_once_and_in_the_report(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """With Adam at a rate of 1000 one line says by how much the policy reduces it and why; later ones are few."""
    module = Planned({})
    module.build = lambda parameters: torch.optim.Adam(parameters, lr=1000.0)
    monitor = GradientExplosionMonitor(clip="auto", report="always")
    options = {**QUIET, "max_steps": 60, "max_epochs": 30, "default_root_dir": tmp_path}
    pl.Trainer(**options, logger=False, callbacks=[monitor]).fit(module)
    lines = [one.getMessage() for one in caplog.records if 'clip="auto"' in one.getMessage()]
    assert "at step 0" in lines[0]
    assert "multiplies the learning rate by" in lines[0]
    assert 1 <= len(lines) <= 5
    (page,) = tmp_path.glob("**/index.html")
    assert "multiplies the learning rate by" in page.read_text(encoding="utf-8")
