"""Steps of a user's own function that are computed again change nothing of the run, and are no steps of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, loss_of, network, same_weights


def train(is_watched: bool) -> tuple[nn.Module, list[int], GradientWatch | None]:
    """Train with a function that also steps the optimizer; return model, optimizer's steps at each batch, and watch."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)  # it replaces the optimizer's method `step`
    watch: GradientWatch | None = None

    def train_step(module: nn.Module, batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(module, batch) + batch[0, 0].abs().sub(batch[0, 1].relu()).log() * 0
        if watch is not None:
            watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    if is_watched:
        watch = GradientWatch(model, optimizer, report=False, step=train_step)
    counts = []
    for index, batch in enumerate(batches(14)):
        batch[0, :2] = torch.tensor([2.0, 3.0 if index == 12 else 1.0])
        if watch is not None:
            watch.batch(batch)
        train_step(model, batch)
        schedule.step()
        counts.append(optimizer.state[next(model.parameters())]["step"].item())
    return model, counts, watch


def test_a_function_that_steps_the_optimizer_takes_no_further_step() -> None:
    """Weights and the optimizer's counter are those without the watch, whose steps are those of the loop."""
    plain, expected, _ = train(False)
    model, counts, watch = train(True)
    assert watch is not None
    assert counts == expected
    assert same_weights(model, plain)
    assert watch.last is not None
    assert watch.last.step == 13


def test_the_console_has_the_cause_with_a_function_that_steps_the_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    """It names the operation at once, since calls of the function in a replay are not taken for those of the loop."""
    train(True)
    assert any("undefined-operation in log" in line for line in caplog.messages)
    assert not any("no backward pass" in line for line in caplog.messages)


def test_a_learning_rate_that_a_replay_sets_is_restored(caplog: pytest.LogCaptureFixture) -> None:
    """A function that also steps a scheduler is named once, and the optimizer has the rate of its own steps."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)

    def train_step(module: nn.Module, batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(module, batch)
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        return loss

    with GradientWatch(model, optimizer, report=False, step=train_step) as watch:
        for batch in [*batches(2), torch.full((16, 4), float("nan"))]:
            watch.batch(batch)
            train_step(model, batch)
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3
    assert sum("counted the steps of the replay" in line for line in caplog.messages) == 1
