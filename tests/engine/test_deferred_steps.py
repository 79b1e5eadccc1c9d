"""Steps of several processes whose numbers are read after their update, without a second process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.process_group import ProcessGroup
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.testing import PlainLoop
from tests.engine.test_run import Regression, norm_of


class Mirror:
    """Two processes, of which the other one sends what this one does until it has ended."""

    size, device = 2, torch.device("cpu")
    sent, has_ended = 0, False

    def gather(self, values: FloatArray) -> FloatArray:
        """Count the collective."""
        assert not self.has_ended, "nobody takes part in this collective"
        self.sent += 1
        return np.stack([values, values])

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Do the same with tensors."""
        return torch.from_numpy(self.gather(values.numpy()).reshape(-1))

    def leave(self, message: FloatArray) -> None:
        """Send the message."""
        self.gather(message)

    def close(self) -> None:
        """Do nothing."""


class MirroredLoop(PlainLoop):
    """A loop in one of two processes.

    Args:
        regression: What it trains.
    """

    def __init__(self, regression: Regression) -> None:
        super().__init__(
            regression.network, regression.loop.optimizers, regression.loss, [regression.logger], log_every_n_steps=100
        )
        self.mirror = Mirror()

    @property
    def process_group(self) -> ProcessGroup:
        """The two processes."""
        return self.mirror


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that all tensors lie on an accelerator."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)


def interrupted(steps: int, spoiled: int | None = None, **arguments: Any) -> tuple[TrainingRun, Regression]:
    """Train, and end the run by an exception after some steps, while the other process is gone."""
    regression = Regression()
    batches = regression.batches(steps)
    if spoiled is not None:
        batches[spoiled][0, 0] = float("nan")
    loop = MirroredLoop(regression)
    checked = Arguments.checked(report=False, log_every_n_steps=100, histogram_every_n_steps=0, **arguments)
    run = TrainingRun(checked, loop, {})
    loop.train(run, batches, close=False)
    loop.mirror.has_ended = True
    run.aborted(KeyboardInterrupt())
    run.close()
    return run, regression


def test_a_held_step_is_recorded_where_an_exception_ends_the_run() -> None:
    """Its loss and norm were exchanged when it began, so that nothing is needed of a process that has ended."""
    run, regression = interrupted(4)
    assert not run.failed
    assert run.last is not None
    assert run.last.step == 3
    assert run.last.grad_norm == pytest.approx(norm_of(regression.network), rel=1e-6)


def test_what_a_held_step_shows_is_a_finding_where_an_exception_ends_the_run() -> None:
    """A NaN that may be why the run has ended is among the findings."""
    run, _ = interrupted(4, spoiled=3)
    assert not run.failed
    assert {(3, "nonfinite-loss"), (3, "nonfinite-gradient")} <= {(one.step, one.sign) for one in run.findings}


def test_numbers_that_do_not_arrive_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that waits for an ended process is not waited for; the steps before are there."""
    monkeypatch.setattr(reading.PendingRead, "arrives_within", lambda self, seconds: False)
    run, _ = interrupted(4)
    assert not run.failed
    assert run.last is not None
    assert run.last.step == 2
