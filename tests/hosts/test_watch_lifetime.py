"""How a `GradientWatch` ends, is resumed, copied, and replaced by another one."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradexplode import ExplosionError, GradientWatch
from tests.hosts.loops import (
    batches,
    exact_norm,
    loss_of,
    network,
    recorded,
    same_weights,
    train_step,
    train_until_stopped,
)
from tests.torch_versions import needs_graph_values


def test_raise_ends_the_loop_and_leaves_nothing_behind() -> None:
    """The error comes out of the optimizer's step, the results stay, and the optimizer has no hook any more."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    watch = GradientWatch(model, optimizer, on_explosion="raise", report=False)
    with pytest.raises(ExplosionError), watch:
        train_until_stopped(watch, model, optimizer, 200)
    assert watch.exploded
    assert watch.diagnosis() is not None
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_exception_of_the_loop_is_raised(tmp_path: Path) -> None:
    """What was measured until then is written, and the exception goes on."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1)

    def fails() -> None:
        with watch:
            train_until_stopped(watch, model, optimizer, 3)
            raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        fails()
    assert not watch.failed
    assert (tmp_path / "gradexplode" / "steps.npz").exists()


def test_a_resumed_watch_decides_as_one_that_was_never_stopped() -> None:
    """After half of the steps model, optimizer and watch go through a checkpoint; thresholds and findings are equal."""

    def train(resumes: bool) -> tuple[list[float | None], list[Any], nn.Module]:
        model, thresholds, findings = nn.Linear(4, 1), [], []
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watch = GradientWatch(model, optimizer, clip="auto", report=False)
        for step, batch in enumerate(batches(60)):
            if step == 30 and resumes:
                saved = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict(), watch.state_dict()], saved)
                watch.close()
                saved.seek(0)
                weights, state, ours = torch.load(saved, weights_only=True)
                model, findings = nn.Linear(4, 1), watch.findings
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
                model.load_state_dict(weights)
                optimizer.load_state_dict(state)
                watch = GradientWatch(model, optimizer, clip="auto", report=False)
                watch.load_state_dict(ours)
            optimizer.zero_grad()
            loss = loss_of(model, batch * (30.0 if step in (25, 45) else 1.0))
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            assert watch.last is not None
            assert watch.last.step == step
            thresholds.append(watch.last.clip_val)
        watch.close()
        return thresholds, findings or watch.findings, model

    whole, resumed = train(False), train(True)
    assert whole[0] == resumed[0]
    assert same_weights(whole[2], resumed[2])


def test_model_and_optimizer_can_be_copied_and_pickled_while_monitored() -> None:
    """Copies have no hook of the watch; pickling the watch raises an error that names what to save instead."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, report=False)
    train_until_stopped(watch, model, optimizer, 2)
    restored, own = pickle.loads(pickle.dumps((model, optimizer)))
    copied = copy.deepcopy(model)
    assert same_weights(restored, model)
    assert same_weights(copied, model)
    assert isinstance(own, torch.optim.Adam)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(watch)
    watch.close()


def test_two_monitors_in_a_process_do_not_affect_each_other() -> None:
    """Two models in turn, each with a watch of its own, have the exact norms."""
    models = [network(0), network(1)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    watches = [GradientWatch(model, one, report=False) for model, one in zip(models, optimizers, strict=True)]
    for batch in batches(3):
        for model, optimizer, watch in zip(models, optimizers, watches, strict=True):
            truth = train_step(watch, model, optimizer, batch)
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
    for watch in watches:
        watch.close()


def test_the_cell_of_a_notebook_may_be_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The earlier watch of an optimizer, which was not closed, ends in one line; the later one alone clips and logs."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    earlier: GradientWatch | None = None
    for cell in range(3):
        watch = GradientWatch(model, optimizer, log_dir=tmp_path / str(cell), log_every_n_steps=1, clip=1e-3)
        for batch in batches(3):
            truth = train_step(watch, model, optimizer, batch)
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
        assert earlier is None or (earlier.last is not None and earlier.last.step == 2)
        earlier = watch
    watch.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert caplog.text.count("the earlier one") == 2
    assert "without a call of loss()" not in caplog.text
    rows = [
        (tmp_path / str(cell) / "gradexplode.csv").read_text(encoding="utf-8").count("/grad_norm,") for cell in (0, 1)
    ]
    assert rows == [3, 3]


def test_an_earlier_watch_that_goes_on_being_called_does_nothing() -> None:
    """Calls of a watch that was closed, or replaced, are no error."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first, second = (GradientWatch(model, optimizer, report=False) for _ in range(2))
    for batch in batches(3):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        for watch in (first, second):
            watch.batch(batch)
            watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        truth = exact_norm(model.parameters())
        optimizer.step()
        assert recorded(second) == pytest.approx(truth, rel=1e-9)
    assert first.last is None
    assert not first.failed
    first.close()
    second.close()


@needs_graph_values  # else a line more is logged
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


@pytest.mark.parametrize("batches", ["many", None, 2.5])
def test_a_damaged_number_of_batches_starts_at_zero(batches: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The rest of the saved state is loaded, and one line names what does not fit."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, report=False)
    watch.load_state_dict({**watch.state_dict(), "batches": batches})
    watch.close()
    assert ["number of batches" in line for line in caplog.messages] == [True]
