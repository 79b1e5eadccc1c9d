"""A monitor without a line of code."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from lightning_gradexplode import AutoPolicy, GradientExplosionMonitor, Rollback, SkipStep
from lightning_gradexplode.hosts.automatic import AutomaticMonitor
from lightning_gradexplode.hosts.environment import arguments, callbacks
from lightning_gradexplode.testing import ExplodingRegression
from tests.runs.probe import QUIET


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Switch the monitor on for this test."""
    monkeypatch.setenv("GRADEXPLODE", "1")
    monkeypatch.setenv("GRADEXPLODE_REPORT", "0")
    return monkeypatch


@pytest.mark.parametrize("value", [None, "", "0", "false", "off"])
def test_it_is_off_by_default(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable, or with one that is false, there is no callback."""
    if value is None:
        monkeypatch.delenv("GRADEXPLODE", raising=False)
    else:
        monkeypatch.setenv("GRADEXPLODE", value)
    assert callbacks() == []


def test_variables_set_arguments(switched_on: pytest.MonkeyPatch) -> None:
    """Numbers, flags, names and lists are read as what the argument takes."""
    switched_on.setenv("GRADEXPLODE_CLIP", "auto")
    switched_on.setenv("GRADEXPLODE_ON_EXPLOSION", "skip, rollback")
    switched_on.setenv("GRADEXPLODE_LOG_EVERY_N_STEPS", "7")
    switched_on.setenv("GRADEXPLODE_PER_PARAMETER", "true")
    switched_on.setenv("GRADEXPLODE_EXCLUDE", "*.bias,head.*")
    (monitor,) = callbacks()
    assert isinstance(monitor.arguments.clip, AutoPolicy)
    assert [type(one) for one in monitor.arguments.responses] == [SkipStep, Rollback]
    assert (monitor.arguments.log_every_n_steps, monitor.arguments.per_parameter) == (7, True)
    assert monitor.arguments.exclude == ("*.bias", "head.*")
    assert monitor.arguments.report is False


def test_a_folder_for_reports() -> None:
    """What is no flag is a folder."""
    assert arguments({"GRADEXPLODE_REPORT": "somewhere"}) == {"report": "somewhere"}
    assert arguments({"GRADEXPLODE_REPORT": "always"}) == {"report": "always"}


@pytest.mark.parametrize(
    ("name", "value"), [("CLIP", "-1"), ("CLIP", "often"), ("ON_EXPLOSION", "explode"), ("PER_PARAMETER", "maybe")]
)
def test_a_bad_value_adds_no_monitor(
    name: str, value: str, switched_on: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the variable and the value, and the Trainer is built without a monitor."""
    switched_on.setenv(f"GRADEXPLODE_{name}", value)
    assert callbacks() == []
    assert value in caplog.text
    assert f"GRADEXPLODE_{name} must be" in caplog.text
    assert len(caplog.records) == 1


def test_an_empty_variable_sets_nothing() -> None:
    """Shells set variables to nothing where another one is empty."""
    assert arguments({"GRADEXPLODE_CLIP": "", "GRADEXPLODE_REPORT": " "}) == {}


def test_a_variable_that_sets_nothing_is_named(
    switched_on: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt argument is one line with the nearest name, and the monitor is added all the same."""
    switched_on.setenv("GRADEXPLODE_CLIPP", "1.0")
    switched_on.setenv("GRADEXPLODE_NOTIFY_URLS", "json://localhost")  # of the notifications, and known
    (monitor,) = callbacks()
    assert monitor.arguments.clip is None
    assert len(caplog.records) == 1
    assert "GRADEXPLODE_CLIPP is ignored" in caplog.text
    assert "did you mean GRADEXPLODE_CLIP?" in caplog.text


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("own", [False, True])
def test_it_is_not_used_where_the_user_passed_one(own: bool, namespace: str, switched_on: pytest.MonkeyPatch) -> None:
    """Every Trainer of either namespace gets a monitor, which measures only where there is no other."""
    lightning = importlib.import_module(namespace)
    network = type("Network", (ExplodingRegression, lightning.LightningModule), {})(0.1)
    users = [GradientExplosionMonitor(report=False)] if own else []
    trainer = lightning.Trainer(**QUIET, logger=False, callbacks=[*users])
    found = [one for one in trainer.callbacks if isinstance(one, AutomaticMonitor)]
    if not found:  # the package is not installed here, and Lightning finds no entry point
        found = callbacks()
        trainer.callbacks.insert(0, found[0])
    (automatic,) = found
    trainer.fit(network)
    assert (automatic.last is None) == own
    assert all(one.last is not None for one in users)


def test_the_package_declares_the_entry_points() -> None:
    """Both namespaces of Lightning find the factory by its name."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for group in ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory"):
        section = text.partition(f'[project.entry-points."{group}"]')[2]
        target = section.partition('gradexplode = "')[2].partition('"')[0]
        module, _, name = target.partition(":")
        factory: Any = getattr(importlib.import_module(module), name)
        assert factory is callbacks
