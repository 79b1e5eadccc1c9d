"""The engine, driven without a Trainer by a plain training loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_gradexplode import Detector, ExplosionError, Finding, Severity, StepRecord
from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.report import read_report
from lightning_gradexplode.testing import PlainLoop, RecordingLogger


class Regression:
    """A linear regression by gradient descent; above a rate of about 2 it explodes."""

    def __init__(self, rate: float = 0.1, folder: Path | None = None, optimizers: int = 1) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(8, 1)
        self.logger = RecordingLogger()
        built = [SGD(self.network.parameters(), lr=rate) for _ in range(optimizers)]
        self.loop = PlainLoop(self.network, built, self.loss, [self.logger], folder)

    def loss(self, batch: Tensor) -> Tensor:
        """Return half the mean squared error."""
        loss: Tensor = (self.network(batch) - batch.sum(dim=1, keepdim=True)).square().mean() / 2
        return loss

    def train(self, steps: int, **arguments: Any) -> TrainingRun:
        """Train with a monitor."""
        run = TrainingRun(Arguments.checked(**{"report": False, **arguments}), self.loop, {})
        self.loop.train(run, self.batches(steps))
        return run

    @staticmethod
    def batches(steps: int) -> list[Tensor]:
        """Return batches that are the same each time."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(16, 8, generator=generator) for _ in range(steps)]


def norm_of(network: nn.Module) -> float:
    """Return the norm of a network's gradients in float64."""
    gradients = [one.grad.double().flatten() for one in network.parameters() if one.grad is not None]
    return float(torch.cat(gradients).norm())


def same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have the same weights, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_every_step_is_measured_exactly() -> None:
    """The logged norm is that of the gradients of a second network that is trained by hand, and nothing is changed."""
    regression, twin = Regression(), Regression()
    regression.train(5)
    truth = []
    for batch in twin.batches(5):
        twin.network.zero_grad()
        twin.loss(batch).backward()  # type: ignore[no-untyped-call]
        truth.append(norm_of(twin.network))
        twin.loop.optimizers[0].step()
    assert [value for _, value in regression.logger.values("gradexplode/grad_norm")] == pytest.approx(truth, rel=1e-6)
    assert same(regression.network, twin.network)


class LongIncident(Detector):
    """Warns at every tenth step from step 50 on, and finds an explosion 600 steps later."""

    sign, reads = "long", ("loss",)

    def check(self, record: StepRecord) -> Finding | None:
        """Return the finding of a step."""
        if record.step < 50 or record.step % 10:
            return None
        severity = Severity.CRITICAL if record.step >= 650 else Severity.WARNING
        return Finding(record.step, self.sign, severity, None, 1.0, 0.0, "it goes on")


def test_a_report_shows_the_beginning_of_a_long_incident(tmp_path: Path) -> None:
    """More steps than a recorder keeps may lie between the first warning of an incident and its explosion."""
    run = Regression(folder=tmp_path).train(651, report=True, detectors=[LongIncident()])
    assert run.report_folder is not None
    (history,) = read_report(run.report_folder).evidence.history
    assert history.step.tolist() == list(range(651))


def test_an_explosion_is_found_diagnosed_and_reported(tmp_path: Path) -> None:
    """A loop that can neither stop, save, nor compute a step again gets findings, a diagnosis and a report."""
    run = Regression(4.0, tmp_path).train(60, report=True)
    assert any(finding.severity is Severity.CRITICAL for finding in run.findings)
    diagnosis = run.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes
    assert run.report_folder == tmp_path / "gradexplode"
    written = json.loads((tmp_path / "gradexplode" / "diagnosis.json").read_text())
    assert written["causes"][0]["kind"] == diagnosis.causes[0].kind
    assert (tmp_path / "gradexplode" / "index.html").exists()


def test_a_report_that_cannot_be_written_costs_the_report_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be made is named in one warning, and the run goes on."""
    (tmp_path / "file").write_text("in the way")
    run = Regression(4.0, tmp_path / "file").train(60, report=True)
    assert not run.failed
    assert run.last is not None
    assert run.last.step == 59
    assert caplog.text.count("the report could not be written") == 1


def test_updates_are_skipped_in_a_loop_that_cannot_stop() -> None:
    """The reason is in the record, and no update that is not finite reaches the weights."""
    regression = Regression(0.1)
    batches = regression.batches(6)
    batches[3][0, 0] = float("nan")
    run = TrainingRun(Arguments.checked(report=False, on_explosion="skip"), regression.loop, {})
    regression.loop.train(run, batches[:4], close=False)
    assert run.last is not None
    assert run.last.skipped_by is not None
    assert "SkipStep" in run.last.skipped_by
    assert "nonfinite" in run.last.skipped_by
    assert run.last.update_taken is False
    regression.loop.train(run, batches[4:])
    assert run.last.update_taken is True
    assert all(parameter.isfinite().all() for parameter in regression.network.parameters())


def test_a_response_may_raise() -> None:
    """An `ExplosionError` leaves the loop before the update; nothing else of the monitor ever does."""
    regression, twin = Regression(), Regression()
    batches = regression.batches(3)
    batches[2][:] = float("nan")
    twin.loop.train(TrainingRun(Arguments.checked(report=False), twin.loop, {}), batches[:2])
    run = TrainingRun(Arguments.checked(report=False, on_explosion="raise"), regression.loop, {})
    with pytest.raises(ExplosionError) as raised:
        regression.loop.train(run, batches)
    run.aborted(raised.value)
    run.close()
    assert same(regression.network, twin.network)


def test_clipping_works_where_the_loop_does_not_clip() -> None:
    """The gradients themselves are clipped, and the norm after clipping is logged beside that before it."""
    regression = Regression()
    regression.train(4, clip=0.25)
    clipped = [value for _, value in regression.logger.values("gradexplode/grad_norm_clipped")]
    before = [value for _, value in regression.logger.values("gradexplode/grad_norm")]
    assert all(value > 0.25 for value in before)
    assert clipped == pytest.approx([0.25] * 4, rel=1e-5)


def test_several_optimizers_are_logged_together_and_each_by_itself() -> None:
    """There is one value per name and step; that of the batch is the root of the summed squares of the optimizers."""
    regression = Regression(optimizers=2)
    regression.train(3)
    together = regression.logger.values("gradexplode/grad_norm")
    each = [regression.logger.values(f"gradexplode/optimizer_{index}/grad_norm") for index in (0, 1)]
    assert [step for step, _ in together] == [0, 1, 2]
    for (_, total), (_, first), (_, second) in zip(together, *each, strict=True):
        assert total == pytest.approx((first**2 + second**2) ** 0.5, rel=1e-6)


def test_a_run_continues_from_its_state() -> None:
    """Thresholds and rates go on; the last record is that of a run that was never stopped."""
    whole, halves = Regression(), Regression()
    run = whole.train(8, clip="auto")
    first = TrainingRun(Arguments.checked(report=False, clip="auto"), halves.loop, {})
    batches = halves.batches(8)
    halves.loop.train(first, batches[:4])
    second = TrainingRun(Arguments.checked(report=False, clip="auto"), halves.loop, first.state_dict())
    halves.loop.train(second, batches[4:])
    assert run.last is not None
    assert second.last is not None
    assert (second.last.clip_val, second.last.clip_rate) == (run.last.clip_val, run.last.clip_rate)
    assert second.last.grad_norm == run.last.grad_norm


@pytest.mark.parametrize(
    "damage",
    [{"findings": 3}, {"optimizers": [{"steps": "many"}]}, {"optimizers": 7}, {"schedule": None}, {"version": 99}],
)
def test_a_damaged_state_costs_the_part_that_is_damaged(
    damage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A part that is missing, unknown or corrupt starts fresh and is named in one line; the run goes on."""
    regression = Regression()
    state = {**regression.train(3, clip=1.0).state_dict(), **damage}
    caplog.clear()
    run = TrainingRun(Arguments.checked(report=False, clip=1.0), regression.loop, state)
    regression.loop.train(run, regression.batches(2))
    assert not run.failed
    assert run.last is not None
    assert run.last.clip_val == 1.0
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)


def test_without_detectors_everything_is_measured_and_held_back() -> None:
    """No finding is needed for the guard against updates that are not finite."""
    regression = Regression()
    batches = regression.batches(6)
    batches[3] = batches[3] * float("nan")
    run = TrainingRun(Arguments.checked(report=False, detectors=[], on_explosion="skip"), regression.loop, {})
    regression.loop.train(run, batches)
    assert not run.failed
    assert run.findings == []
    assert len(regression.logger.values("gradexplode/severity")) == 6
    assert all(bool(torch.isfinite(one).all()) for one in regression.network.parameters())


def test_a_process_that_shows_nothing_returns_the_diagnosis_that_is_shown_elsewhere() -> None:
    """Also after later findings of the same incident, such as those of weights that are not finite any more."""

    class Other(PlainLoop):
        is_main_process = False

    shown = Regression(rate=20.0)
    other = Regression(rate=20.0)
    other.loop.__class__ = Other
    found = shown.train(60).diagnosis()
    assert found is not None
    assert other.train(60).diagnosis() == found
