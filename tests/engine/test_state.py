"""What is remembered of a run, between steps and over checkpoints."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_gradexplode import AutoPolicy, ConstantClip, GradientExplosionMonitor, default_detectors
from lightning_gradexplode.clip import ClipPolicy
from lightning_gradexplode.distributed.process_group import ALONE
from lightning_gradexplode.engine.incidents import MOST_FINDINGS, IncidentLog
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.report import Recorder
from tests.detect.steps import noise, record, through_checkpoint


def watch(policy: ClipPolicy | None = None) -> OptimizerState:
    """Watch an optimizer of two parameters."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    return OptimizerState(0, SGD(parameters, lr=0.1), default_detectors(), policy)


def find(step: int, severity: Severity = Severity.CRITICAL, sign: str = "gradient-growth") -> Finding:
    """Build a finding."""
    return Finding(step, sign, severity, None, 2.0, 1.0, "it grows")


def test_a_monitor_without_a_run_hands_on_what_it_was_given() -> None:
    """A checkpoint that is loaded and saved again without a fit in between loses nothing."""
    monitor = GradientExplosionMonitor()
    assert monitor.state_dict() == {}
    monitor.load_state_dict({"of an earlier": ["run"]})
    assert monitor.state_dict() == {"of an earlier": ["run"]}


def test_an_optimizers_watch_goes_through_a_checkpoint() -> None:
    """Detectors, clip policy and clip rate go on as if nothing had happened."""
    one, other = watch(AutoPolicy()), watch(AutoPolicy())
    assert one.policy is not None
    assert other.policy is not None
    for step, norm in enumerate(noise(50)):
        one.bank.begin(record(step, grad_norm=norm))
        one.policy.threshold(record(step, grad_norm=norm))
        one.clip_rate(1.0, norm)
        one.steps += 1
    other.load_state_dict(through_checkpoint(one.state_dict()))
    assert other.steps == 50
    assert other.clip_rate(1.0, 2.0) == one.clip_rate(1.0, 2.0)
    late = record(50, grad_norm=500.0)
    assert other.policy.threshold(late) == one.policy.threshold(late)
    assert other.bank.begin(late) == one.bank.begin(late) != []


@pytest.mark.parametrize(
    ("before", "after"), [(None, AutoPolicy()), (AutoPolicy(), None), (ConstantClip(), AutoPolicy())]
)
def test_clipping_may_be_changed_between_two_runs(before: ClipPolicy | None, after: ClipPolicy | None) -> None:
    """A checkpoint of a run that clipped otherwise, or not at all, is no obstacle."""
    resumed = watch(after)
    resumed.load_state_dict(through_checkpoint(watch(before).state_dict()))
    assert resumed.steps == 0


def test_clip_rate_is_that_of_the_last_hundred_steps() -> None:
    """The rate counts norms above the threshold, NaN as well; a step whose size is unknown is left out."""
    one = watch()
    assert one.clip_rate(1.0, 0.5) == 0.0
    assert one.clip_rate(1.0, 2.0) == 0.5
    assert one.clip_rate(1.0, None) is None
    assert one.clip_rate(1.0, float("nan")) == pytest.approx(2 / 3)
    assert one.clip_rate(1.0, 1.0) == 0.5
    for _ in range(99):
        one.clip_rate(1.0, 0.5)
    assert one.clip_rate(1.0, 2.0) == 0.01


def test_policies_and_detectors_are_each_optimizers_own() -> None:
    """What one optimizer's steps teach a policy is not known to another one's."""
    policy = AutoPolicy()
    one, other = watch(policy), watch(policy)
    assert one.policy is not None
    assert other.policy is not None
    one.policy.threshold(record(0, grad_norm=1e6))
    assert other.policy.threshold(record(0, grad_norm=1.0)) == AutoPolicy().threshold(record(0, grad_norm=1.0))


def test_parameters_are_listed_anew_when_a_group_comes() -> None:
    """A group that is added while the run goes on, as in fine-tuning, is seen; else the list is kept."""
    module = nn.Linear(2, 3)
    one = OptimizerState(0, SGD([module.weight], lr=0.1), [], None)
    first = one.parameters(module, ("*",), (), ALONE)
    assert first.names == ("weight",)
    assert one.parameters(module, ("*",), (), ALONE) is first
    one.optimizer.add_param_group({"params": [module.bias]})
    assert one.parameters(module, ("*",), (), ALONE).names == ("weight", "bias")
    assert one.recorder.parameters == ("weight", "bias")


def test_findings_are_kept_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A lasting sign is one finding and one message, and not one for each step."""
    chronicle = IncidentLog(LoggerCollection([]), None, speaks=True)
    for step in range(50):
        chronicle.report(chronicle.add([find(step)]), [Recorder(())])
    assert chronicle.findings == [find(0)]
    assert len(caplog.records) == 1


def test_an_explosion_is_told_once_and_what_follows_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Also where two signs are critical at the same step; after a calm while the next explosion is told anew."""
    chronicle = IncidentLog(LoggerCollection([]), None, speaks=True, responses=["StopTraining"])
    for step, signs in ((0, "ab"), (1, "cd"), (2, "e"), (300, "f")):
        chronicle.report(chronicle.add([find(step, sign=sign) for sign in signs]), [Recorder(())])
    chronicle.close()
    first, rest, second = (one.getMessage() for one in caplog.records)
    assert "CRITICAL at step 0: a" in first
    assert "StopTraining" in first
    assert rest.splitlines() == [
        "gradexplode: the explosion that began at step 0 went on: b (step 0), c (step 1), d (step 1), e (step 2)"
    ]
    assert "CRITICAL at step 300: f" in second


def test_other_processes_keep_findings_and_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On all processes but the main one findings are known, so that responses are the same, but not told."""
    chronicle = IncidentLog(LoggerCollection([]), tmp_path / "report", speaks=False)
    chronicle.report(chronicle.add([find(0)]), [Recorder(())])
    assert chronicle.findings == [find(0)]
    assert not caplog.records
    assert not (tmp_path / "report").exists()


def test_the_latest_findings_are_kept() -> None:
    """Of very many findings the oldest are dropped."""
    chronicle = IncidentLog(LoggerCollection([]), None, speaks=False)
    for step in range(MOST_FINDINGS + 50):
        chronicle.add([find(step, sign=f"sign {step}")])
    assert [finding.step for finding in chronicle.findings] == list(range(50, MOST_FINDINGS + 50))


def test_findings_go_through_a_checkpoint() -> None:
    """After a checkpoint the findings are there, and what was told is not told again."""
    one, other = (IncidentLog(LoggerCollection([]), None, speaks=False) for _ in range(2))
    one.add([find(0), find(0, Severity.WARNING, "gradient-spike")])
    other.load_state_dict(through_checkpoint(one.state_dict()))
    assert other.findings == one.findings
    assert other.add([find(1)]) == []
    assert other.add([find(100)]) == [find(100)]


def test_reports_are_written_of_critical_findings(tmp_path: Path) -> None:
    """A warning writes no report; a critical finding writes one of all findings so far."""
    folder = tmp_path / "report"
    chronicle = IncidentLog(LoggerCollection([]), folder, speaks=True)
    chronicle.report(chronicle.add([find(0, Severity.WARNING, "gradient-spike")]), [Recorder(())])
    assert not folder.exists()
    chronicle.report(chronicle.add([find(1)]), [Recorder(())])
    signs = [json.loads(line)["sign"] for line in (folder / "findings.jsonl").read_text().splitlines()]
    assert signs == ["gradient-spike", "gradient-growth"]


def test_a_report_that_cannot_be_written_costs_the_report_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be made is told in one warning that names it, and the run goes on."""
    (tmp_path / "file").write_text("in the way")
    chronicle = IncidentLog(LoggerCollection([]), tmp_path / "file" / "report", speaks=True)
    chronicle.report(chronicle.add([find(0)]), [Recorder(())])
    (told,) = (one for one in caplog.records if one.levelno == logging.WARNING)
    assert str(tmp_path / "file" / "report") in told.getMessage()
