"""A training loop whose members fail: what can be done without is switched off, and no run is ended."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradexplode import Response
from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.lightning import LightningLoop
from tests.engine.test_run import Regression
from tests.runs.models import Regression as LightningRegression
from tests.runs.probe import Watched

OPTIONAL = [
    *("epoch", "batches_per_epoch", "is_last_batch", "settings", "may_change_gradients", "overrides_clipping"),
    *("log_every_n_steps", "publish_metrics", "logged_scalars", "report_folder", "run_name", "run_id"),
    *("schedulers", "weight_averages", "can_save_checkpoints", "data_loader", "can_replay", "set_clip"),
    *("clips", "can_stop", "minimum_training", "block_checkpoints", "use_measured_norm"),
]
ESSENTIAL = ["process_group", "is_automatic", "loss_scale", "step", "module", "optimizers", "clip_setting"]


def failing(name: str, kind: type[TrainingLoop]) -> Any:
    """Return a member that raises."""

    def fails(*arguments: Any) -> Any:
        raise OSError("broken on purpose")

    return property(fails) if isinstance(getattr(kind, name), property) else fails


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_member_that_can_be_done_without(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every step is measured and clipped, the bad update is held back, and at most one line names the member."""
    regression = Regression(folder=tmp_path)
    kind = type(regression.loop)
    regression.loop.__class__ = type("Failing", (kind,), {name: failing(name, kind)})
    batches = regression.batches(8)
    batches[4] = batches[4] * float("nan")
    arguments = Arguments.checked(
        report=name in ("report_folder", "run_name", "settings"),
        clip=1e-3,
        on_explosion=["checkpoint", "skip"],
        log_every_n_steps=1,
        diagnose=False,
    )
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        run = TrainingRun(arguments, regression.loop, {})
        regression.loop.train(run, batches)
    assert not run.failed
    assert len(regression.logger.values("gradexplode/grad_norm")) == 8
    clipped = [value for step, value in regression.logger.values("gradexplode/grad_norm_clipped") if step != 4]
    assert max(clipped) == pytest.approx(1e-3, rel=1e-2)
    assert all(bool(torch.isfinite(one).all()) for one in regression.network.parameters())
    assert len([line for line in caplog.messages if f"Failing.{name} is not used any more" in line]) <= 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", ESSENTIAL)
def test_a_member_without_which_nothing_can_be_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor is off, and training goes on as without it: no hook of a run that could not be built is left."""
    monkeypatch.setattr(LightningLoop, name, failing(name, LightningLoop))
    run = Watched(LightningRegression(), max_steps=6, monitor={"clip": 1e-3, "on_explosion": "rollback"})
    assert run.trainer.global_step == 6
    assert run.monitor.failed
    assert not run.trainer.optimizers[0]._optimizer_step_pre_hooks


def test_a_stop_that_fails_is_not_reported_as_one_that_worked(caplog: pytest.LogCaptureFixture) -> None:
    """One line is logged that the training loop cannot be stopped, none that training is stopped."""

    class CannotStop(type(Regression().loop)):  # type: ignore[misc]
        can_stop = True

        def stop(self) -> None:
            raise OSError("broken on purpose")

    regression = Regression(4.0)
    regression.loop.__class__ = CannotStop
    run = TrainingRun(Arguments.checked(report=False, on_explosion="stop"), regression.loop, {})
    regression.loop.train(run, regression.batches(20))
    assert not run.failed
    assert "CannotStop.stop is not used any more" in caplog.text
    assert "this training loop cannot be stopped" in caplog.text
    assert "training is stopped" not in caplog.text


def test_responses_find_the_trainer_of_the_loop() -> None:
    """What a user's response reads of the run is the loop's own."""
    seen = []

    class Looks(Response):
        def respond(self, findings: Any, run: Any) -> bool:
            seen.append(run.trainer)
            return False

    run = Watched(LightningRegression(), max_steps=12, monitor={"on_explosion": [Looks()]})
    assert not seen
    regression = LightningRegression(lambda parameters: torch.optim.SGD(parameters, lr=1e9))
    run = Watched(regression, max_steps=12, monitor={"on_explosion": [Looks()]})
    assert seen
    assert seen[0] is run.trainer
