"""Gradients that a plain loop removes between the backward pass and the optimizer's step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, loss_of, network, same_weights

Removes = Callable[[nn.Sequential], None]


def all_of_them(model: nn.Sequential) -> None:
    """Remove all gradients."""
    for one in model.parameters():
        one.grad = None


def of_the_last_layer(model: nn.Sequential) -> None:
    """Remove those of a layer, as where it is frozen for the first epochs."""
    for one in model[2].parameters():
        one.grad = None


def train(removes: Removes, is_watched: bool, in_closure: bool = False, scaler: bool = False) -> nn.Module:
    """Train, with gradients that are removed at every second step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaling = torch.amp.GradScaler("cpu", enabled=scaler, init_scale=2.0)
    watch = GradientWatch(model, optimizer, report=False, scaler=scaling) if is_watched else None
    for index, batch in enumerate(batches(6)):

        def gradients() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)  # noqa: B023
            if watch is not None:
                watch.loss(loss)
            scaling.scale(loss).backward()  # type: ignore[no-untyped-call]
            if index % 2:  # noqa: B023
                removes(model)
            return loss

        if in_closure:
            optimizer.step(gradients)
            continue
        gradients()
        if index % 2 and removes is all_of_them and scaler:
            continue  # the scaler refuses a step without gradients
        scaling.step(optimizer)
        scaling.update()
    if watch is not None:
        assert not watch.failed
        watch.close()
    return model


@pytest.mark.parametrize(
    ("in_closure", "scaler"), [(False, False), (True, False), (False, True)], ids=["loop", "closure", "scaler"]
)
def test_gradients_that_are_removed_before_the_step_are_named_once(
    in_closure: bool, scaler: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the first step and the parameters, which the optimizer does not update."""
    model = train(of_the_last_layer, True, in_closure, scaler)
    lines = [one for one in caplog.messages if "were removed" in one]
    assert len(lines) == 1
    assert "at step 1: the gradients of 2.weight, 2.bias were removed" in lines[0]
    assert same_weights(model, train(of_the_last_layer, False, in_closure, scaler))


def test_a_step_that_a_loop_leaves_out_by_clearing_all_gradients_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """It is recorded with the norm of the gradients of the loss, which the line says."""
    train(all_of_them, True)
    assert [one for one in caplog.messages if "the gradients of all parameters were removed" in one]


def test_gradients_that_a_response_removes_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    """The loop goes on after it was told to stop, and its updates are left out by the monitor itself."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    with GradientWatch(model, optimizer, report=False, diagnose=False, on_explosion="stop") as watch:
        for batch in batches(6):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert watch.should_stop
    assert not [one for one in caplog.messages if "were removed" in one]


def test_steps_that_a_scaler_skips_are_not_taken_for_removed_gradients(caplog: pytest.LogCaptureFixture) -> None:
    """Their gradients are cleared by the time they are recorded."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with GradientWatch(model, optimizer, report=False, scaler=scaler) as watch:
        for batch in batches(12):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    assert not [one for one in caplog.messages if "were removed" in one]


def test_a_layer_that_was_replaced_after_the_optimizer_was_made_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The gradients are those of the new layer, which no optimizer updates."""
    model = network().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model[2] = copy.deepcopy(model[2]).requires_grad_()
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(20):
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert [one for one in caplog.messages if "while 2.weight, 2.bias had one, which no optimizer updates" in one]
