"""The monitor in a loop of plain PyTorch, against the same loop without it and against float64."""

from __future__ import annotations

import json
import math
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, loss_of, network, recorded, train_step, train_until_stopped
from tests.runs.optimizers import SharesAttributes, StepOfInstance
from tests.torch_versions import needs_default_device


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


@pytest.mark.parametrize("on_explosion", ["warn", "skip"])
def test_a_parameter_without_numbers_does_not_end_the_measurement(on_explosion: str) -> None:
    """A parameter on the meta device, which the loss does not use, is passed over."""
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.empty(3, device="meta")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, report=False, on_explosion=on_explosion, log_every_n_steps=1)
    for batch in batches(4):
        assert train_step(watch, model, optimizer, batch) == pytest.approx(recorded(watch), rel=1e-6)
    watch.close()
    assert not watch.failed


def nan_run(on_explosion: str) -> tuple[nn.Module, GradientWatch]:
    """Train on batches of which the 10th is NaN, with a way to compute a step again."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_of(model: Any, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss

    arguments: dict[str, Any] = {"report": False, "on_explosion": on_explosion}
    with GradientWatch(model, optimizer, step=loss_of, **arguments) as watch:
        for number in range(14):
            batch = torch.randn(8, 4)
            if number == 9:
                batch[2, 1] = float("nan")
            watch.batch(batch)
            train_step(watch, model, optimizer, batch)
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


def test_targets_that_the_model_makes_once_its_weights_are_nan_are_no_cause() -> None:
    """The gradient of the first loss is NaN by ``acos``; the targets of the next one come from weights that are NaN."""
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 2), torch.randn(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = GradientWatch(model, optimizer, report=False)
    for _ in range(3):
        optimizer.zero_grad()
        outputs = model(inputs)
        target = outputs.detach()
        angle = torch.acos((outputs * target).sum(dim=1) / (target * target).sum(dim=1))
        loss: Tensor = functional.smooth_l1_loss(outputs, target + 1) + angle.mean()
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    diagnosis = watch.diagnosis()
    watch.close()
    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.where) == ("undefined-operation", "`acos`")


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


def test_an_optimizer_that_is_given_twice_is_refused() -> None:
    """Its gradients would be clipped twice, and logged as they are after the first time."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer must be a list of different optimizers, got one of them twice"):
        GradientWatch(model, [optimizer, optimizer], report=False)


@pytest.mark.parametrize("name", ["optimizer", "inner"])
def test_a_wrapper_that_takes_no_hooks(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The optimizer within it is measured, whatever the name of its attribute."""

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
    assert watch.last is not None
    assert caplog.messages == []


@pytest.mark.parametrize("mistake", ["other optimizer", "number", "detached"])
def test_what_a_loop_forgot_is_named_once(mistake: str, caplog: pytest.LogCaptureFixture) -> None:
    """A step of an optimizer that was not given, and a loss without its history, leave one line each."""
    model = network()
    given = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01) if mistake == "other optimizer" else given
    with GradientWatch(model, given, report=False) as watch:
        for batch in batches(4):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            passed: Any = {"number": loss.item(), "detached": loss.detach()}.get(mistake, loss)
            watch.loss(passed)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    lines = {
        "other optimizer": "not by an optimizer that was passed to the monitor; ",
        "number": "got a float",
        "detached": "got a detached one",
    }
    assert caplog.text.count(lines[mistake]) == 1


@pytest.mark.parametrize("kind", ["FullyShardedDataParallel", "DeepSpeedEngine"])
def test_wrappers_that_hide_gradients_switch_the_watch_off(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line is logged, with what to use instead, and the training goes on."""
    wrapper = type(kind, (nn.Sequential,), {})(network())
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.01)
    with GradientWatch(wrapper, optimizer, report=False) as watch:
        train_until_stopped(watch, wrapper, optimizer, 2)
    assert watch.last is None
    assert watch.findings == []
    assert watch.diagnosis() is None
    assert len([one for one in caplog.messages if "is off for this run" in one]) == 1


@pytest.mark.parametrize(("build", "is_followed"), [(SharesAttributes, True), (StepOfInstance, False)])
def test_a_step_that_calls_no_hooks_is_followed_within_a_wrapper_or_refused(
    build: Any, is_followed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The optimizer that such a one wraps is measured and skipped; if it wraps none, one line is logged."""
    model = nn.Linear(3, 1)
    optimizer = build(model.parameters())
    with GradientWatch(model, optimizer, report=False, on_explosion="skip") as watch:
        for index in range(6):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean() * (float("nan") if index == 3 else 1.0)
            watch.loss(loss)
            loss.backward()
            optimizer.step()
    if is_followed:
        assert watch.last is not None
        assert (watch.last.step, watch.last.skipped_steps) == (5, 1)
        assert all(bool(one.isfinite().all()) for one in model.parameters())
    else:
        (line,) = [one.getMessage() for one in caplog.records]
        assert "takes no hooks around its step" in line


class Unequal(Tensor):
    """A tensor that must not be compared: on an accelerator, the host would wait for the result."""

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        """Raise."""
        raise AssertionError("the losses are compared")

    __hash__ = Tensor.__hash__


def test_losses_that_wait_for_a_backward_pass_are_not_compared() -> None:
    """Several losses may be announced before the first backward pass, as those of an adversarial network."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, report=False)
    for seed in range(4):
        optimizer.zero_grad()
        losses = [loss_of(model, batch).as_subclass(Unequal) for batch in batches(3, seed)]
        for loss in losses:
            watch.loss(loss)
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    watch.close()
    assert not watch.failed
    assert watch.last is not None
    assert watch.last.step == 3


@pytest.mark.parametrize(("folder", "name"), [("runs/a", "a"), (".", "here"), (None, "run")])
def test_the_run_is_named_after_its_folder(
    folder: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports of several runs can be told apart; without a folder there is no name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, log_dir=folder, report="always") as watch:
        train_step(watch, model, optimizer, batches(1)[0])
    (file,) = tmp_path.rglob("diagnosis.json")
    assert json.loads(file.read_text())["run"]["name"] == name


@pytest.mark.parametrize("device", ["cpu", pytest.param("meta", marks=needs_default_device)])
def test_tensors_are_on_the_device_of_the_model_whatever_the_default_device_is(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Measurements, histograms, responses and the replay of a run are those without a default device."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer, scaler = torch.optim.Adam(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=8.0)
    rows = [torch.randn(8, 6) for _ in range(12)]
    rows[9][3, 1] = torch.nan

    def squared(net: nn.Module, inputs: Tensor) -> Tensor:
        return torch.as_tensor(net(inputs).square().mean())

    options: dict[str, Any] = {"clip": "auto", "on_explosion": ["skip", "rollback"], "log_dir": tmp_path}
    options |= {"log_every_n_steps": 1, "histogram_every_n_steps": 2}
    with torch.device(device), GradientWatch(model, optimizer, scaler=scaler, step=squared, **options) as watch:
        for row in rows:
            watch.batch(row)
            optimizer.zero_grad()
            loss = model(row).square().mean()
            watch.loss(loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    diagnosis = watch.diagnosis()
    assert not watch.failed
    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.causes[0].where) == ("nonfinite-input", "batch, row 3")
    assert not any("could not" in one or "not measured" in one for one in caplog.messages)


def hooked(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a loss whose gradient a hook makes infinite."""
    weight: Any = model.get_parameter("0.weight")
    weight.register_hook(lambda gradient: gradient * (math.inf if float(inputs.max()) > 50 else 1.0))
    return torch.as_tensor(model(inputs).square().mean())


def checkpointed(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a loss with a logarithm of zero in a part that is computed again in the backward pass."""

    def part(values: Tensor) -> Tensor:
        return torch.log(model.get_submodule("0")(values).abs() * (values.max() < 50))

    hidden = checkpoint(part, inputs.clone().requires_grad_(), use_reentrant=True)
    return torch.as_tensor(model.get_submodule("2")(model.get_submodule("1")(hidden)).square().mean())


@pytest.mark.parametrize(("loss_of_step", "operation"), [(hooked, "mul"), (checkpointed, "log")])
def test_code_that_runs_in_the_backward_pass_is_no_derivative(
    loss_of_step: Callable[[nn.Module, Tensor], Tensor], operation: str
) -> None:
    """The operation of a hook, or of a reentrant checkpoint, is named, with its line, and not the node it runs in."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False, step=loss_of_step) as watch:
        for step in range(6):
            inputs = torch.randn(8, 6) * (100.0 if step == 5 else 1.0)
            watch.batch(inputs)
            optimizer.zero_grad()
            loss = loss_of_step(model, inputs)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "undefined-operation"
    assert str(diagnosis.where).startswith(f"`{operation}`")
    assert "test_gradient_watch.py" in str(diagnosis.where)
