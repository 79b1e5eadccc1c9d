"""On an accelerator nobody waits before an optimizer's step where nothing has to be decided, and the numbers are right.

There is no accelerator here: the monitor is made to believe that tensors lie on one, whose reads are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch.optim import Optimizer

from lightning_gradexplode import GradientExplosionMonitor, Severity
from lightning_gradexplode.clip import ConstantClip
from lightning_gradexplode.measure import reading
from lightning_gradexplode.testing import ExplodingRegression
from tests.runs.agreement import assert_agrees, assert_batches_agree
from tests.runs.models import Manual, Odd, Regression
from tests.runs.probe import QUIET, Watched, counts_steps_after_a_resume
from tests.runs.test_explosions import NaNAt

CALM = {"histogram_every_n_steps": 0}


class Exploding(ExplodingRegression, pl.LightningModule):
    """Grows without end."""


class Order(pl.Callback):
    """Notes what happens in which order, and reads from the accelerator among it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the call."""
        self.events.append("backward")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the optimizer."""
        trainer.optimizers[0].register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.events.append("step")

    def between(self, first: str, last: str) -> list[int]:
        """Count, for each stretch from one event to the next of another kind, the reads in it."""
        counts, count = [], None
        for event in self.events:
            if event == first:
                count = 0
            elif event == last and count is not None:
                counts.append(count)
                count = None
            elif event == "read" and count is not None:
                count += 1
        return counts


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Iterator[Order]:
    """Pretend that all tensors lie on an accelerator."""
    order, to_host = Order(), reading.to_host

    def counted(numbers: torch.Tensor) -> Any:
        order.events.append("read")
        return to_host(numbers)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(reading, "to_host", counted)
    yield order
    assert "read" in order.events


def train(order: Order, monitor: GradientExplosionMonitor, steps: int, module: Any = None, **trainer: Any) -> None:
    """Train with the order of events noted before the monitor hears of them."""
    pl.Trainer(**{**QUIET, "max_steps": steps}, logger=False, callbacks=[order, monitor], **trainer).fit(
        Regression() if module is None else module
    )


@pytest.mark.parametrize("clip", [None, 0.5])
def test_nothing_is_read_before_a_calm_step(order: Order, clip: float | None) -> None:
    """From the second step on no read lies between the backward pass and the update; the next backward pass is later.

    Another callback's hook after the backward pass makes the monitor measure later; that must not make it wait either.
    """
    monitor = GradientExplosionMonitor(log_every_n_steps=0, report=False)
    train(order, monitor, 24, gradient_clip_val=clip)
    assert order.between("backward", "step")[1:] == [0] * 23
    assert order.between("step", "backward").count(1) >= 10  # two where the weights were looked at
    assert max(order.between("step", "backward")[1:]) == 2


@pytest.mark.parametrize("arguments", [{"clip": ConstantClip(0.5, "value")}, {"on_explosion": "skip"}])
def test_what_has_to_be_decided_is_read_before_the_step(order: Order, arguments: dict[str, Any]) -> None:
    """Clipping by value, whose rate is that of the elements, or a response of a plain optimizer cannot be late."""
    train(order, GradientExplosionMonitor(log_every_n_steps=0, report=False, **arguments), 6)
    assert all(order.between("backward", "step"))


def adamw(parameters: Any) -> Optimizer:
    """Build AdamW."""
    return torch.optim.AdamW(parameters, lr=0.01)


def line_search(parameters: Any) -> Optimizer:
    """Build an optimizer that computes gradients several times within a step."""
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


@pytest.mark.parametrize("build", [None, adamw, line_search], ids=["sgd", "adamw", "line search"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_late_numbers_are_those_that_the_optimizer_was_handed(order: Order, build: Any, clip: float | None) -> None:
    """Norms, maxima, counts and weight changes agree with the probe, one log for each step, the last one included."""
    run = Watched(Regression(build), monitor=CALM, gradient_clip_val=clip)
    if build is line_search and clip is None:  # what a search has overwritten is not logged at its first late step
        assert len(run.logged) == 5
        assert sum("gradexplode/grad_max" not in logged for logged in run.logged) == 1
        return
    assert_agrees(run, 5, histograms=False)


def test_late_numbers_of_odd_parameters(order: Order) -> None:
    """Sparse, complex, tied, unused, 0-dim and empty parameters are exact on this way too."""
    assert_agrees(Watched(Odd(), monitor=CALM), 5, histograms=False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_late_numbers_of_other_precisions(order: Order, precision: Any) -> None:
    """So are half and double precision."""
    assert_agrees(Watched(Regression(), monitor=CALM, precision=precision), 5, histograms=False)


def test_late_numbers_of_accumulation(order: Order) -> None:
    """A window is judged before the next one begins, and the last, partial one at the end of its epoch."""
    run = Watched(Regression(batches=7), monitor=CALM, accumulate_grad_batches=3, max_epochs=2, max_steps=-1)
    assert_agrees(run, 6, histograms=False)
    assert run.monitor.last is not None
    assert run.monitor.last.step == 5


def test_manual_optimization_is_read_at_once(order: Order) -> None:
    """Where several optimizers step in a batch, each is read before its step, and agrees."""
    assert_batches_agree(Watched(Manual(2), monitor=CALM, max_steps=10), 5, 10)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_gradient_that_is_nan_is_found_late(order: Order, clip: float | None) -> None:
    """The finding names step and parameter; what clipping has overwritten is not counted, and not logged."""
    run = Watched(NaNAt(3, "gradient"), monitor={**CALM, "log_every_n_steps": 0}, max_steps=6, gradient_clip_val=clip)
    finding = next(finding for finding in run.monitor.findings if finding.sign == "nonfinite-gradient")
    assert (finding.step, finding.severity) == (3, Severity.CRITICAL)
    assert finding.where == "layers.0.weight"
    if clip is None:
        assert (finding.value, finding.message) == (1, "1 gradient element is NaN or infinite")
    else:
        assert (finding.value, finding.message) == (1, "the gradient of 1 parameter is NaN or infinite")


def test_an_explosion_is_found_as_soon(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first critical finding is of the same step, or of the next one, as where the numbers are there at once."""
    found = []
    for late in (True, False):
        monitor = GradientExplosionMonitor(report=False)
        pl.Trainer(**{**QUIET, "max_steps": 40}, logger=False, callbacks=[monitor]).fit(Exploding())
        assert monitor.exploded
        found.append(next(one.step for one in monitor.findings if one.severity is Severity.CRITICAL))
        if late:
            monkeypatch.setattr(reading, "is_on_host", lambda tensor: tensor.is_cpu)
    assert 0 <= found[0] - found[1] <= 1


def test_what_others_monitor_is_there_in_time(order: Order) -> None:
    """Early stopping on the gradient norm sees that of an epoch's last step."""
    seen = []

    class Seen(EarlyStopping):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["gradexplode/grad_norm"]))

    run = Watched(Regression(), monitor=CALM, callbacks=[Seen("gradexplode/grad_norm")], max_epochs=3, max_steps=-1)
    assert seen == [logged["gradexplode/grad_norm"] for logged in run.logged[7::8]]
    assert all(math.isfinite(norm) for norm in seen)


class Saves(pl.Callback):
    """Saves a checkpoint between two steps.

    Args:
        path: Where to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save after the fourth step."""
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@counts_steps_after_a_resume
def test_a_checkpoint_contains_the_step_before_it(order: Order, tmp_path: Path) -> None:
    """What is saved between two steps holds the memory of the first, so that a resumed run remembers what it would."""
    path = tmp_path / "middle.ckpt"
    whole = Watched(Regression(batches=4), monitor=CALM, max_steps=8, callbacks_behind=[Saves(path)])
    torch.manual_seed(0)
    rest = Watched(Regression(batches=4), monitor=CALM, max_steps=8, ckpt_path=str(path))
    assert [step for step, logged in rest.logger.metrics if "gradexplode/grad_norm" in logged] == [4, 5, 6, 7]
    memories = [run.monitor.state_dict()["optimizers"][0] for run in (whole, rest)]
    assert [memory["steps"] for memory in memories] == [8, 8]
    waits = [memory["detectors"]["state"]["_interval"]["_norms"] for memory in memories]
    assert [len(wait["_values"]) for wait in waits] == [8, 8]
