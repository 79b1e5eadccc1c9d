"""Parts that a user has written and that fail: each costs itself alone, and one line names it."""

from __future__ import annotations

import io
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradexplode import (
    ClipPolicy,
    Detector,
    Finding,
    Response,
    Severity,
    SkipStep,
    StepRecord,
    default_detectors,
)
from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.run import TrainingRun
from tests.engine.test_run import Regression

STEPS = 8
BAD = 5
"""The step with a NaN loss, at which responses are called."""


def fails(*arguments: Any) -> Any:
    """Raise."""
    raise ValueError("broken on purpose")


class NoTextError(Exception):
    """An exception whose text raises."""

    def __str__(self) -> str:
        """Raise."""
        return fails()  # type: ignore[no-any-return]


def fails_without_a_text(*arguments: Any) -> Any:
    """Raise an exception that cannot be shown."""
    raise NoTextError


class Unshowable:
    """An object without a representation, a truth value or an equality."""

    __repr__ = __bool__ = __eq__ = fails
    __hash__ = object.__hash__


class OwnDetector(Detector):
    """Returns what a function returns."""

    sign = "own-sign"
    reads = ("grad_norm",)

    def __init__(self, check: Callable[[StepRecord], Any]) -> None:
        self.function = check

    def check(self, record: StepRecord) -> Any:
        """Call the function."""
        return self.function(record)


class OwnPolicy(ClipPolicy):
    """Returns what a function returns."""

    def __init__(self, threshold: Callable[[StepRecord], Any]) -> None:
        self.function = threshold

    def threshold(self, record: StepRecord) -> Any:
        """Call the function."""
        return self.function(record)


class OwnResponse(Response):
    """Returns what a function returns."""

    def __init__(self, respond: Callable[..., Any] = lambda findings, run: False) -> None:
        self.function = respond

    def respond(self, findings: Sequence[Finding], run: Any) -> Any:
        """Call the function."""
        return self.function(findings, run)


def trained(caplog: pytest.LogCaptureFixture, name: str, **arguments: Any) -> TrainingRun:
    """Train with a failing part; all steps are measured, the part is named in one line, and its state can be saved."""
    regression = Regression()
    batches = regression.batches(STEPS)
    batches[BAD] = batches[BAD] * float("nan")
    settings = {"report": False, "diagnose": False, "on_explosion": "skip", "histogram_every_n_steps": 1, **arguments}
    run = TrainingRun(Arguments.checked(**settings), regression.loop, {})
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        regression.loop.train(run, batches, close=False)
        for _ in range(2):
            saved(run)
        run.close()
    assert not run.failed
    assert len(regression.logger.values("gradexplode/grad_norm")) == STEPS
    assert all(bool(torch.isfinite(one).all()) for one in regression.network.parameters())
    assert [finding.sign for finding in run.findings if finding.sign.startswith("nonfinite")]
    assert run.last is not None
    assert run.last.skipped_steps == 1
    assert len([line for line in caplog.messages if name in line and "CRITICAL" not in line]) == 1
    return run


def saved(run: TrainingRun) -> dict[str, Any]:
    """Return the state of a run as a checkpoint gives it back to a strict loader."""
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    return state


def found(**fields: Any) -> Callable[[StepRecord], Finding]:
    """Return a check that finds something, some of whose fields are of no use."""
    usable = {"step": 0, "sign": "own-sign", "severity": Severity.WARNING, "where": None, "value": 1.0, "limit": 0.5}
    return lambda record: Finding(**{**usable, "message": "on purpose", **fields})


@pytest.mark.parametrize(
    "check",
    [
        fails,
        fails_without_a_text,
        lambda record: "a finding",
        lambda record: torch.ones(2),
        lambda record: np.ones(2),
        lambda record: Unshowable(),
        found(where=torch.ones(2)),
        found(limit=1j),
        found(step=1.5),
        found(sign=None),
        found(message=b"bytes"),
        found(value=None),
        lambda record: record.per_parameter["grad_norm"].fill(0.0),
        lambda record: record.per_parameter["grad_norm"].setflags(write=True),
        lambda record: record.per_parameter.clear(),
        lambda record: record.histograms["gradient"].clear(),
        lambda record: record.histograms["gradient"]["weight"].counts.fill(0),
        lambda record: setattr(record, "loss", 0.0),
    ],
)
def test_a_failing_detector_is_switched_off(
    check: Callable[[StepRecord], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The other detectors find what they would, and clipping goes on; records cannot be written to."""
    run = trained(caplog, "own-sign", detectors=[OwnDetector(check), *default_detectors()], clip=1e-3)
    assert run.last is not None
    assert run.last.grad_norm_clipped == pytest.approx(1e-3, rel=1e-2)


UNSAVABLE: list[Callable[[], Any]] = [
    threading.Lock,
    lambda: lambda: 0,
    lambda: iter(int, 1),
    lambda: {1, 2},
    lambda: deque([threading.Lock()]),
    lambda: np.array([object()], dtype=object),
    lambda: {object(): 1},
    lambda: 1j,
]


@pytest.mark.parametrize("hold", UNSAVABLE)
def test_parts_that_cannot_be_saved_still_work(hold: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    """A detector, a policy and a response that hold such a thing work; checkpoints are saved without their state."""

    class Holds(OwnDetector):
        def __init__(self) -> None:
            super().__init__(lambda record: None)
            self._held = hold()

    class HoldsToo(OwnPolicy):
        def state_dict(self) -> dict[str, Any]:
            return {"held": hold()}

    class HoldsAsWell(SkipStep):
        def __init__(self) -> None:
            super().__init__()
            self._held = hold()

    policy = HoldsToo(lambda record: 1e-3)
    run = trained(
        caplog, "own-sign", detectors=[Holds(), *default_detectors()], clip=policy, on_explosion=HoldsAsWell()
    )
    assert run.last is not None
    assert run.last.clip_val == 1e-3
    for name in ("HoldsToo", "HoldsAsWell"):
        assert len([line for line in caplog.messages if f"{name} cannot be saved" in line]) == 1


def test_what_holds_itself_cannot_be_saved(caplog: pytest.LogCaptureFixture) -> None:
    """A state without an end is one more that cannot be saved."""
    endless: dict[str, Any] = {}
    endless["self"] = endless
    policy = OwnPolicy(lambda record: 1e-3)
    policy.state_dict = lambda: endless  # type: ignore[method-assign]
    run = trained(caplog, "OwnPolicy", clip=policy)
    assert run.last is not None
    assert run.last.clip_val == 1e-3


@pytest.mark.parametrize(
    "threshold",
    [
        fails,
        fails_without_a_text,
        lambda record: float("nan"),
        lambda record: -1,
        lambda record: 0.0,
        lambda record: "1.0",
        lambda record: True,
        lambda record: torch.ones(2),
        lambda record: 10**400,
        lambda record: float("inf"),
        lambda record: Unshowable(),
        lambda record: record.per_parameter["grad_norm"].fill(0.0) or 1.0,
    ],
)
def test_a_failing_policy_clips_nothing(
    threshold: Callable[[StepRecord], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is clipped at such a step, in one line."""
    run = trained(caplog, "OwnPolicy", clip=OwnPolicy(threshold))
    assert run.last is not None
    assert run.last.clip_val is None
    assert run.last.grad_norm_clipped == run.last.grad_norm


@pytest.mark.parametrize("method", ["begin", "step_begins", "step_ended", "scalars", "state_dict", "algorithm"])
def test_a_policy_may_fail_in_any_method(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Training is not touched by any of them."""

    class Fails(OwnPolicy):
        algorithm_now: Any = "norm"

        @property
        def algorithm(self) -> Any:  # type: ignore[override]
            return self.algorithm_now

    policy = Fails(lambda record: setattr(record, "loss", 0.0) if record.step < 0 else 1e-3)
    Arguments.checked(clip=policy)
    if method != "algorithm":
        setattr(policy, method, fails)
        assert trained(caplog, "Fails", clip=policy).last is not None
        return

    class ChangesItsMind(Fails):
        def threshold(self, record: StepRecord) -> Any:
            self.algorithm_now = ["norm"]
            return 1e-3

    last = trained(caplog, "ChangesItsMind", clip=ChangesItsMind(fails)).last
    assert last is not None
    assert last.clip_val is None


@pytest.mark.parametrize(
    "scalars", [None, 3, [1.0], {"a": "b"}, {3: 1.0}, {"a": {"b": 1.0}}, {"a": torch.ones(2)}, {"a": None}]
)
def test_parts_may_log_what_is_no_number(scalars: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The loggers get the numbers of all other parts."""
    policy = OwnPolicy(lambda record: 1e-3)
    policy.scalars = lambda: scalars  # type: ignore[method-assign]

    class Logs(OwnResponse):
        def scalars(self) -> Any:
            return scalars

    trained(caplog, "OwnPolicy", clip=policy, on_explosion=[Logs(), "skip"])
    assert len([line for line in caplog.messages if "Logs is switched off" in line]) == 1


@pytest.mark.parametrize(
    "respond",
    [
        fails,
        fails_without_a_text,
        lambda findings, run: torch.ones(2),
        lambda findings, run: np.zeros(3),
        lambda findings, run: (one for one in findings),
        lambda findings, run: Unshowable(),
        lambda findings, run: findings.clear(),
        lambda findings, run: setattr(run.record, "grad_norm", 0.0),
        lambda findings, run: run.record.per_parameter["grad_norm"].sort(),
    ],
)
def test_the_next_response_acts_for_a_failing_one(
    respond: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The next response acts in its place."""
    trained(caplog, "OwnResponse", on_explosion=[OwnResponse(respond), "skip"], clip=1e-3)
    assert any("the update is skipped because of nonfinite-loss" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"detectors": [type("Nameless", (OwnDetector,), {"sign": None})(fails)]}, "sign of Nameless"),
        ({"detectors": [type("Reads", (OwnDetector,), {"reads": ("nonsense",)})(fails)]}, "nonsense"),
        ({"detectors": [type("Reads", (OwnDetector,), {"reads": None})(fails)]}, "fields of StepRecord"),
        ({"on_explosion": type("Odd", (OwnResponse,), {"is_remedy": torch.ones(2)})()}, "is_remedy of Odd"),
        ({"on_explosion": type("Odd", (OwnResponse,), {"only_warns": "no"})()}, "only_warns of Odd"),
        ({"clip": type("Odd", (OwnPolicy,), {"algorithm": ["norm"]})(fails)}, "algorithm of Odd"),
    ],
)
def test_parts_that_are_wrong_from_the_start_are_refused(arguments: dict[str, Any], words: str) -> None:
    """The constructor names what is wrong, before any run begins."""
    with pytest.raises((TypeError, ValueError), match=words):
        Arguments.checked(**arguments)
