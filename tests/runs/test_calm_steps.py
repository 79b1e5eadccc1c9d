"""Calm steps are recorded later than others, with the same records, findings and metrics, whatever happens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW

from lightning_gradexplode import (
    AdaptiveGradientClip,
    ClipPolicy,
    ConstantClip,
    GradientExplosionMonitor,
    GradientWatch,
    PercentileClip,
    Response,
    StepRecord,
    ZScoreClip,
)
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.engine.calm_step import Preliminary
from lightning_gradexplode.engine.calm_steps import CalmSteps
from lightning_gradexplode.report import Recorder
from tests.runs.models import Batch, Regression
from tests.runs.optimizers import SharpnessAware
from tests.runs.probe import QUIET

pytestmark = pytest.mark.slow

STEPS = 110
"""Number of steps; from the 65th on most are calm."""

Run = Callable[["Seen"], None]


class Seen(pl.Callback):
    """Collects the records and the published metrics of a run."""

    def __init__(self) -> None:
        self.records: list[str] = []
        self.metrics: list[str] = []
        self.calm = 0

    def add(self, record: StepRecord) -> None:
        """Add a record."""
        self.records.append(repr({one.name: _plain(getattr(record, one.name)) for one in fields(record)}))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Add the metrics that were published at a step."""
        metrics = {name: float(one) for name, one in trainer.callback_metrics.items() if name.startswith("gradexplode")}
        self.metrics.append(repr(sorted(metrics.items())))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return {name: _plain(one) for name, one in value.items()} if hasattr(value, "items") else value


def seen(monkeypatch: pytest.MonkeyPatch, run: Run, are_held: bool) -> Seen:
    """Return what is seen of a run, whose calm steps are held or not."""
    result, add, screen, begin = Seen(), Recorder.add, DetectorSet.screen, CalmSteps.begin

    def added(recorder: Recorder, record: StepRecord) -> None:
        result.add(record)
        add(recorder, record)

    def screened(detectors: DetectorSet, loss: float | None, grad_norm: float | None) -> bool:
        return screen(detectors, loss, grad_norm) and are_held

    def begun(steps: CalmSteps, *arguments: Any) -> Preliminary | None:
        preliminary = begin(steps, *arguments)
        result.calm += preliminary is None
        return preliminary

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "add", added)
        patch.setattr(DetectorSet, "screen", screened)
        patch.setattr(CalmSteps, "begin", begun)
        torch.manual_seed(0)
        run(result)
    return result


class Noise(Regression):
    """A regression that has converged but for the noise in its targets.

    Args:
        build: Makes the optimizer.
        change: Called with the module and the number of the step, before each.
        normalize: Whether the inputs are normalized by running averages.
    """

    def __init__(
        self,
        build: Any = None,
        change: Callable[[Any, int], None] = lambda module, step: None,
        normalize: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(build or (lambda parameters: SGD(parameters, lr=1e-3)), batches=STEPS, **arguments)
        self.change, self.steps, self.factor = change, 0, 1.0
        self.normalization = nn.BatchNorm1d(6, affine=False) if normalize else None

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return a loss that is much the same at each step."""
        self.change(self, self.steps)
        self.steps += 1
        noise = torch.randn(4, 1, generator=torch.Generator().manual_seed(batch_idx))
        inputs = batch[0] if self.normalization is None else self.normalization(batch[0])
        return self.factor * nn.functional.mse_loss(self.layers(inputs), noise) + 1.0


class Scheduled(Noise):
    """Has a rate that changes at each step."""

    def configure_optimizers(self) -> Any:
        """Return the optimizer with a scheduler."""
        optimizer = SGD(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TwiceAtTimes(SGD):
    """Computes the gradients a second time in every seventh step."""

    calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step."""
        self.calls += 1
        with torch.enable_grad():
            loss = closure()
            if self.calls % 7 == 0:
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.grad *= 0.5
                loss = closure()
        super().step()
        return loss


class Sparse(Noise):
    """Has an embedding with sparse gradients, which the trainer's own clipping refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6, sparse=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss of the sum of inputs and embeddings."""
        embedded = self.embedding(torch.tensor([batch_idx % 50, batch_idx * 7 % 50])).mean(0)
        return super().training_step((batch[0] + embedded, batch[1]), batch_idx)


class WithHistory(Noise):
    """Has gradients that could be differentiated again."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Keep the graph."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the memory that this keeps
            loss.backward(create_graph=True)  # type: ignore[no-untyped-call]


class Spoiling(Noise):
    """Makes gradients NaN after they were measured."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Change the gradients at times."""
        if self.steps in (90, 101):
            gradient = next(self.layers.parameters()).grad
            assert gradient is not None
            gradient.fill_(torch.nan)


class ClippingLater(Noise):
    """Clips gradients after they were measured."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradients at times."""
        if self.steps % 5 == 4:
            nn.utils.clip_grad_norm_(self.parameters(), 0.1)


class LeftOut(Noise):
    """Leaves the optimizer's step out at times."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, or only compute the gradients."""
        if batch_idx % 5 == 4:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


class Reading(pl.Callback):
    """Reads the results in the middle of each step."""

    def __init__(self, monitor: GradientExplosionMonitor) -> None:
        self.monitor = monitor

    def _read(self) -> None:
        assert self.monitor.last is None or self.monitor.last.step >= 0
        assert self.monitor.findings == []

    def on_train_batch_start(self, *args: Any) -> None:
        """Read before the step."""
        self._read()

    def on_before_zero_grad(self, *args: Any) -> None:
        """Read within the step."""
        self._read()

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Read before the update."""
        self._read()


class Unused(Noise):
    """Has a parameter that the loss does not depend on, and that is changed from a step on."""

    def __init__(self, factor: float) -> None:
        super().__init__(change=self._change)
        self.unused, self.growth = nn.Parameter(torch.ones(3)), factor

    def _change(self, module: Any, step: int) -> None:
        if step >= 80:
            with torch.no_grad():
                self.unused.mul_(self.growth)


def _freeze(module: Any, step: int) -> None:
    if step == 100:
        module.layers[0].requires_grad_(False)


def _add_group(module: Any, step: int) -> None:
    if step == 90:
        module.extra = nn.Parameter(torch.ones(2))
        module.optimizers().add_param_group({"params": [module.extra], "lr": 0.1})


def _spoil(module: Any, step: int) -> None:
    if step == 97:
        module.normalization.running_mean.fill_(torch.nan)


def _die(module: Any, step: int) -> None:
    if step == 80:
        module.factor = 0.0


def _explode(module: Any, step: int) -> None:
    if step in (85, 86, 99):
        module.factor = 1e6 if step != 86 else 1.0


def _raise(module: Any, step: int) -> None:
    if step == 99:
        raise ZeroDivisionError


def fit(module: Any = Noise, reads: bool = False, clip: Any = None, on_explosion: Any = "warn", **trainer: Any) -> Run:
    """Return a run of Lightning's Trainer; an exception ends it."""

    def run(result: Seen) -> None:
        monitor = GradientExplosionMonitor(report=False, clip=clip, on_explosion=on_explosion)
        callbacks = [*([Reading(monitor)] if reads else []), monitor, result]
        settings = {**QUIET, "max_steps": -1, "max_epochs": 1, "logger": False, **trainer}
        network = module()
        try:
            pl.Trainer(**settings, callbacks=callbacks).fit(network)
        except ZeroDivisionError:
            result.metrics.append("ended by an exception")
        assert monitor.last is not None
        result.add(monitor.last)
        result.records.append(repr((monitor.failed, monitor.findings)))
        result.records.append(repr(monitor.state_dict()))
        result.records.append(repr([one.tolist() for one in network.parameters()]))

    return run


def watch(marks: bool, optimizers: int = 1, clip: Any = None, on_explosion: Any = "warn") -> Run:
    """Return a plain loop."""

    def run(result: Seen) -> None:
        network = nn.Linear(6, 1)
        every = (
            [SGD([one], lr=1e-3) for one in network.parameters()]
            if optimizers > 1
            else [SGD(network.parameters(), lr=1e-3)]
        )
        with GradientWatch(network, every, report=False, clip=clip, on_explosion=on_explosion) as one:
            for step in range(STEPS):
                batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
                if marks:
                    one.batch(batch)
                for optimizer in every:
                    optimizer.zero_grad()
                loss: Tensor = network(batch).square().mean() + 1.0
                one.loss(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                if step % 9 == 5:
                    nn.utils.clip_grad_norm_(network.parameters(), 0.1)
                for optimizer in every:
                    optimizer.step()
        assert one.last is not None
        result.add(one.last)
        result.records.append(repr(one.state_dict()))
        result.records.append(repr([one.tolist() for one in network.parameters()]))

    return run


class Recorded(Response):
    """A response that keeps what it is given at the end of each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def started(self, run: Any) -> None:
        """Begin a fit."""
        self.seen.clear()

    def respond(self, findings: Any, run: Any) -> bool:
        """Do nothing."""
        return False

    def batch_ended(self, run: Any) -> None:
        """Keep step, severity and loss."""
        self.seen.append((run.step, run.severity, run.record.loss, run.record.update_taken))

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept."""
        return {"seen": [list(one) for one in self.seen[-50:]]}


class OfTheNorm(ClipPolicy):
    """A policy of a user's own."""

    def threshold(self, record: StepRecord) -> float | None:
        """Return a part of the norm."""
        return None if record.grad_norm is None else 0.9 * record.grad_norm


RUNS: dict[str, tuple[Run, bool]] = {
    "defaults": (fit(), True),
    "clipped by norm": (fit(gradient_clip_val=0.5), True),
    "clipped by value": (fit(gradient_clip_val=0.1, gradient_clip_algorithm="value"), False),
    "accumulated": (fit(accumulate_grad_batches=2, max_epochs=2), True),
    "two epochs": (fit(limit_train_batches=60, max_epochs=2), True),
    "scheduled": (fit(Scheduled), True),
    "line search": (fit(lambda: Noise(lambda parameters: LBFGS(parameters, lr=1e-3, max_iter=2))), True),
    "sharpness-aware": (fit(lambda: Noise(SharpnessAware)), False),
    "evaluated again at times": (fit(lambda: Noise(lambda parameters: TwiceAtTimes(parameters, lr=1e-3))), True),
    "left out at times": (fit(LeftOut), True),
    "frozen in between": (fit(lambda: Noise(change=_freeze)), True),
    "a further group": (fit(lambda: Noise(change=_add_group)), True),
    "ended by an exception": (fit(lambda: Noise(change=_raise)), True),
    "read in each hook": (fit(reads=True), True),
    "stopped in mid-epoch": (fit(max_steps=97), True),
    "plain loop": (watch(marks=False), True),
    "plain loop with batches": (watch(marks=True), True),
    "plain loop with two optimizers": (watch(marks=False, optimizers=2), False),
    "a limit that does not bind": (fit(clip=1e3), True),
    "a limit that binds at times": (fit(clip=1.5), True),
    "a limit that binds always": (fit(clip=0.1), True),
    "a limit of each value": (fit(clip=ConstantClip(0.1, "value")), False),
    "an adaptive limit": (fit(clip="auto"), True),
    "an adaptive limit of an adaptive optimizer": (fit(lambda: Noise(AdamW), clip="auto"), True),
    "a percentile": (fit(clip=PercentileClip(50.0)), True),
    "a score": (fit(clip=ZScoreClip(1.0)), True),
    "each tensor": (fit(clip=AdaptiveGradientClip()), False),
    "a policy of a user's own": (fit(clip=OfTheNorm()), False),
    "a limit and accumulation": (fit(accumulate_grad_batches=2, max_epochs=2, clip=1.0), True),
    "a limit and two epochs": (fit(limit_train_batches=60, max_epochs=2, clip=1.5), True),
    "a limit and a line search": (
        fit(lambda: Noise(lambda parameters: LBFGS(parameters, lr=1e-3, max_iter=2)), clip=1.0),
        True,
    ),
    "a limit, evaluated again at times": (
        fit(lambda: Noise(lambda parameters: TwiceAtTimes(parameters, lr=1e-3)), clip=1.0),
        True,
    ),
    "an adaptive limit, evaluated again at times": (
        fit(lambda: Noise(lambda parameters: TwiceAtTimes(parameters, lr=1e-3)), clip="auto"),
        True,
    ),
    "a limit, left out at times": (fit(LeftOut, clip=1.0), True),
    "a limit of sparse gradients": (fit(Sparse, clip=0.5), True),
    "a limit of gradients with a history": (fit(WithHistory, clip=0.5, on_explosion="skip"), True),
    "a limit, frozen in between": (fit(lambda: Noise(change=_freeze), clip=1.0), True),
    "a limit, ended by an exception": (fit(lambda: Noise(change=_raise), clip="auto"), True),
    "plain loop with a limit": (watch(marks=False, clip=1.0), True),
    "plain loop with an adaptive limit": (watch(marks=True, clip="auto"), True),
    "skip": (fit(on_explosion="skip"), True),
    "skip, clipped by norm": (fit(on_explosion="skip", gradient_clip_val=0.5), True),
    "skip with an adaptive limit": (fit(on_explosion="skip", clip="auto"), True),
    "all responses": (fit(on_explosion=["skip", "reduce-lr", "rollback", "stop"]), True),
    "a response of a user's own": (fit(on_explosion=Recorded()), True),
    "skip, averages": (fit(lambda: Noise(change=_spoil, normalize=True), on_explosion="skip"), True),
    "skip, left out at times": (fit(LeftOut, on_explosion="skip"), True),
    "skip, dead from a step on": (fit(lambda: Noise(change=_die), on_explosion="skip"), True),
    "skip, explodes": (fit(lambda: Noise(change=_explode), on_explosion="skip"), True),
    "skip, evaluated again at times": (
        fit(lambda: Noise(lambda parameters: TwiceAtTimes(parameters, lr=1e-3)), on_explosion="skip", clip=1.0),
        True,
    ),
    "skip, gradients that become NaN": (fit(Spoiling, on_explosion="skip"), True),
    "skip, gradients that are clipped later": (fit(ClippingLater, on_explosion="skip"), True),
    "unused weights that grow": (fit(lambda: Unused(1.5)), True),
    "unused weights that grow slowly": (fit(lambda: Unused(1.01)), True),
    "unused weights that become NaN": (fit(lambda: Unused(torch.nan)), True),
    "skip, unused weights that grow": (fit(lambda: Unused(1.5), on_explosion="skip", clip="auto"), True),
    "all responses, unused weights that become NaN": (
        fit(lambda: Unused(torch.nan), on_explosion=["skip", "reduce-lr", "rollback"], clip=1.0),
        True,
    ),
    "plain loop with skip and a limit": (watch(marks=False, on_explosion="skip", clip=1.0), True),
    "plain loop with skip": (watch(marks=False, on_explosion="skip"), True),
    "plain loop with a percentile": (watch(marks=False, clip=PercentileClip()), True),
}


@pytest.mark.parametrize("kind", RUNS)
def test_records_of_calm_steps_are_those_of_others(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each record, the findings, the state and the metrics of each step are those of a run that holds nothing."""
    run, has_calm_steps = RUNS[kind]
    held, expected = seen(monkeypatch, run, True), seen(monkeypatch, run, False)
    assert held.records == expected.records
    assert held.metrics == expected.metrics
    assert (held.calm > 0, expected.calm) == (has_calm_steps, 0)
