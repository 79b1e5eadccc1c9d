"""What responses do to whole runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_gradexplode import (
    ExplosionError,
    GradientExplosionMonitor,
    RecurrentBound,
    ReduceLearningRate,
    Rollback,
    SaveCheckpoint,
    Severity,
    SkipStep,
    WeightPenalty,
)
from tests.runs.alarms import AlarmAt, States, same, watched
from tests.runs.models import Manual, Odd, Regression
from tests.runs.probe import QUIET, counts_steps_after_a_resume, resuming
from tests.runs.test_modes import adamw, fused, scaler
from tests.runs.test_transparency import lbfgs


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """Build gradient descent with momentum and decay, which zeroed gradients would move."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


Mode = tuple[Callable[[], pl.LightningModule], dict[str, Any]]
MODES: dict[str, Mode] = {
    "momentum": (lambda: Regression(momentum), {}),
    "adamw": (lambda: Regression(adamw), {}),
    "clipped": (lambda: Regression(adamw), {"gradient_clip_val": 0.1}),
    "scaled": (lambda: Regression(adamw), {"plugins": True}),
    "fused": (lambda: Regression(fused), {}),
    "scaled and fused": (lambda: Regression(fused), {"plugins": True}),
    "line search": (lambda: Regression(lbfgs), {}),
    "odd parameters": (Odd, {}),
}


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of the trainer, with a new gradient scaler where one is wanted."""
    return {**options, "plugins": [scaler()]} if "plugins" in options else options


@pytest.mark.parametrize("mode", MODES)
def test_a_skipped_step_changes_no_bit(mode: str) -> None:
    """Weights and optimizer state are the same before and after, and the steps around it take place."""
    build, options = MODES[mode]
    run, states = watched(build(), {3}, "skip", **settings(options))
    assert same(states.after(3), states.after(2))
    for batch in (0, 1, 2, 4, 5):
        assert not same(states.after(batch)[0], states.after(batch - 1)[0]), batch
    assert [metrics["gradexplode/skipped_steps"] for metrics in run.logged] == [0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_skipped_step_of_an_accumulation_window(scaled: bool) -> None:
    """All batches of the window are left out, and none of their gradients is left for the next one."""
    plugins: dict[str, Any] = {"plugins": [scaler()]} if scaled else {}
    _, states = watched(Regression(adamw), {1}, "skip", accumulate_grad_batches=2, max_steps=4, **plugins)
    assert same(states.after(3), states.after(1))
    assert not same(states.after(5)[0], states.after(3)[0])
    plain = [batch for batch in range(1, 7) if not same(states.after(batch)[0], states.after(batch - 1)[0])]
    assert plain == [1, 5]


def test_a_skipped_step_in_manual_optimization() -> None:
    """With several optimizers each has its own steps: an alarm in one does not hold back the other."""

    class AlarmOfFirst(AlarmAt):
        def check(self, record: Any) -> Any:
            return super().check(record) if record.optimizer == 0 else None

    run, states = watched(
        Manual(2, toggled=True), (), "skip", detectors=[AlarmOfFirst({2})], max_steps=10, callbacks=[]
    )
    before, after = states.after(1)[0], states.after(2)[0]
    assert torch.equal(before["layers.0.weight"], after["layers.0.weight"])
    assert not torch.equal(before["layers.1.weight"], after["layers.1.weight"])
    assert run.logged[-1]["gradexplode/skipped_steps"] == 1


def test_no_more_than_so_many_steps_are_skipped_in_a_row() -> None:
    """After so many the next response acts; where there is none, updates take place again."""
    run, states = watched(Regression(adamw), range(1, 8), SkipStep(most_in_a_row=2, cooldown=3))
    held = [batch for batch in range(8) if same(states.after(batch), states.after(batch - 1))]
    assert held == [1, 2]
    run, _ = watched(Regression(adamw), range(1, 8), [SkipStep(most_in_a_row=2), "stop"])
    assert len(run.logged) == 4
    assert run.trainer.should_stop


def test_late_findings_cannot_be_skipped() -> None:
    """What shows only after the update is left to the next response."""
    run, states = watched(Regression(adamw), {2}, "skip", late=True)
    assert run.monitor.exploded
    assert not any(same(states.after(batch), states.after(batch - 1)) for batch in range(8))
    run, _ = watched(Regression(adamw), {2}, ["skip", "stop"], late=True)
    assert len(run.logged) == 3


class Scheduled(Regression):
    """Gradient descent on two groups with a schedule that computes each rate from the one before."""

    def configure_optimizers(self) -> Any:
        """Build both."""
        first, second = [*self.layers[0].parameters()], [*self.layers[3].parameters()]  # type: ignore[index]
        optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.02}])
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Rates(pl.Callback):
    """Reads the learning rates of both groups off the updates and gradients."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Copy the weights."""
        self.before = [p.detach().clone() for p in (pl_module.layers[0].weight, pl_module.layers[3].weight)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Divide the change by the gradient."""
        weights = (pl_module.layers[0].weight, pl_module.layers[3].weight)
        changes = [
            0.0 if one.grad is None else float((was - one.detach()).norm() / one.grad.norm())
            for was, one in zip(self.before, weights, strict=True)
        ]
        self.rates.append((changes[0], changes[1]))


def test_a_reduced_learning_rate_keeps_the_schedules_shape() -> None:
    """The rate is the schedule's times the factor in every group, is held, returns, and leaves the schedule alone."""
    seen = Rates()
    response = ReduceLearningRate(factor=0.25, hold=2, return_over=2)
    run, states = watched(Scheduled(), {2}, response, max_steps=10, behind=[seen])
    factors = [1, 1, 0, 0.25, 0.25, 0.5, 1, 1, 1, 1]
    for step, (factor, (one, other)) in enumerate(zip(factors, seen.rates, strict=True)):
        assert one == pytest.approx(0.1 * 0.9**step * factor, rel=1e-3, abs=1e-9), step
        assert other == pytest.approx(0.02 * 0.9**step * factor, rel=1e-3, abs=1e-9), step
    assert states.rates[1:] == pytest.approx([0.1 * 0.9 ** (step + 1) for step in range(10)])
    logged = [metrics["gradexplode/learning_rate_factor"] for metrics in run.logged]
    assert logged == pytest.approx([1, 1, 0.25, 0.25, 0.25, 0.5, 1, 1, 1, 1])


def test_a_learning_rate_is_cut_again_after_the_cooldown() -> None:
    """While it cools down updates take place; then it is cut again, and when its cuts are used up others act."""
    response = ReduceLearningRate(factor=0.5, cooldown=2, most=2)
    run, states = watched(Regression(momentum), range(1, 9), [response, "stop"], max_steps=9)
    assert [metrics["gradexplode/learning_rate_factor"] for metrics in run.logged] == [1, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [b for b in range(6) if same(states.after(b), states.after(b - 1))] == [1, 3, 5]
    assert len(run.logged) == 6


class Penalized(Regression):
    """Has the penalty's term in its loss.

    Args:
        l1: Weight of the absolute values.
        l2: Weight of the squares.
        build: Makes the optimizer.
    """

    def __init__(self, l1: float, l2: float, build: Any = None) -> None:
        super().__init__(build)
        self.l1, self.l2 = l1, l2

    def loss(self, batch: Any) -> Tensor:
        """Add the term by plain sums."""
        weights = [self.layers[0].weight, self.layers[3].weight]  # type: ignore[index]
        term: Any = sum(self.l1 * w.abs().sum() + self.l2 * w.square().sum() for w in weights)
        loss: Tensor = super().loss(batch) + term
        return loss


@pytest.mark.parametrize("mode", ["plain", "clipped", "accumulated", "scaled", "fused"])
def test_a_penalty_is_as_good_as_a_term_in_the_loss(mode: str) -> None:
    """The gradients that are measured and the weights at the end are those of a run with the term in its loss."""
    options: dict[str, Any] = {"max_steps": 6}
    if mode == "clipped":
        options["gradient_clip_val"] = 0.3
    if mode == "accumulated":
        options["accumulate_grad_batches"] = 3  # of eight batches: the last window of an epoch has two
    ends, norms = [], []
    for in_loss in (True, False):
        torch.manual_seed(4)
        if mode in ("scaled", "fused"):
            options["plugins"] = [scaler()]
        build = fused if mode == "fused" else momentum
        module = Penalized(0.01, 0.05, build) if in_loss else Regression(build)
        responses = "warn" if in_loss else WeightPenalty(0.01, 0.05, ["*.weight"])
        run, _ = watched(module, (), responses, scaled=mode == "fused", **options)
        ends.append([parameter.detach().clone() for parameter in module.parameters()])
        norms.append([metrics["gradexplode/grad_norm"] for metrics in run.logged])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*ends, strict=True))


def test_a_penalty_in_manual_optimization() -> None:
    """Each optimizer's parameters are penalized once per step of its own, and no others."""
    ends = []
    for penalty in (WeightPenalty(0.0, 0.05, ["layers.0.weight"]), "warn"):
        torch.manual_seed(4)
        module = Manual(2, toggled=True)
        watched(module, (), penalty, max_steps=2)
        ends.append({name: p.detach().clone() for name, p in module.named_parameters()})
    torch.manual_seed(4)
    start = Manual(2).get_parameter("layers.0.weight").detach()
    change = ends[0]["layers.0.weight"] - ends[1]["layers.0.weight"]
    torch.testing.assert_close(change, -0.01 * 0.1 * start, rtol=1e-4, atol=1e-6)
    assert torch.equal(ends[0]["layers.0.bias"], ends[1]["layers.0.bias"])


def test_a_penalty_that_an_explosion_brings() -> None:
    """It acts from the alarm on, until it has been calm for long enough."""
    penalty = WeightPenalty(0.0, 0.5, ["*"], when="after-explosion", hold=2)
    module = Regression(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    module.loss = lambda batch: 0 * Regression.loss(module, batch)  # type: ignore[method-assign]
    run, states = watched(module, {2}, penalty, max_steps=8)
    assert [metrics["gradexplode/weight_penalty"] for metrics in run.logged] == [0, 0, 1, 1, 1, 0, 0, 0]
    sizes = [float(sum(w.square().sum() for w in states.after(batch)[0].values())) for batch in range(-1, 8)]
    ratios = [after / before for before, after in pairwise(sizes)]
    assert ratios == pytest.approx([1, 1, 1, 0.81, 0.81, 1, 1, 1])


def test_the_bound_of_recurrent_matrices() -> None:
    """The gradient is that of the squared excess of each largest singular value; matrices below it are left alone."""

    class Gated(Regression):
        def __init__(self, in_loss: bool) -> None:
            super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
            self.cell = cell = nn.LSTM(6, 4, batch_first=True)
            self.run_cell: Callable[[Tensor], Tensor] = lambda inputs: cell(inputs)[0].square().mean()
            self.in_loss = in_loss
            with torch.no_grad():
                cell.get_parameter("weight_hh_l0")[:8] *= 4

        def loss(self, batch: Any) -> Tensor:
            loss = super().loss(batch) + self.run_cell(batch[0][None])
            if self.in_loss:
                for gate in self.get_parameter("cell.weight_hh_l0").view(4, 4, 4):
                    loss = loss + 0.3 * (torch.linalg.matrix_norm(gate, 2) - 1).clamp(min=0).square()
            return loss

    ends = []
    for in_loss in (True, False):
        torch.manual_seed(4)
        module = Gated(in_loss)
        matrix = module.get_parameter("cell.weight_hh_l0")
        start = matrix.detach().clone()
        watched(module, (), "warn" if in_loss else RecurrentBound(0.3), max_steps=4)
        ends.append(matrix.detach().clone())
    assert float(torch.linalg.matrix_norm(start[:4], 2)) > 1
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


class Buffered(Regression):
    """With batch normalisation, a schedule, and random numbers of three kinds in its loss."""

    def __init__(self) -> None:
        super().__init__(adamw)
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 1))

    def loss(self, batch: Any) -> Tensor:
        """Return a loss with random numbers of Python and numpy in it."""
        return super().loss(batch) * (1 + 0.1 * random.random() + 0.1 * np.random.rand())

    def configure_optimizers(self) -> Any:
        """Build an optimizer and a schedule."""
        optimizer = adamw(self.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_rollback_puts_back_all_of_it(on_disk: bool, late: bool, scaled: bool, tmp_path: Path) -> None:
    """Weights, buffers, optimizer, schedule, scale and random numbers are those of the last good state, bit by bit."""

    class Draws(pl.Callback):
        def __init__(self) -> None:
            self.states: list[Tensor] = []
            self.scales: list[float] = []
            self.others: list[Any] = []

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            self.states.append(torch.get_rng_state())
            self.others.append((random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]))
            self.scales.append(trainer.scaler.get_scale() if scaled else 1.0)

    draws = Draws()
    response = Rollback(every_n_steps=2, margin=3, folder=tmp_path if on_disk else None, learning_rate_factor=1.0)
    plugins: Any = [scaler()] if scaled else None
    if scaled:
        plugins[0].scaler.set_growth_interval(2)
    run, states = watched(Buffered(), {7}, response, late, max_steps=12, plugins=plugins, behind=[draws])
    # Taken after steps 1, 3 and 5; three healthy steps had followed that of step 3.
    assert same(states.after(7), states.after(3))
    assert states.rates[8] == states.rates[4]
    assert torch.equal(draws.states[7], draws.states[3])
    assert draws.scales[7] == draws.scales[3]
    assert draws.others[7] == draws.others[3] != draws.others[6]
    assert not same(states.after(8)[0], states.after(7)[0])
    assert run.logged[-1]["gradexplode/rollbacks"] == 1
    assert not [*tmp_path.iterdir()]


def test_a_rollback_never_takes_a_state_from_within_the_margin() -> None:
    """At an alarm soon after the start the state at the start comes back, and the detectors' memory with it."""
    alarm = AlarmAt({3})
    run, states = watched(Regression(adamw), (), Rollback(every_n_steps=1, margin=4), detectors=[alarm], max_steps=6)
    assert same(states.after(3), states.after(-1))
    state = run.monitor.state_dict()["optimizers"][0]["detectors"]["state"]["detectors"][0]["state"]
    assert state["_seen"] == [4, 5]


def test_a_rollback_goes_further_back_and_slower_each_time_and_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    """An explosion that comes back before a new state is good goes to an older one and a lower rate, then no more."""
    response = Rollback(every_n_steps=2, margin=2, keep=2, most=3)
    run, states = watched(Regression(adamw), {6, 7, 8, 9}, [response, "stop"], max_steps=12)
    assert same(states.after(6), states.after(3))
    assert same(states.after(7), states.after(1))
    assert same(states.after(8), states.after(1))
    factors = [metrics["gradexplode/rollback_rate_factor"] for metrics in run.logged]
    assert factors == [1, 1, 1, 1, 1, 1, 1, 0.5, 0.125, 0.015625]
    assert len(run.logged) == 10
    assert "giving up after 3 rollbacks" in caplog.text


def test_warnings_are_neither_good_nor_bad_for_a_state() -> None:
    """A state is not taken at a step with a warning, and such a step does not count to its margin."""
    detectors = [AlarmAt({9}), AlarmAt({2, 3, 4, 5}, severity=Severity.WARNING)]
    response = Rollback(every_n_steps=2, margin=4)
    _, states = watched(Regression(adamw), (), response, detectors=detectors, max_steps=11)
    assert same(states.after(9), states.after(-1))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_checkpoints_of_the_good_and_the_bad_state(tmp_path: Path) -> None:
    """Both are written, before the bad update, under the names of their steps, and can be gone on from."""
    response = SaveCheckpoint(tmp_path, every_n_steps=2, margin=2)
    monitor = GradientExplosionMonitor(detectors=[AlarmAt({6})], on_explosion=[response, "raise"], report=False)
    states = States()
    trainer = pl.Trainer(**{**QUIET, "max_steps": 9}, logger=False, callbacks=[monitor, states])
    with pytest.raises(ExplosionError):
        trainer.fit(Regression(adamw))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad-step=6.ckpt", "good-step=3.ckpt"]
    for name, step in (("bad-step=6", 5), ("good-step=3", 3)):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert same(dict(saved["state_dict"]), dict(states.after(step)[0]))
        assert same(saved["optimizer_states"][0]["state"], states.after(step)[1][0])
    again = GradientExplosionMonitor(on_explosion=["checkpoint", "rollback"], report=False)
    resumed = pl.Trainer(**{**QUIET, "max_steps": 9}, logger=False, callbacks=[again])
    resumed.fit(Regression(adamw), **resuming(str(tmp_path / "good-step=3.ckpt")))
    assert resumed.global_step == 9
    assert not again.failed


class GoesNaN(Regression):
    """Its loss is NaN from a step on, and its validation loss falls all the time."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss, and log what a careless checkpoint would go by."""
        self.log("falling", -float(self.trainer.global_step))
        return self.loss(batch) * (float("nan") if self.trainer.global_step >= 5 else 1.0)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_lost_run_overwrites_no_good_checkpoint(guarded: bool, tmp_path: Path) -> None:
    """The best and the last checkpoint are those from before; without the response they are lost."""
    monitor = GradientExplosionMonitor(on_explosion="checkpoint" if guarded else "warn", report=False)
    saves = ModelCheckpoint(tmp_path, "best", "falling", save_last=True, every_n_train_steps=1)
    options = {**QUIET, "enable_checkpointing": True, "max_steps": 12, "default_root_dir": tmp_path / "logs"}
    trainer = pl.Trainer(**options, logger=False, callbacks=[monitor, saves])
    trainer.fit(GoesNaN(adamw))
    assert trainer.global_step == 12
    for path in (saves.best_model_path, saves.last_model_path):
        weights = torch.load(path, weights_only=False)["state_dict"]
        assert all(bool(torch.isfinite(one).all()) for one in weights.values()) == guarded


def test_a_chain_escalates_to_its_end_and_calms_down() -> None:
    """Skipping, then the learning rate, then a rollback, then the end; and after calm, from the beginning."""
    chain = [SkipStep(2), ReduceLearningRate(cooldown=1, most=1), Rollback(2, 2, most=1), "stop"]
    run, _ = watched(Regression(adamw), range(6, 20), chain, max_steps=20)
    assert [metrics["gradexplode/skipped_steps"] for metrics in run.logged][5:] == [0, 1, 2, 3, 4, 5]
    assert run.logged[-1]["gradexplode/rollbacks"] == 1
    assert run.trainer.should_stop
    run, _ = watched(Regression(adamw), {2, 3, 30}, [SkipStep(1), "reduce-lr", "stop"], max_steps=32)
    assert [metrics["gradexplode/skipped_steps"] for metrics in run.logged][-1] == 3
    assert not run.trainer.should_stop


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@counts_steps_after_a_resume
def test_responses_go_on_after_a_checkpoint(tmp_path: Path) -> None:
    """A resumed run has the counts, the learning rate and the place in the chain of the one that wrote it."""
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    logged = []
    for resume in (None, str(tmp_path / "step=4.ckpt")):
        chain = [SkipStep(1), ReduceLearningRate(cooldown=1, most=1), "stop"]
        options: dict[str, Any] = {
            "max_steps": 9,
            "callbacks": [saves],
            "enable_checkpointing": True,
            "ckpt_path": resume,
        }
        logged.append(watched(Regression(adamw), {2, 3, 5}, chain, **options)[0].logged)
    assert [len(one) for one in logged] == [6, 2]
    for name, values in (("skipped_steps", [2, 3]), ("learning_rate_factor", [0.5, 0.5])):
        assert [metrics[f"gradexplode/{name}"] for metrics in logged[1]] == values
