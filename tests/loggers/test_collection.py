"""All loggers of a run together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger

from lightning_gradexplode.loggers import LoggerAdapter, LoggerCollection, register_logger_adapter, registry
from lightning_gradexplode.records import Cause, Diagnosis, Finding, Histogram, Report, Severity, StepRecord
from lightning_gradexplode.testing import RecordingLogger
from tests.loggers.steps import TENSORS, finding, record_of

SHOWN = (True,) * len(TENSORS)


class BrokenLogger(RecordingLogger):
    """A logger on a full disk."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Fail."""
        raise OSError("no space left")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List our messages of level WARNING and above."""
    return [
        one.getMessage()
        for one in caplog.records
        if one.name == "lightning_gradexplode" and one.levelno >= logging.WARNING
    ]


def test_a_logger_without_histograms_gets_scalars_and_one_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A CSV file has every scalar at its step; one line with the logger's name is logged about its histograms."""
    logger = CSVLogger(tmp_path, name="run", version=0)
    board = LoggerCollection([logger])
    for step in (3, 4, 5):
        board.log_batch([record_of(TENSORS, step)], [SHOWN])
    logger.save()
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [(row["step"], float(row["gradexplode/grad_norm"])) for row in rows] == [("3", 2.5), ("4", 2.5), ("5", 2.5)]
    (message,) = warnings_in(caplog)
    assert "CSVLogger" in message
    assert "histograms" in message


def test_nothing_is_logged_about_histograms_that_were_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    """No line about histograms is logged at a step without histograms."""
    LoggerCollection([RecordingLogger()]).log_batch([StepRecord(step=0, grad_norm=1.0)], [()])
    assert warnings_in(caplog) == []


def test_a_failing_logger_costs_its_own_data_only(caplog: pytest.LogCaptureFixture) -> None:
    """One warning names the logger and the error, one its end, and the other loggers receive everything."""
    before, after = RecordingLogger("before"), RecordingLogger("after")
    board = LoggerCollection([before, BrokenLogger(), after])
    for step in range(5):
        board.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
        board.finding(finding())
    message, farewell = warnings_in(caplog)
    assert "BrokenLogger" in message
    assert "no space left" in message
    assert "no longer used" in farewell
    for logger in (before, after):
        assert logger.values("gradexplode/grad_norm") == [(step, 1.0) for step in range(5)]


def test_a_logger_that_keeps_failing_is_left_alone() -> None:
    """After three failures in a row it is not asked again; one that recovers in between is."""
    asked = {"Lost": 0, "Flaky": 0}

    class Lost(RecordingLogger):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            asked["Lost"] += 1
            raise ConnectionError(f"request {asked['Lost']} timed out")

    class Flaky(RecordingLogger):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            asked["Flaky"] += 1
            if asked["Flaky"] % 3:
                raise ConnectionError("try again")

    board = LoggerCollection([Lost(), Flaky()])
    for step in range(30):
        board.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
    assert asked == {"Lost": 3, "Flaky": 30}


def test_an_error_whose_text_changes_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Of errors that differ only in a time or a number, the first one is logged."""

    class Flaky(RecordingLogger):
        asked = 0

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            self.asked += 1
            if self.asked % 2:
                raise ConnectionError(f"request {self.asked} timed out")

    board = LoggerCollection([Flaky()])
    for step in range(10):
        board.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
    (message,) = warnings_in(caplog)
    assert "request 1 timed out" in message


class TextlessError(ConnectionError):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cannot_be_shown_is_named_by_its_class(caplog: pytest.LogCaptureFixture) -> None:
    """One whose ``str`` raises costs the logger's data only, as any other."""

    class Silent:
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            raise TextlessError

    LoggerCollection([Silent()]).log_batch([StepRecord(step=0, grad_norm=1.0)], [()])
    assert any("TextlessError" in line for line in warnings_in(caplog))


def test_a_real_full_disk_costs_only_that_loggers_data(caplog: pytest.LogCaptureFixture) -> None:
    """A CSV logger whose folder cannot be made, for a file is in its place, does not keep the others from writing."""
    after = RecordingLogger()
    board = LoggerCollection([CSVLogger("/dev/full/logs"), after])
    for step in range(5):
        board.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
    assert len(after.values("gradexplode/grad_norm")) == 5
    assert "CSVLogger" in warnings_in(caplog)[0]


def test_a_publisher_of_ones_own_serves_its_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before all others, gets histograms if it takes them, and a second registration changes nothing."""
    monkeypatch.setattr(registry, "KINDS", [*registry.KINDS])
    got = []

    class Own:
        """An experiment of an unknown tracker."""

    class Tracker(RecordingLogger):
        experiment = Own()

    @register_logger_adapter
    class OwnAdapter(LoggerAdapter):
        accepts = classmethod(lambda cls, experiment: isinstance(experiment, Own))
        takes_histograms = True
        histograms = lambda self, histograms, step: got.append((step, sorted(histograms)))  # noqa: E731

    assert register_logger_adapter(OwnAdapter) is OwnAdapter
    assert registry.KINDS.count(OwnAdapter) == 1
    own, other = Tracker(), RecordingLogger()
    LoggerCollection([own, other]).log_batch([record_of({"w": TENSORS["normal"]})], [(True,)])
    assert got == [(3, ["gradexplode/gradient/w"])]
    assert own.metrics == other.metrics


def test_only_publishers_are_registered() -> None:
    """An instance, or any other class, is refused by name."""
    with pytest.raises(TypeError, match="subclass of LoggerAdapter"):
        register_logger_adapter(RecordingLogger)  # type: ignore[type-var]


def test_a_logger_whose_experiment_cannot_be_opened_costs_its_own_data_only(caplog: pytest.LogCaptureFixture) -> None:
    """A logger that fails at its first use, as W&B without a network does, does not silence the others."""

    class Unreachable(RecordingLogger):
        @property
        def experiment(self) -> object:
            raise ConnectionError("no route to host")

    after = RecordingLogger()
    board = LoggerCollection([Unreachable(), after])
    for step in range(3):
        board.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
    assert len(after.values("gradexplode/grad_norm")) == 3
    (message,) = warnings_in(caplog)
    assert "Unreachable" in message


def test_a_loggers_experiment_is_opened_at_the_first_write_only() -> None:
    """Building a board touches no logger, for an experiment may make folders or open a connection."""
    opened = []

    class Lazy(RecordingLogger):
        @property
        def experiment(self) -> object:
            opened.append(True)
            return SimpleNamespace()

    board = LoggerCollection([Lazy()])
    assert not opened
    board.log_batch([StepRecord(step=0, grad_norm=1.0)], [()])
    assert opened


@pytest.mark.parametrize("every_parameter", [True, False])
def test_scalars_have_the_names_of_the_contract(every_parameter: bool) -> None:
    """What was measured is logged under the contract's names, of shown parameters too where asked for, and no more."""
    logger = RecordingLogger()
    record = StepRecord(
        step=7,
        parameters=("a.weight", "a.bias"),
        grad_norm=2.0,
        clip_val=1.0,
        per_parameter={"grad_norm": np.array([1.0, 2.0]), "share_above_one": np.array([0.5, 0.5])},
    )
    LoggerCollection([logger]).log_batch([record], [(True, False)], per_parameter=every_parameter)
    expected = {"grad_norm": 2.0, "clip_val": 1.0, "severity": 0.0, "skipped_steps": 0.0}
    if every_parameter:
        expected["grad_norm/a.weight"] = 1.0
    assert logger.metrics == [(7, {f"gradexplode/{name}": value for name, value in expected.items()})]


def test_a_publisher_is_started_once_and_gets_findings_and_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before its first write a publisher prepares its logger; a finding comes with advice, a report as it is."""
    calls: list[tuple[object, ...]] = []

    class Recording(LoggerAdapter):
        def started(self) -> None:
            calls.append(("started",))

        def finding(self, finding: Finding, advice: str = "") -> None:
            calls.append((finding, advice))

        def report(self, report: Report) -> None:
            calls.append((report,))

    monkeypatch.setattr(registry, "KINDS", [Recording])
    board = LoggerCollection([RecordingLogger()])
    assert not calls
    told, report = finding(), Report(41, tmp_path)
    board.finding(told, "clip")
    board.report(report)
    assert calls == [("started",), (told, "clip"), (report,)]


def test_histograms_of_a_large_model_are_added_up_by_module() -> None:
    """Of more than 512 parameters a module's histograms are one, which counts all its values; of 512 none is lost."""
    got: list[Mapping[str, Histogram]] = []

    class Recording(LoggerAdapter):
        takes_histograms = True

        def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
            got.append(histograms)

    for layers in (256, 257):
        names = [f"block.{layer}.{kind}" for layer in range(layers) for kind in ("weight", "bias")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "KINDS", [Recording])
            record = record_of(dict.fromkeys(names, TENSORS["one value"]))
            LoggerCollection([RecordingLogger()]).log_batch([record], [(True,) * len(names)])
    assert set(got[0]) == {
        f"gradexplode/gradient/block.{layer}.{kind}" for layer in range(256) for kind in ("weight", "bias")
    }
    assert set(got[1]) == {f"gradexplode/gradient/block.{layer}" for layer in range(257)}
    assert {one.finite for one in got[1].values()} == {14}


def test_a_run_without_loggers_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A run without loggers is no error, and logs no line."""
    board = LoggerCollection([])
    board.log_batch([record_of(TENSORS)], [SHOWN], per_parameter=True)
    board.finding(finding(Severity.WARNING))
    assert not caplog.records


def test_a_batch_of_several_optimizers_is_logged_once_per_name() -> None:
    """The totals are of all optimizers together, each one's own are beside them, and parameters are of both."""
    logger = RecordingLogger()
    records = [
        StepRecord(7, optimizer=0, parameters=("d.w",), grad_norm=3.0, per_parameter={"grad_norm": np.array([3.0])}),
        StepRecord(7, optimizer=1, parameters=("g.w",), grad_norm=4.0, per_parameter={"grad_norm": np.array([4.0])}),
    ]
    LoggerCollection([logger], several_optimizers=True).log_batch(records, [(True,), (True,)], per_parameter=True)
    ((step, values),) = logger.metrics
    norms = {name: value for name, value in values.items() if "grad_norm" in name}
    assert step == 7
    assert norms == {
        "gradexplode/grad_norm": 5.0,
        "gradexplode/optimizer_0/grad_norm": 3.0,
        "gradexplode/optimizer_1/grad_norm": 4.0,
        "gradexplode/grad_norm/d.w": 3.0,
        "gradexplode/grad_norm/g.w": 4.0,
    }


def test_scalars_are_logged_by_keyword() -> None:
    """A logger that renames nothing but orders its arguments otherwise is served, as Lightning's own calls are."""
    got: list[tuple[int, Mapping[str, float]]] = []

    class Swapped:
        experiment = None

        def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
            got.append((step, metrics))

    LoggerCollection([Swapped()]).log_batch([StepRecord(step=2, grad_norm=1.0)], [()])
    ((step, values),) = got
    assert (step, values["gradexplode/grad_norm"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("alert_level", "alerts"), [(Severity.WARNING, ["WARNING", "CRITICAL"]), (Severity.CRITICAL, ["CRITICAL"])]
)
def test_alerts_are_sent_from_the_alert_level_on(
    alert_level: Severity, alerts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what begins an incident or makes one worse is an alert; every finding is recorded."""
    sent: list[str] = []
    recorded: list[str] = []

    class Recording(LoggerAdapter):
        def finding(self, finding: Finding, advice: str = "") -> None:
            recorded.append(finding.severity.name)

        def alert(self, finding: Finding, advice: str = "") -> None:
            sent.append(finding.severity.name)

    monkeypatch.setattr(registry, "KINDS", [Recording])
    loggers = LoggerCollection([RecordingLogger()], alert_level=alert_level)
    for severity, begins in (
        (Severity.WARNING, True),
        (Severity.WARNING, False),
        (Severity.CRITICAL, True),
        (Severity.CRITICAL, False),
    ):
        loggers.finding(finding(severity), begins_incident=begins)
    loggers.log_batch([StepRecord(step=42)], [()])  # there was no diagnosis, with which it would have been sent
    assert sent == alerts
    assert len(recorded) == 4


def test_a_slow_logger_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Training waits for each call; one that takes long is reported, with the logger's name."""
    now = iter(range(0, 1000, 7))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    loggers = LoggerCollection([RecordingLogger()])
    for step in range(3):
        loggers.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
    (message,) = warnings_in(caplog)
    assert "RecordingLogger is slow" in message


def test_the_same_diagnosis_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further findings of an incident that change nothing in its diagnosis do not repeat it."""
    logged: list[int] = []

    class Recording(LoggerAdapter):
        def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
            logged.append(step)

    monkeypatch.setattr(registry, "KINDS", [Recording])
    loggers = LoggerCollection([RecordingLogger()])
    for step, what in ((1, "It grew."), (2, "It grew."), (3, "It is NaN.")):
        loggers.diagnosis(Diagnosis(1, what, None, None, (), ()), step)
    assert logged == [1, 3]


def test_alerts_and_reports_of_a_long_run_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand incidents of the same sign, three send alert and report, then the 10th, 100th and 1000th."""
    sent: list[str] = []
    reports: list[int] = []
    monkeypatch.setattr(LoggerAdapter, "alert", lambda self, finding, advice: sent.append(finding.sign))
    monkeypatch.setattr(LoggerAdapter, "report", lambda self, report: reports.append(report.step))
    loggers = LoggerCollection([RecordingLogger()])
    for step in range(1000):
        loggers.finding(finding(), begins_incident=True)
        loggers.report(Report(step, Path("logs")))
    assert len(sent) == 6
    assert reports == [0, 1, 2, 9, 99, 999]
    loggers.finding(replace(finding(), sign="weight-growth"), begins_incident=True)
    loggers.report(Report(1000, Path("logs")))
    assert sent[-1] == "weight-growth"


def test_an_alert_tells_the_cause_and_the_remedy_of_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the general advice for its sign, which may be another one."""
    sent: list[str] = []
    monkeypatch.setattr(LoggerAdapter, "alert", lambda self, finding, advice: sent.append(advice))
    loggers = LoggerCollection([RecordingLogger()])
    loggers.finding(finding(), "clip the gradients", begins_incident=True)
    cause = Cause("loss-without-floor", None, ("The loss fell from 1 to -80.",), 0.85)
    loggers.diagnosis(Diagnosis(41, "It fell.", None, 41, (cause,), ("look for a wrong sign",)), 41)
    loggers.log_batch([StepRecord(step=42)], [()])
    assert sent == ["Why: loss-without-floor (85%): The loss fell from 1 to -80.\nDo: Look for a wrong sign."]
