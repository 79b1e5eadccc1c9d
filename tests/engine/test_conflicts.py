"""Settings that contradict each other or have no effect are logged, in one line each."""

from __future__ import annotations

import logging
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch

from lightning_gradexplode import GradientExplosionMonitor, Response, SkipStep
from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.conflicts import conflicts
from lightning_gradexplode.testing import PlainLoop
from tests.runs.models import Regression
from tests.runs.probe import QUIET


class Own(Response):
    """A user's response that ends what is done at a step."""

    always_acts = True

    def respond(self, findings: Any, run: Any) -> None:
        """Do nothing."""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the monitor logged."""
    return [record.getMessage() for record in caplog.records if record.name == "lightning_gradexplode"]


def fit(trainer: dict[str, Any], *monitors: GradientExplosionMonitor) -> None:
    """Train for two steps."""
    pl.Trainer(**QUIET, logger=False, limit_train_batches=2, callbacks=[*monitors], **trainer).fit(Regression())


@pytest.mark.parametrize(
    ("arguments", "trainer", "said"),
    [
        ({"clip": 1.0}, {"gradient_clip_val": 0.01}, ["0.01", "clip=1.0 is set"]),
        ({"include": ["encoder.*"]}, {}, ["encoder.*", "no parameter"]),
        ({"include": ["*.weight", "head.*"]}, {}, ["include", "head.*"]),
        ({"exclude": ["nothing"]}, {}, ["exclude", "nothing"]),
        ({"exclude": ["*"]}, {}, ["no parameter"]),
        ({"on_explosion": ["stop", "skip"]}, {}, ["SkipStep", "StopTraining always acts"]),
        ({"on_explosion": ["raise", "rollback", "skip"]}, {}, ["Rollback, SkipStep", "RaiseError always acts"]),
        ({"on_explosion": [Own(), "warn"]}, {}, ["Warn", "Own always acts"]),
        ({"on_explosion": ["skip", "rollback", SkipStep()]}, {}, ["SkipStep more than once"]),
        ({"detectors": []}, {}, ["no detectors"]),
        ({"detectors": [], "on_explosion": "skip"}, {}, ["no detectors", "holds back updates that are not finite"]),
    ],
    ids=lambda value: "",
)
def test_a_conflict_is_one_line(
    arguments: dict[str, Any], trainer: dict[str, Any], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The line names both sides, and the run goes on."""
    caplog.set_level(logging.WARNING, "lightning_gradexplode")
    monitor = GradientExplosionMonitor(report=False, **arguments)
    fit(trainer, monitor)
    (line,) = lines(caplog)
    assert all(part in line for part in said), line
    assert monitor.last is not None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"clip": 1.0, "on_explosion": ["skip", "rollback", "stop"]},
        {"include": ["layers.0.*"], "exclude": ["*.bias"]},
        {"on_explosion": ["warn", "checkpoint", "raise"]},
    ],
)
def test_settings_that_go_together_are_not_commented(
    arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged at the start of a sound run."""
    caplog.set_level(logging.WARNING, "lightning_gradexplode")
    fit({}, GradientExplosionMonitor(report=False, **arguments))
    assert lines(caplog) == []


@pytest.mark.parametrize("same", [True, False])
def test_one_monitor_is_enough(same: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Of several monitors the first measures, in one line; the trainer accepts both, and a checkpoint has its state."""
    caplog.set_level(logging.WARNING, "lightning_gradexplode")
    first = GradientExplosionMonitor(report=False)
    second = first if same else GradientExplosionMonitor(report=False, clip=1.0)
    fit({}, first, second, *([] if same else [GradientExplosionMonitor(report=False)]))
    (line,) = lines(caplog)
    assert "one is enough" in line
    assert first.last is not None
    assert first.state_key == "GradientExplosionMonitor"
    assert same or (second.last is None and second.state_key == "GradientExplosionMonitor-2")


def test_a_device_that_was_never_tried_is_named() -> None:
    """Of an unknown accelerator there is one line at setup."""
    module = torch.nn.Linear(2, 1)
    kinds = [mock.Mock(device=torch.device(kind)) for kind in ("cpu", "xla")]
    loop = PlainLoop(module, [torch.optim.SGD(module.parameters())], lambda batch: module(batch).sum())
    with mock.patch.object(module, "parameters", return_value=kinds):
        (line,) = conflicts(Arguments.checked(), loop)
    assert "of type xla" in line


def test_parameters_in_two_optimizers_are_named() -> None:
    """As by ``Adam(self.parameters())`` for each of two networks."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    first, second = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (net, net[1]))
    apart = torch.optim.SGD(net[0].parameters(), lr=0.1)
    for optimizers, count in (([first, second], 1), ([apart, second], 0)):
        loop = PlainLoop(net, optimizers, lambda batch: net(batch).sum())
        found = [one for one in conflicts(Arguments.checked(), loop) if "more than one optimizer" in one]
        assert len(found) == count
        assert all(one.startswith("1.weight and 1 more are in") for one in found)
