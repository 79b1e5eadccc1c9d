"""The monitor in a loop of plain PyTorch, against the same loop without it and against float64."""

from __future__ import annotations

import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.testing import RecordingLogger


def train(watched: bool, accumulate: int = 1, scaled: bool = False, **arguments: Any) -> tuple[nn.Module, float, Any]:
    """Train with clipping by the loop; return the model, the largest error of the norm, and the watch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    watch = None
    if watched:
        watch = GradientWatch(model, optimizer, scaler=scaler, report=False, **arguments)
    error = 0.0
    for _ in range(12):
        optimizer.zero_grad()
        for _ in range(accumulate):
            inputs = torch.randn(16, 4)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            if watch is not None:
                watch.loss(loss)
            scaler.scale(loss / accumulate).backward()
        norm = torch.cat([one.grad.double().flatten() for one in model.parameters() if one.grad is not None]).norm()
        truth = float(norm) / scaler.get_scale()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if watch is not None:
            assert watch.last is not None
            assert watch.last.grad_norm is not None
            error = max(error, abs(watch.last.grad_norm - truth) / truth)
    if watch is not None:
        watch.close()
        assert not watch.failed
    return model, error, watch


@pytest.mark.parametrize("arguments", [{}, {"accumulate": 3}, {"scaled": True}])
def test_the_norm_is_the_one_before_the_loops_own_clipping(arguments: dict[str, Any]) -> None:
    """It equals a float64 norm of all gradients of the step, and weights keep every bit."""
    model, error, watch = train(True, log_every_n_steps=1, **arguments)
    plain, _, _ = train(False, **arguments)
    assert error < 1e-9
    assert watch.last.step == 11
    assert watch.last.grad_norm_clipped == pytest.approx(0.1, rel=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def nan_run(on_explosion: str, scaled: bool = False) -> tuple[nn.Module, GradientWatch]:
    """Train on batches of which the 10th is NaN, with a way to compute a step again."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    def loss_of(model: Any, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss

    arguments: dict[str, Any] = {"report": False, "on_explosion": on_explosion}
    with GradientWatch(model, optimizer, scaler=scaler, step=loss_of, **arguments) as watch:
        for number in range(14):
            batch = torch.randn(8, 4)
            if number == 9:
                batch[2, 1] = float("nan")
            watch.batch(batch)
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    assert not watch.failed
    return model, watch


@pytest.mark.parametrize("on_explosion", ["skip", "rollback", "stop"])
def test_a_batch_of_nan_does_not_reach_the_weights(on_explosion: str) -> None:
    """The update is held back, and the diagnosis names the input."""
    model, watch = nan_run(on_explosion)
    diagnosis = watch.diagnosis()
    assert all(bool(one.isfinite().all()) for one in model.parameters())
    assert watch.exploded
    assert watch.should_stop == (on_explosion == "stop")
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "nonfinite-input"


def test_no_loss_outlives_its_step() -> None:
    """The hook of a loss does not keep it, and with it the graph of its step."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, report=False)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
        losses.append(weakref.ref(loss))
    del loss
    assert not any(one() is not None for one in losses)
    watch.close()


def test_a_step_that_the_scaler_leaves_out_is_seen() -> None:
    """No step hook is called for it, and it still has a finding at its own step."""
    _, watch = nan_run("warn", scaled=True)
    assert [one.step for one in watch.findings if one.sign == "nonfinite-gradient"] == [9]
    assert watch.last is not None
    assert watch.last.step == 13


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ({"loggers": "tensorboard"}, "loggers must be a list of SummaryWriters, W&B runs or objects with log_metrics"),
        ({"loggers": [None]}, "loggers must be a list of SummaryWriters"),
        ({"scaler": 5}, "scaler must be a torch.amp.GradScaler, got 5"),
        ({"step": "loss"}, "step must be a function of a model and a batch, got 'loss'"),
        ({"log_dir": 5}, "log_dir must be a path, got 5"),
        ({"model": [nn.Linear(1, 1)]}, "of several networks a ModuleList), got a list of Linear"),
        ({"optimizer": []}, "optimizer must be a torch.optim.Optimizer or a list of them, got a list of nothing"),
        ({"optimizer": 0.1}, "got 0.1"),
    ],
)
def test_what_is_no_part_of_a_loop_is_refused(argument: dict[str, Any], expected: str) -> None:
    """The message names the argument, what it takes and what it got."""
    model = nn.Linear(4, 1)
    arguments: dict[str, Any] = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **argument}
    with pytest.raises(TypeError, match=re.escape(expected)):
        GradientWatch(arguments.pop("model"), arguments.pop("optimizer"), report=False, **arguments)


def test_a_logger_may_be_given_by_itself() -> None:
    """One logger need not be put into a list."""
    model, log = nn.Linear(4, 1), RecordingLogger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientWatch(model, optimizer, loggers=log, log_every_n_steps=1, report=False) as watch:  # type: ignore[arg-type]
        loss = model(torch.ones(2, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
    assert log.values("gradexplode/grad_norm")


@pytest.mark.parametrize("name", ["optimizer", "inner"])
def test_a_wrapper_that_takes_no_hooks(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The optimizer within it is measured where it can be found; else one line says what to pass."""

    class Wrapper(torch.optim.Optimizer):
        """Skips the constructor of its base."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            setattr(self, name, inner)
            self.param_groups = inner.param_groups

        def step(self, closure: Any = None) -> Any:
            return getattr(self, name).step()

    model = nn.Linear(4, 1)
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with GradientWatch(model, optimizer, report=False) as watch:
        loss = model(torch.ones(2, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
    assert (watch.last is not None) == (name == "optimizer")
    assert len(caplog.messages) == (0 if name == "optimizer" else 1)
    assert name == "optimizer" or "pass the optimizer that it wraps" in caplog.text


@pytest.mark.slow
def test_an_exception_that_ends_the_process_leaves_the_recorded_steps(tmp_path: Path) -> None:
    """Without ``with`` and without ``close``, what was measured is written when the process ends."""
    program = """
import sys, torch
from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, loss_of, network
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
watch = GradientWatch(model, optimizer, log_dir=sys.argv[1])
for step, batch in enumerate(batches(5)):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    watch.loss(loss)
    loss.backward()
    optimizer.step()
    assert step < 3, "theirs"
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "AssertionError: theirs" in ended.stderr
    assert "gradexplode" not in ended.stderr.replace("lightning_gradexplode", "")
    assert len(np.load(tmp_path / "gradexplode" / "steps.npz")["step"]) == 4
