"""Optimizers of any kind are measured, and a skipped update does not happen, however they are stepped."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from lightning_gradexplode import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    ConstantClip,
    GradientExplosionMonitor,
    PercentileClip,
    StepRecord,
    ZScoreClip,
)
from lightning_gradexplode.hosts.lightning_namespaces import Callback
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.models import Batch, Regression
from tests.runs.probe import norm


class Wrapper(torch.optim.Optimizer):
    """Wraps another optimizer under the name ``optimizer``."""

    def __init__(self, parameters: Any) -> None:
        self.optimizer = torch.optim.SGD(parameters, lr=0.01)
        super().__init__(self.optimizer.param_groups, self.optimizer.defaults)
        self.param_groups = self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        """Step the wrapped optimizer."""
        return self.optimizer.step(closure)


class Bare:
    """An object with Lightning's ``Optimizable`` protocol, and nothing else."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": 0.01}]
        self.defaults: dict[str, Any] = {"lr": 0.01}
        self.state: Any = defaultdict(dict)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self, closure: Any = None) -> Any:
        """Descend along the gradients."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        return loss


class Uninitialized(Bare, torch.optim.Optimizer):
    """A subclass of torch's class that does not call its constructor."""


class TwoClosures(torch.optim.SGD):
    """Sharpness-aware minimization: updates by the gradients at a neighboring point."""

    handed: float = math.nan

    def step(self, closure: Any = None) -> Any:
        """Evaluate twice, and update from the first point."""
        with torch.enable_grad():
            loss = closure()
        parameters = [one for one in self.param_groups[0]["params"] if one.grad is not None]
        moves = [0.1 * one.grad.sign() for one in parameters]
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter += move
        with torch.enable_grad():
            closure()
        self.handed = norm(*[parameter.grad for parameter in parameters])
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter -= move
        super().step()
        return loss


class NanAtThree(Regression):
    """Its loss is NaN at batch 3."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        return self.loss(batch) * (math.nan if batch_idx == 3 else 1.0)


class Raw(NanAtThree):
    """Steps its optimizer behind Lightning's back."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step the raw optimizer."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class WithoutOptimizers(Regression):
    """Manual optimization without an optimizer."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: [])
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute gradients only."""
        loss = self.loss(batch)
        self.manual_backward(loss)
        return loss


class Records(Callback):
    """Keeps the monitor's records."""

    def __init__(self, monitor: GradientExplosionMonitor) -> None:
        super().__init__()
        self.monitor = monitor
        self.records: list[StepRecord | None] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep the record of the batch."""
        self.records.append(self.monitor.last)


def fitted(
    module: pl.LightningModule,
    *callbacks: Callback,
    plugins: Sequence[Any] = (),
    **arguments: Any,
) -> tuple[GradientExplosionMonitor, list[StepRecord | None]]:
    """Train for one epoch with every step logged."""
    monitor = GradientExplosionMonitor(report=False, diagnose=False, **arguments)
    records = Records(monitor)
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        log_every_n_steps=1,
        logger=RecordingLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, *callbacks, records],
        plugins=[*plugins],
    ).fit(module)
    return monitor, records.records


@pytest.mark.parametrize(
    "module",
    [lambda: NanAtThree(Wrapper), lambda: NanAtThree(Bare), lambda: NanAtThree(Uninitialized), Raw],
    ids=["wrapper", "protocol", "no constructor", "raw step"],
)
def test_every_optimizer_is_measured_and_held_back(module: Any) -> None:
    """All eight steps are measured, and only that of the NaN is skipped; the weights stay finite."""
    module = module()
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record is not None and record.step for record in records] == list(range(8))
    assert [record is not None and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert all(record is not None and record.update_ratio for n, record in enumerate(records) if n != 3)


def test_manual_optimization_without_an_optimizer() -> None:
    """There is nothing to measure, and nothing fails."""
    monitor, _ = fitted(WithoutOptimizers())
    assert not monitor.failed
    assert monitor.last is None


def test_the_gradients_of_the_last_closure_are_logged() -> None:
    """Sharpness-aware minimization updates by the gradients of its second evaluation."""
    module = Regression(TwoClosures)
    monitor, _ = fitted(module)
    optimizer: Any = module.optimizers(use_pl_optimizer=False)
    assert monitor.last is not None
    assert monitor.last.grad_norm == pytest.approx(optimizer.handed, rel=1e-6)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Build gradient descent."""
    return torch.optim.SGD(parameters, lr=0.01)


class ByHand(NanAtThree):
    """Manual optimization.

    Args:
        step: Steps, given the module, its Lightning optimizer and a closure that computes loss and gradients.
        build: Makes the optimizer.
    """

    def __init__(self, step: Any, build: Any = sgd) -> None:
        super().__init__(build)
        self.automatic_optimization = False
        self.step = step
        self.handed: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step."""
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = super(ByHand, self).training_step(batch, batch_idx)
            self.manual_backward(loss)
            return loss

        return self.step(self, optimizer, closure)

    def gradient_norm(self) -> float:
        """Return the norm of the gradients as they are now."""
        return norm(*[one.grad for one in self.parameters() if one.grad is not None])


def raw(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step the torch optimizer inside Lightning's."""
    loss: Tensor = closure()
    module.handed.append(module.gradient_norm())
    optimizer.optimizer.step()
    return loss


def innermost(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step what a wrapper wraps."""
    loss: Tensor = closure()
    optimizer.optimizer.optimizer.step()
    return loss


def clipped(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Clip by Lightning's own method before the step."""
    loss: Tensor = closure()
    module.handed.append(module.gradient_norm())
    module.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
    optimizer.step()
    return loss


@torch.no_grad()
def shift(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> None:
    """Add to parameters."""
    for parameter, move in zip(parameters, moves, strict=True):
        parameter += move


def sharpness_aware(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step by the gradients at a neighboring point, with the closure evaluated twice in one step."""

    def both() -> Tensor:
        loss: Tensor = closure()
        parameters = [one for one in module.parameters() if one.grad is not None]
        moves = [0.1 * one.grad.sign() for one in parameters if one.grad is not None]
        shift(parameters, moves)
        closure()
        shift(parameters, [-move for move in moves])
        module.handed.append(module.gradient_norm())
        return loss

    optimizer.step(both)
    return both()


@pytest.mark.parametrize("step", [raw, clipped, sharpness_aware])
def test_the_norm_is_that_before_clipping_of_the_update_itself(step: Any) -> None:
    """It equals what the module measures itself, whatever lies between the backward pass and the step."""
    module = ByHand(step)
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    handed = module.handed[:: 2 if step is sharpness_aware else 1]
    assert [record and record.grad_norm for record in records] == pytest.approx(handed, rel=1e-6, nan_ok=True)
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    if step is clipped:
        assert records[0] is not None
        assert records[0].grad_norm_clipped == pytest.approx(0.1, rel=1e-4)


class Unknown(ByHand):
    """Steps an optimizer that Lightning has never seen."""

    def __init__(self) -> None:
        super().__init__(lambda module, optimizer, closure: None, lambda parameters: [])
        self.own = torch.optim.Adam(self.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step it."""
        self.own.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        self.own.step()
        return loss


class UnknownData(Unknown):
    """Writes to its weights through ``.data``, which no version counter shows, in an optimizer of its own."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Write."""
        self.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.01)
        return loss


class BareData(Bare):
    """Writes through ``.data``."""

    def step(self, closure: Any = None) -> Any:
        """Descend."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.01)


class UninitializedData(BareData, torch.optim.Optimizer):
    """A subclass of torch's class that does not call its constructor."""


@pytest.mark.parametrize("build", [Bare, BareData, Uninitialized, UninitializedData])
def test_raw_steps_of_optimizers_without_hooks_are_measured_and_held_back(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What `optimizers(use_pl_optimizer=False)` returns is followed too, and is afterwards as it was."""
    module = ByHand(raw, build)
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert [record and record.grad_norm for record in records] == pytest.approx(module.handed, rel=1e-6, nan_ok=True)
    assert all(bool(torch.isfinite(one).all()) for one in module.parameters())
    assert "step" not in module.trainer.optimizers[0].__dict__
    assert "no step was seen" not in caplog.text


def test_a_scheduler_made_during_a_fit_wraps_the_step_of_an_optimizer_without_hooks() -> None:
    """Its own mark on the step stays after the fit."""

    def swap(module: Any) -> None:
        module.scheduler = torch.optim.lr_scheduler.StepLR(module.trainer.optimizers[0], 2)

    module = Changing(swap)
    module.build = Uninitialized
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    module.trainer.optimizers[0].step()
    assert monitor.last is not None
    assert monitor.last.step == 7


class StepsInOptimizerStep(NanAtThree):
    """Updates its weights in its own ``optimizer_step``, in automatic optimization."""

    def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Descend."""
        optimizer_closure()
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad, alpha=0.01)


@pytest.mark.parametrize(
    "module",
    [Unknown, UnknownData, lambda: ByHand(innermost, Wrapper), StepsInOptimizerStep],
    ids=["unknown optimizer", "through data", "inside a wrapper", "in optimizer_step"],
)
def test_steps_that_cannot_be_observed_are_reported(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One line says that they are not measured, no wrong number is logged, and nothing fails."""
    monitor, records = fitted(module())
    assert not monitor.failed
    assert records == [None] * 8
    told = [record.getMessage() for record in caplog.records if "no step was seen" in record.getMessage()]
    assert len(told) == 1
    assert not any(record.exc_info for record in caplog.records)


def test_accumulation_by_hand_is_not_mistaken_for_steps(caplog: pytest.LogCaptureFixture) -> None:
    """Batches without a step, which leave the weights as they are, are nothing to tell of."""
    monitor, _ = fitted(ByHand(lambda module, optimizer, closure: closure()))
    assert monitor.last is None
    assert "no step was seen" not in caplog.text


class Changing(NanAtThree):
    """Changes its optimizer before batch 2, or in another hook.

    Args:
        change: Called with the module.
        when: Where: ``"batch"``, ``"step"`` or ``"start"``.
    """

    def __init__(self, change: Any, when: str = "batch") -> None:
        super().__init__(sgd)
        self.change = change
        self.when = when

    def on_train_start(self) -> None:
        """Change before the first batch."""
        if self.when == "start":
            self.change(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Change before a batch."""
        if self.when == "batch" and batch_idx == 2:
            self.change(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Change within a batch."""
        if self.when == "step" and batch_idx == 2:
            self.change(self)
        return super().training_step(batch, batch_idx)


def replace_list(module: pl.LightningModule) -> None:
    """Assign another optimizer to the trainer."""
    module.trainer.optimizers = [torch.optim.Adam(module.parameters(), lr=0.01)]


def set_up_again(module: pl.LightningModule) -> None:
    """Set up the optimizers anew."""
    module.trainer.strategy.setup_optimizers(module.trainer)


def replace_parameter(module: Any) -> None:
    """Replace a parameter by a new one, in the module and in its group, whose length stays."""
    old = module.layers[0].weight
    module.layers[0].weight = torch.nn.Parameter(old.detach().clone())
    group = module.trainer.optimizers[0].param_groups[0]
    group["params"] = [module.layers[0].weight if one is old else one for one in group["params"]]


def add_group(module: Any) -> None:
    """Add a layer with a group of its own."""
    module.layers[3] = torch.nn.Sequential(module.layers[3], torch.nn.Linear(1, 1))
    module.trainer.optimizers[0].add_param_group({"params": list(module.layers[3][1].parameters()), "lr": 0.02})


def remove_group(module: Any) -> None:
    """Remove all groups but one of two parameters."""
    group = module.trainer.optimizers[0].param_groups[0]
    group["params"] = group["params"][:2]


@pytest.mark.parametrize("response", ["warn", "skip"])
@pytest.mark.parametrize(
    ("change", "when"),
    [
        (replace_list, "start"),
        (replace_list, "batch"),
        (replace_list, "step"),
        (set_up_again, "batch"),
        (replace_parameter, "batch"),
        (add_group, "batch"),
        (remove_group, "batch"),
    ],
)
def test_optimizers_that_change_are_followed(change: Any, when: str, response: str) -> None:
    """Every batch has its record, of the parameters that the optimizer has by then; only the NaN is skipped."""
    module = Changing(change, when)
    norms: list[float] = []

    class Truth(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            handed = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
            norms.append(norm(*handed))

    monitor, records = fitted(module, Truth(), on_explosion=response)
    assert not monitor.failed
    assert [record and record.grad_norm for record in records] == pytest.approx(norms, rel=1e-6, nan_ok=True)
    if response == "skip":
        assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]


class Numbers(NanAtThree):
    """Has parameters of integers and without elements, all of them in the optimizer."""

    def __init__(self, build: Any = sgd) -> None:
        super().__init__(build)
        self.counts = torch.nn.Parameter(torch.arange(3), requires_grad=False)
        self.nothing = torch.nn.Parameter(torch.zeros(0, 4))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return super().loss(batch) + self.nothing.sum()

    def configure_optimizers(self) -> Any:
        """Build the optimizer of all parameters."""
        return self.build(list(self.parameters()))


class Sparse(NanAtThree):
    """Has an embedding with sparse gradients, some rows of it twice in a batch.

    Args:
        manual: Whether it steps by hand.
    """

    def __init__(self, manual: bool = False) -> None:
        super().__init__(sgd)
        self.table = torch.nn.Embedding(10, 6, sparse=True)
        self.automatic_optimization = not manual

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss."""
        rows = self.table(torch.tensor([1, 3, 3, 7]))
        return torch.nn.functional.mse_loss(self.layers(batch[0] + rows), batch[1])

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step by hand where that is wanted."""
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


class Complex(NanAtThree):
    """Has complex parameters, which torch's own clipping by value refuses."""

    def __init__(self) -> None:
        super().__init__(sgd)
        self.waves = torch.nn.Parameter(torch.ones(3, dtype=torch.cfloat))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return super().loss(batch) + self.waves.abs().square().sum()


POLICIES: dict[str, Any] = {
    "none": lambda: None,
    "constant": lambda: 0.5,
    "value": lambda: ConstantClip(0.01, "value"),
    "auto": lambda: "auto",
    "units": lambda: AdaptiveGradientClip(0.02),
    "tensors": lambda: AdaptiveTensorClip(warmup=1, factor=0.5),
    "percentile": PercentileClip,
    "z-score": ZScoreClip,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "module",
    [Numbers, Sparse, lambda: Sparse(manual=True), Complex],
    ids=["integers", "sparse", "sparse by hand", "complex"],
)
def test_odd_parameters_under_every_policy(module: Any, policy: str) -> None:
    """Nothing fails in mid-run, and a step is clipped where the policy says so; the NaN is skipped."""
    monitor, records = fitted(module(), clip=POLICIES[policy](), on_explosion="skip")
    assert not monitor.failed
    assert [record and record.update_taken for record in records] == [n != 3 for n in range(8)]
    if policy in ("constant", "value", "units", "tensors"):
        assert any(
            one.grad_norm_clipped < 0.95 * one.grad_norm
            for one in records
            if one is not None and one.grad_norm and one.grad_norm_clipped
        )


@pytest.mark.parametrize("build", [Bare, Uninitialized, sgd])
def test_a_step_that_a_gradient_scaler_leaves_out_is_not_taken(build: Any) -> None:
    """Also where the optimizer has no hooks by which its step could be seen."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monitor, records = fitted(NanAtThree(build), plugins=[plugin])
    assert not monitor.failed
    assert [record is not None and record.update_taken for record in records] == [n != 3 for n in range(8)]
