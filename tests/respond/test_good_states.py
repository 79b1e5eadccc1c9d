"""Training states that are known to be good, and what becomes of them when the run changes."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradexplode.records import Severity
from lightning_gradexplode.respond.good_states import GoodStates
from tests.detect.steps import through_checkpoint
from tests.respond.loops import JoinedLoop, PlainLoop, context

CRITICAL = int(Severity.CRITICAL)


def train(loop: PlainLoop, states: GoodStates, steps: range, severity: int = 0) -> list[torch.Tensor]:
    """Run steps of gradient descent, and return a copy of the weights after each."""
    weights = []
    for step in steps:
        loop.optimizer.zero_grad()
        loop.module(torch.ones(3)).square().sum().backward()
        loop.optimizer.step()
        weights.append(copy.deepcopy(next(loop.module.parameters()).detach()))
        states.batch_ended(context(loop, step=step, severity=severity))
    return weights


def weight(loop: PlainLoop) -> torch.Tensor:
    """Return the first parameter."""
    return next(loop.module.parameters()).detach()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_state_is_good_once_enough_healthy_steps_followed(on_disk: bool, tmp_path: Path) -> None:
    """What was taken within the margin before an explosion is dropped, and what is restored is exact."""
    loop, states = PlainLoop(), GoodStates(2, 3, 2, tmp_path if on_disk else None)
    states.start(context(loop, step=-1))
    weights = train(loop, states, range(7))  # taken after 1, 3 and 5; that of 3 has three healthy steps behind it
    states.batch_ended(context(loop, step=7, severity=CRITICAL))
    assert states.find(context(loop))
    assert states.step == 3
    assert states.restore(context(loop)) == []
    assert torch.equal(weight(loop), weights[3])
    states.clear()
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_left_by_a_process_that_is_killed(tmp_path: Path) -> None:
    """The files have no name, so that there is nothing to clear up."""
    states = GoodStates(1, 1, 2, tmp_path)
    loop = PlainLoop()
    states.start(context(loop))
    train(loop, states, range(4))
    assert list(tmp_path.iterdir()) == []
    assert states.find(context(loop))
    states.clear()


def test_a_full_disk_costs_the_state_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The states that are there stay, and one line says what happened."""
    loop, states = PlainLoop(), GoodStates(1, 1, 2, tmp_path)
    states.start(context(loop))

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run = context(loop)
    for step in range(5):
        run.record = context(step=step).record
        states.batch_ended(run)
    assert states.find(run)
    assert sum("No space left on device" in line for line in caplog.messages) == 1
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    states.batch_ended(context(loop, step=9))
    assert states.find(run)
    states.clear()


def test_a_state_that_another_process_cannot_keep_is_not_kept_here() -> None:
    """All processes have the same states, so that all go back to the same step."""
    loop, states = JoinedLoop(lambda mine: np.zeros(len(mine))), GoodStates(1, 1, 2)
    states.start(context(loop))
    assert not states.find(context(loop))


class Grows(nn.Module):
    """A network that can get another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.cache: torch.Tensor
        self.register_buffer("cache", torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply all layers."""
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


def test_states_of_a_model_that_grew_are_dropped_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A state with other parameters fits no more; later ones do."""
    net = Grows()
    loop, states = PlainLoop(net), GoodStates(1, 1, 2)
    states.start(context(loop))
    layer = nn.Linear(3, 3)
    net.layers.append(layer)
    loop.optimizer.add_param_group({"params": [*layer.parameters()]})
    assert not states.find(context(loop))
    assert "other parameters now (layers.1.bias and 1 more)" in caplog.text
    weights = train(loop, states, range(3))
    assert states.find(context(loop))
    states.restore(context(loop))
    assert torch.equal(weight(loop), weights[1])


def test_a_buffer_that_grew_keeps_its_present_state() -> None:
    """Caches of another size are no reason to give up a state, and are named."""
    net = Grows()
    loop, states = PlainLoop(net), GoodStates(1, 1, 2)
    states.start(context(loop))
    net.cache = torch.ones(5)
    before = copy.deepcopy(weight(loop))
    with torch.no_grad():
        weight(loop).add_(1.0)
    assert states.find(context(loop))
    assert states.restore(context(loop)) == ["buffer cache"]
    assert torch.equal(weight(loop), before)
    assert torch.equal(net.cache, torch.ones(5))


def test_a_replaced_optimizer_is_no_reason_to_restore_half_a_state(caplog: pytest.LogCaptureFixture) -> None:
    """A state of another kind of optimizer is dropped, with the reason."""
    loop, states = PlainLoop(), GoodStates(1, 1, 2)
    states.start(context(loop))
    loop.optimizer = torch.optim.Adam(loop.module.parameters())
    assert not states.find(context(loop))
    assert "the optimizers are others now" in caplog.text


def test_replaced_schedulers_keep_their_rates() -> None:
    """Where another schedule has taken over, weights go back and the rates do not."""
    loop, states = PlainLoop(), GoodStates(1, 1, 2)
    loop.schedules = [torch.optim.lr_scheduler.StepLR(loop.optimizer, 2)]
    states.start(context(loop))
    loop.schedules = [torch.optim.lr_scheduler.ConstantLR(loop.optimizer, 0.5)]
    loop.optimizer.param_groups[0]["lr"] = 0.02
    assert states.find(context(loop))
    assert states.restore(context(loop)) == ["learning rate schedulers"]
    assert loop.optimizer.param_groups[0]["lr"] == 0.02


def test_lazy_modules_get_a_state_once_they_have_a_shape() -> None:
    """There is none at the start; after the first healthy batches there is."""
    net = nn.Sequential(nn.LazyLinear(2))
    loop, states = PlainLoop(net, torch.optim.SGD(net.parameters(), lr=0.1)), GoodStates(5, 1, 2)
    states.start(context(loop))
    assert not states.find(context(loop))
    weights = train(loop, states, range(2))
    assert states.find(context(loop))
    states.restore(context(loop))
    assert torch.equal(weight(loop), weights[0])


def test_averages_of_the_weights_are_restored_with_them(caplog: pytest.LogCaptureFixture) -> None:
    """An average that a loop copies into the model at its end must not bring the explosion back."""
    loop, states = PlainLoop(), GoodStates(1, 1, 2)
    average = [torch.ones(2), torch.tensor(4)]
    loop.averages = {"EMA": average}
    states.start(context(loop))
    average[0].fill_(float("nan"))
    average[1].fill_(9)
    started = torch.tensor(3)  # a count of averaged states, begun after the state was taken
    loop.averages = {"EMA": [*average, started], "SWA": [torch.zeros(1)]}
    assert states.find(context(loop))
    assert states.restore(context(loop)) == ["weight average SWA"]
    assert torch.equal(average[0], torch.ones(2))
    assert [int(average[1]), int(started)] == [4, 0]


def test_the_state_a_resumed_fit_starts_with_is_not_good_at_once() -> None:
    """It may have been saved inside the growth; after the margin it is good."""
    loop, states = PlainLoop(), GoodStates(10, 3, 2)
    run = context(loop, step=20, last_step=20)
    states.start(run)
    assert not states.find(run)
    train(loop, states, range(21, 24))
    assert states.find(run)
    assert states.step == 20


@pytest.mark.parametrize("on_disk", [False, True])
def test_states_go_through_a_checkpoint(on_disk: bool, tmp_path: Path) -> None:
    """A resumed run goes back to the same state as one that was never stopped."""
    loop, states = PlainLoop(), GoodStates(2, 3, 2)
    states.start(context(loop, step=-1))
    weights = train(loop, states, range(7))
    resumed = GoodStates(2, 3, 2, tmp_path if on_disk else None)
    resumed.start(context(loop, step=6, last_step=6))
    assert resumed.load_state_dict(through_checkpoint(states.state_dict())) == []
    for one in (states, resumed):
        assert one.find(context(loop))
        assert one.step == 3
        one.restore(context(loop))
        assert torch.equal(weight(loop), weights[3])
    states.clear()
    resumed.clear()


def test_states_are_left_out_of_checkpoints_on_request() -> None:
    """Checkpoints stay small where that is preferred."""
    loop, states = PlainLoop(), GoodStates(1, 1, 2, in_checkpoint=False)
    states.start(context(loop))
    assert states.state_dict() == {}
    assert states.load_state_dict({}) == []
