"""Where the numbers go, and what happens when something fails on the way."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gradexplode import Detector, GradientExplosionMonitor, Response, StepRecord
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.loggers.console import Console
from lightning_gradexplode.measure.gradients import GradientReading
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.agreement import assert_agrees
from tests.runs.models import Regression
from tests.runs.probe import QUIET, Watched, counts


def test_several_loggers_at_once(tmp_path: Path) -> None:
    """TensorBoard gets scalars and histograms, a CSV file the same scalars."""
    board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table")
    run = Watched(Regression(), logger=[board, table])
    truths = run.probe.truths
    accumulator = EventAccumulator(board.log_dir, size_guidance={"histograms": 0, "scalars": 0}).Reload()
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("gradexplode/grad_norm")]
    assert len(rows) == 5
    for name in ("grad_norm", "grad_max", "update_ratio", "weight_norm", "severity", "grad_norm/layers.0.weight"):
        events = accumulator.Scalars(f"gradexplode/{name}")
        assert [event.step for event in events] == list(range(5))
        written = [float(row[f"gradexplode/{name}"]) for row in rows]
        assert [event.value for event in events] == pytest.approx(written, rel=1e-6)
    tags = accumulator.Tags()["histograms"]
    assert {tag.split("/")[1] for tag in tags} == {"gradient", "log10_gradient", "update", "weight"}
    shown = accumulator.Histograms("gradexplode/gradient/layers.0.weight")
    for event, truth in zip(shown, truths, strict=True):
        assert sum(event.histogram_value.bucket) == sum(counts(truth.gradients["layers.0.weight"]))


def test_steps_are_those_of_lightnings_own_metrics() -> None:
    """With accumulation and manual intervals, a metric that the module logs has the same steps."""

    class Logs(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("loss", loss)
            return loss

    for interval in (1, 2):
        run = Watched(
            Logs(),
            monitor={"log_every_n_steps": None},
            log_every_n_steps=interval,
            accumulate_grad_batches=2,
            max_steps=8,
        )
        theirs = {at for at, _ in run.logger.values("loss")}
        ours = [at for at, _ in run.logger.values("gradexplode/grad_norm") if at is not None]
        alert = {at for finding in run.monitor.findings for at in range(finding.step, finding.step + 11)}
        assert set(ours) - alert == theirs - alert
        assert len(ours) == len(set(ours))


def test_a_run_without_a_logger_is_monitored() -> None:
    """Without a logger the monitor judges all the same."""
    run = Watched(Regression(), logger=False)
    assert len(run.probe.records) == 5
    assert run.monitor.last is not None
    assert "gradexplode/grad_norm" in run.trainer.callback_metrics


def test_a_logger_that_fails_costs_only_its_own_data(caplog: pytest.LogCaptureFixture) -> None:
    """The other loggers get all, and the failure is logged once."""

    class Fails(RecordingLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise OSError("the disk is full")

    good, bad = RecordingLogger(), Fails()
    Watched(Regression(), logger=[bad, good])
    assert len(good.values("gradexplode/grad_norm")) == 5
    assert caplog.text.count("the disk is full") == 1


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (GradientReading, "take"),
        (Step, "measure_gradients"),
        (Step, "measure_gradient_histograms"),
        (Step, "measure_weights"),
    ],
)
def test_a_failure_of_the_monitor_does_not_end_the_run(
    place: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever measuring fails, training goes on bit for bit, and the failure is logged once."""
    torch.manual_seed(1)
    healthy = Regression()
    pl.Trainer(**QUIET, logger=False).fit(healthy)

    def fail(*args: Any, **kwargs: Any) -> StepRecord:
        raise ArithmeticError("measuring failed")

    monkeypatch.setattr(place, name, fail)
    torch.manual_seed(1)
    module = Regression()
    with caplog.at_level(logging.INFO, "lightning_gradexplode"):
        run = Watched(module)
    assert run.trainer.global_step == 5
    assert len([one for one in caplog.records if one.exc_info]) == 1
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), healthy.parameters(), strict=True))


def test_a_failure_while_leaving_does_not_end_the_run_either(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the monitor fails and cannot restore the run either, both is logged, and training goes on."""

    def fail(*args: Any, **kwargs: Any) -> StepRecord:
        raise ArithmeticError("failed")

    monkeypatch.setattr(Step, "measure_gradients", fail)
    monkeypatch.setattr(Console, "end_incident", fail)
    run = Watched(Regression())
    assert run.trainer.global_step == 5
    assert "could not restore everything" in caplog.text


def test_a_failing_detector_or_response_is_switched_off_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A part that a user gave and that raises is named once; measuring and clipping go on."""

    class FailingDetector(Detector):
        sign = "none"
        reads = ("loss",)

        def check(self, record: StepRecord) -> None:
            raise LookupError("detector")

    class FailingResponse(Response):
        def respond(self, findings: Any, run: Any) -> None:
            raise LookupError("response")

    class Explodes(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * float("inf")

    for module, settings, steps in (
        (Regression(), {"detectors": [FailingDetector()], "clip": 1.0}, 5),
        (Explodes(), {"on_explosion": FailingResponse(), "clip": 1.0}, 1),  # with no response left training is stopped
    ):
        caplog.clear()
        run = Watched(module, monitor=settings)
        assert run.trainer.global_step == steps
        assert not run.monitor.failed
        assert len([one for one in caplog.records if "is switched off" in one.getMessage()]) == 1
        assert len(run.logger.values("gradexplode/clip_val")) == steps
        assert run.trainer.gradient_clip_val is None
        assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_failure_is_forgotten_by_the_next_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that failed in one fit watches the next one."""

    def fail(*args: Any, **kwargs: Any) -> StepRecord:
        raise ArithmeticError("measuring failed")

    with monkeypatch.context() as patch:
        patch.setattr(GradientReading, "take", fail)
        broken = Watched(Regression())
    assert broken.monitor.last is None
    broken.probe.truths.clear()
    trainer = pl.Trainer(**QUIET, logger=broken.logger, callbacks=[broken.monitor, broken.probe])
    trainer.fit(Regression())
    assert_agrees(broken, 5)


def test_patterns_select_what_is_logged_by_itself() -> None:
    """Patterns choose what is shown by itself; the totals hold all."""
    run = Watched(Regression(), monitor={"include": ["*.weight"], "exclude": ["layers.3.*"]})
    shown = {key for one in run.logged for key in one if key.startswith("gradexplode/grad_norm/")}
    assert shown == {"gradexplode/grad_norm/layers.0.weight"}
    assert set(run.probe.records[-1].histograms["gradient"]) == {"layers.0.weight"}
    whole = Watched(Regression(), monitor={"per_parameter": False})
    assert not [key for one in whole.logged for key in one if key.startswith("gradexplode/grad_norm/")]


def test_logs_keep_their_intervals() -> None:
    """Scalars and histograms come at their intervals, in phase with Lightning's own, and never at 0."""
    calm: dict[str, Any] = {"detectors": []}
    run = Watched(Regression(), monitor={"log_every_n_steps": 2, "histogram_every_n_steps": 3, **calm}, max_steps=7)
    assert [at for at, _ in run.logger.values("gradexplode/grad_norm")] == [1, 3, 5]
    assert [bool(record.histograms) for record in run.probe.records] == [False, False, True] * 2 + [False]
    never = Watched(Regression(), monitor={"log_every_n_steps": 0, "histogram_every_n_steps": 0, **calm})
    assert not never.logged
    assert never.monitor.last is not None
    assert never.monitor.last.grad_norm is not None


def test_the_monitor_alone_in_a_callback_list_of_no_fit() -> None:
    """Before any fit there is nothing to see, and validation alone is none of the monitor's business."""
    monitor = GradientExplosionMonitor()
    assert (monitor.findings, monitor.exploded, monitor.last) == ([], False, None)
    assert monitor.state_dict() == {}
