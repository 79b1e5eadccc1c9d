"""Steps within CUDA graphs and compiled programs: what hooks see is measured, of the rest there is one line, no error.

There is no GPU here: the capture of a CUDA graph is imitated by what torch returns while one is captured, and reading
a number meanwhile is an error, as it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch
from lightning_gradexplode.measure import reading
from tests.runs.models import Manual
from tests.runs.probe import QUIET

LINE = "inside of a CUDA graph"


class Capture:
    """Imitates the capture of a CUDA graph.

    Attributes:
        is_on: Whether one is being captured.
    """

    is_on = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = reading.PendingRead.values

        def forbidden(pending: Any) -> Any:
            assert not self.is_on, "operation not permitted when stream is capturing"
            return values(pending)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.is_on)
        monkeypatch.setattr(reading.PendingRead, "values", forbidden)
        monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Imitate CUDA."""
    return Capture(monkeypatch)


def trained(
    watched: bool, steps: int, around: Callable[[int, Callable[[], None]], None], **arguments: Any
) -> tuple[list[Tensor], Any]:
    """Train a small network, with each step called by a function, and return the weights and the watch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)  # torch 2.4 captures no AdamW here
    watch = GradientWatch(network, optimizer, report=False, **arguments) if watched else None

    def step() -> None:
        optimizer.zero_grad()
        loss = network(torch.randn(8, 4)).square().mean()
        if watch is not None:
            watch.loss(loss)
        loss.backward()
        optimizer.step()

    for number in range(steps):
        around(number, step)
    if watch is not None:
        watch.close()
    return list(network.parameters()), watch


@pytest.mark.parametrize("interval", [0, 1])
@pytest.mark.parametrize("arguments", [{}, {"on_explosion": "skip"}], ids=["warn", "skip"])
def test_a_captured_step_is_left_alone(
    capture: Capture, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], interval: int
) -> None:
    """Nothing is read while a graph is captured, and the steps before and after it are measured as ever."""

    def around(number: int, step: Callable[[], None]) -> None:
        capture.is_on = number in (3, 4)
        step()
        capture.is_on = False

    plain, _ = trained(False, 8, around)
    weights, watch = trained(True, 8, around, log_every_n_steps=interval, **arguments)
    assert all(map(torch.equal, weights, plain))
    assert not watch.failed
    assert watch.last.step == 5  # six of eight steps were seen
    assert watch.last.grad_norm > 0
    assert [LINE in record.message for record in caplog.records].count(True) == 1


def test_a_captured_clip_is_announced_as_none(capture: Capture, caplog: pytest.LogCaptureFixture) -> None:
    """A step within a graph is not clipped, and the line says so."""

    def around(number: int, step: Callable[[], None]) -> None:
        capture.is_on = number == 1
        step()
        capture.is_on = False

    _, watch = trained(True, 3, around, clip=1e-3)
    assert watch.last.clip_val == 1e-3
    assert any("not measured, clipped or held back" in record.message for record in caplog.records)


def test_a_module_that_captures_in_its_own_training_step(capture: Capture, caplog: pytest.LogCaptureFixture) -> None:
    """In manual optimization the hooks of the trainer are called during the capture too."""

    class Captures(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            capture.is_on = batch_idx == 2
            try:
                return super().training_step(batch, batch_idx)
            finally:
                capture.is_on = False

    monitor = GradientExplosionMonitor(report=False, log_every_n_steps=1, histogram_every_n_steps=1)
    pl.Trainer(**{**QUIET, "max_steps": 5}, logger=False, callbacks=[monitor]).fit(Captures(1))
    assert not monitor.failed
    assert [LINE in record.message for record in caplog.records].count(True) == 1


def test_without_cuda_nothing_asks_for_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is not started by the question either."""

    def called() -> bool:
        raise AssertionError("CUDA was asked")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", called)
    _, watch = trained(True, 2, lambda number, step: step())
    assert watch.last.step == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_optimizer_step_is_measured_clipped_and_held_back(
    caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    """Hooks of the optimizer run as Python around the compiled step."""
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    compiled = torch.compile(optimizer.step, backend=backend)
    with (
        caplog.at_level(logging.WARNING),
        GradientWatch(network, optimizer, report=False, clip=1e-2, on_explosion="skip", diagnose=False) as watch,
    ):
        for number in range(6):
            before = [one.detach().clone() for one in network.parameters()]
            optimizer.zero_grad()
            loss = network(torch.randn(8, 4)).square().mean() * (torch.nan if number == 3 else 1.0)
            watch.loss(loss)
            loss.backward()
            truth = float(
                torch.linalg.vector_norm(
                    torch.cat([one.grad.view(-1) for one in network.parameters() if one.grad is not None])
                )
            )
            compiled()
            assert all(map(torch.equal, network.parameters(), before)) == (number == 3)
            if number != 3:
                assert watch.last is not None
                assert watch.last.grad_norm == pytest.approx(truth, rel=1e-6)
    assert watch.last is not None
    assert (watch.last.step, watch.last.skipped_steps, watch.last.clip_val) == (5, 1, 1e-2)
    assert not watch.failed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled_autograd", [False, True])
def test_a_training_step_that_is_compiled_as_a_whole(caplog: pytest.LogCaptureFixture, compiled_autograd: bool) -> None:
    """The gradients are measured as the optimizer gets them, and a line says what is not seen; weights are the same."""
    torch._dynamo.reset()
    torch._dynamo.config.compiled_autograd = compiled_autograd
    try:
        compiled: dict[Any, Any] = {}

        def around(number: int, step: Callable[[], None]) -> None:
            if number == 0:
                compiled["step"] = torch.compile(step, backend="eager")
            compiled["step"]()

        plain, _ = trained(False, 5, around)
        weights, watch = trained(True, 5, around)
    finally:
        torch._dynamo.config.compiled_autograd = False
    assert all(map(torch.equal, weights, plain))
    assert not watch.failed
    assert watch.last.step == 4
    assert watch.last.grad_norm > 0
    assert any("a function that torch.compile compiles" in record.message for record in caplog.records)
