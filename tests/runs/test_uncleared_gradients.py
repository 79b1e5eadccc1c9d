"""Gradients that are never cleared are named, in every kind of loop, and gradients that are cleared are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch


class Regression(LightningModule):
    """A regression, in automatic optimization."""

    def __init__(self, clears: bool, **zeroing: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.clears, self.zeroing = clears, zeroing

    def loss(self, batch: list[Tensor]) -> Tensor:
        return mse_loss(self.second(torch.tanh(self.first(batch[0]))), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if self.clears:
            optimizer.zero_grad(**self.zeroing)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class TwoOptimizers(Regression):
    """Manual optimization that clears the gradients of the second optimizer only."""

    def __init__(self, clears: bool, **zeroing: Any) -> None:
        super().__init__(clears, **zeroing)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        first, second = self.optimizers()  # type: ignore[attr-defined]
        if self.clears:
            first.zero_grad(**self.zeroing)
        second.zero_grad(**self.zeroing)
        loss = self.loss(batch)
        self.manual_backward(loss)
        first.step()
        second.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(one.parameters(), lr=1e-3) for one in (self.first, self.second)]


def _first_cause(module: Regression, **options: Any) -> str | None:
    seed_everything(0, verbose=False)
    monitor = GradientExplosionMonitor(report=False)
    trainer = Trainer(
        max_steps=60,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    inputs = torch.randn(64, 4)
    trainer.fit(module, DataLoader(TensorDataset(inputs, inputs[:, :1]), 8))
    diagnosis = monitor.diagnosis()
    return diagnosis.causes[0].kind if diagnosis else None


@pytest.mark.parametrize("kind", [Regression, TwoOptimizers])
def test_gradients_that_are_never_cleared_are_named(kind: type[Regression]) -> None:
    """A module whose `optimizer_zero_grad` does nothing, or that clears the gradients of another optimizer only."""
    assert _first_cause(kind(clears=False)) == "accumulated-gradients"


@pytest.mark.parametrize("kind", [Regression, TwoOptimizers])
@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_are_not_named(kind: type[Regression], to_none: bool) -> None:
    """It makes no difference whether they are set to None or to zero."""
    assert _first_cause(kind(clears=True, set_to_none=to_none)) is None


def test_micro_batches_of_the_trainer_are_no_uncleared_gradients() -> None:
    """The trainer itself adds up four backward passes and divides each loss."""
    assert _first_cause(Regression(clears=True), accumulate_grad_batches=4) is None


def _cause_in_a_plain_loop(optimizers: int, clears: bool, set_to_none: bool = True) -> str | None:
    """Return the first cause of a loop of plain PyTorch that updates two layers by one optimizer or by two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    groups = [model] if optimizers == 1 else [model[0], model[2]]
    steppers = [torch.optim.SGD(one.parameters(), lr=1e-3) for one in groups]
    with GradientWatch(model, steppers, report=False) as watch:
        for _ in range(60):
            for optimizer in steppers if clears else ():
                optimizer.zero_grad(set_to_none=set_to_none)
            inputs = torch.randn(8, 4)
            loss = mse_loss(model(inputs), inputs[:, :1])
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in steppers:
                optimizer.step()
        diagnosis = watch.diagnosis()
    return diagnosis.causes[0].kind if diagnosis else None


@pytest.mark.parametrize("optimizers", [1, 2])
def test_a_plain_loop_that_never_clears_gradients_is_named(optimizers: int) -> None:
    """Its losses are known after the backward pass only, which has added to the gradients by then."""
    assert _cause_in_a_plain_loop(optimizers, clears=False) == "accumulated-gradients"


@pytest.mark.parametrize("optimizers", [1, 2])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_plain_loop_that_clears_gradients_is_not_named(optimizers: int, to_none: bool) -> None:
    """Two optimizers that step after the same backward pass are no backward passes that add up."""
    assert _cause_in_a_plain_loop(optimizers, clears=True, set_to_none=to_none) is None


def _cause_of_closures(clearing: str, micro_batches: int, in_lightning: bool) -> str | None:
    """Return the first cause of steps of LBFGS, before which the loop clears the gradients.

    Args:
        clearing: Whether and how the closure clears them, too: ``"none"``, ``"zero"`` or ``"not"``.
        micro_batches: Number of backward passes of the closure.
        in_lightning: Whether to train in Lightning's manual optimization.
    """

    def closure_of(optimizer: Any, loss_of: Callable[[], Tensor], backward: Callable[[Tensor], Any]) -> Any:
        def closure() -> Tensor:
            if clearing != "not":
                optimizer.zero_grad(set_to_none=clearing == "none")
            for _ in range(micro_batches):
                loss = loss_of()
                backward(loss)
            return loss

        optimizer.zero_grad()
        return closure

    class Manual(Regression):
        def __init__(self) -> None:
            super().__init__(clears=True)
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.step(closure_of(optimizer, lambda: self.loss(batch), self.manual_backward))

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=5)

    if in_lightning:
        return _first_cause(Manual())
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(64, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=5)
    with GradientWatch(model, optimizer, report=False) as watch:

        def loss_of() -> Tensor:
            loss = mse_loss(model(inputs), inputs[:, :1]) / micro_batches
            watch.loss(loss)
            return loss

        for _ in range(20):
            optimizer.step(closure_of(optimizer, loss_of, torch.Tensor.backward))  # type: ignore[no-untyped-call]
        diagnosis = watch.diagnosis()
    return diagnosis.causes[0].kind if diagnosis else None


@pytest.mark.parametrize("in_lightning", [False, True])
def test_a_closure_that_never_clears_gradients_is_named(in_lightning: bool) -> None:
    """The loop clears them before each step, and each evaluation within the step adds to those before."""
    assert _cause_of_closures("not", 1, in_lightning) == "accumulated-gradients"


@pytest.mark.parametrize("in_lightning", [False, True])
@pytest.mark.parametrize(("clearing", "micro_batches"), [("none", 1), ("zero", 4)])
def test_a_closure_that_clears_gradients_is_not_named(clearing: str, micro_batches: int, in_lightning: bool) -> None:
    """Neither is one that accumulates the gradients of several micro-batches in each evaluation."""
    assert _cause_of_closures(clearing, micro_batches, in_lightning) is None


@pytest.mark.parametrize("copies", [False, True])
def test_a_closure_that_assigns_gradients_adds_nothing_up(copies: bool) -> None:
    """`torch.autograd.grad` adds to no gradient, so that there is none to clear."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(64, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=5)
    with GradientWatch(model, optimizer, report=False) as watch:

        def closure() -> Tensor:
            loss = mse_loss(model(inputs), inputs[:, :1])
            watch.loss(loss)
            weights = list(model.parameters())
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                if copies and weight.grad is not None:
                    weight.grad.copy_(gradient)
                else:
                    weight.grad = gradient
            return loss

        for _ in range(20):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        assert watch.diagnosis() is None


def test_a_closure_may_be_called_with_arguments() -> None:
    """Some optimizers evaluate the loss alone, which adds to no gradient either."""

    class Searching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                loss = closure()
            super().step()
            for _ in range(4):
                closure(backward=False)
            return loss

    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 1), torch.randn(64, 4)
    optimizer = Searching(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:

        def closure(backward: bool = True) -> Tensor:
            loss = mse_loss(model(inputs), inputs[:, :1])
            if backward:
                optimizer.zero_grad()
                watch.loss(loss)
                loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(20):
            optimizer.step(closure)
        assert watch.last is not None
        assert watch.diagnosis() is None


@pytest.mark.parametrize("clears", [False, True])
def test_a_closure_of_one_of_two_optimizers_is_named_if_it_never_clears(clears: bool) -> None:
    """The other one clears its gradients, and steps without a closure."""
    torch.manual_seed(0)
    inputs, models = torch.randn(64, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
    search = torch.optim.LBFGS(models[0].parameters(), lr=0.01, max_iter=5)
    descent = torch.optim.SGD(models[1].parameters(), lr=0.01)
    with GradientWatch(models, [search, descent], report=False) as watch:

        def closure() -> Tensor:
            if clears:
                search.zero_grad()
            loss = mse_loss(models[0](inputs), inputs[:, :1])
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(20):
            search.zero_grad()
            search.step(closure)  # type: ignore[no-untyped-call]
            descent.zero_grad()
            loss = mse_loss(models[1](inputs), inputs[:, :1])
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            descent.step()
        diagnosis = watch.diagnosis()
    assert (diagnosis.causes[0].kind if diagnosis else None) == (None if clears else "accumulated-gradients")
