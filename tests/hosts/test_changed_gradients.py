"""Diagnoses of plain loops whose steps do not follow the gradients of the loss, and in which no step is replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.records import Diagnosis
from tests.hosts.loops import batches, loss_of, network

Backward = Callable[[GradientWatch, nn.Module, Tensor], None]


def plain(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """Compute the gradients of the loss."""
    loss = loss_of(model, batch)
    watch.loss(loss)
    loss.backward()  # type: ignore[no-untyped-call]


def factor_of_loss(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """Multiply the loss for its backward pass."""
    loss = loss_of(model, batch)
    watch.loss(loss)
    (300.0 * loss).backward()  # type: ignore[no-untyped-call]


def factor_of_gradients(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """Multiply the gradients after the backward pass."""
    plain(watch, model, batch)
    for weight in model.parameters():
        assert weight.grad is not None
        weight.grad.mul_(300.0)


def upward(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """Multiply the loss by -1 for its backward pass."""
    loss = loss_of(model, batch)
    watch.loss(loss)
    (-loss).backward()  # type: ignore[no-untyped-call]


def hooked(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """Reverse all gradients by hooks."""
    hooks = [one.register_hook(torch.neg) for one in model.parameters()]  # type: ignore[no-untyped-call]
    plain(watch, model, batch)
    for one in hooks:
        one.remove()


def noise(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """Add noise to the gradients after the backward pass."""
    plain(watch, model, batch)
    for weight in model.parameters():
        assert weight.grad is not None
        weight.grad.add_(300.0 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


def perturbed(watch: GradientWatch, model: nn.Module, batch: Tensor, second: bool = False) -> None:
    """Compute the gradients at weights that are moved far along the gradient; they are moved back before the step."""
    loss = loss_of(model, batch)
    if not second:
        watch.loss(loss)
    weights = list(model.parameters())
    moves: Sequence[Tensor] = torch.autograd.grad(loss, weights)
    if not second:
        loss = loss_of(model, batch)
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(20.0 * move / move.norm())
    model.zero_grad()
    loss = loss_of(model, batch)
    if second:
        watch.loss(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight.sub_(20.0 * move / move.norm())


def perturbed_and_watched(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
    """The same, where the loss at the moved weights is the one that is passed on."""
    perturbed(watch, model, batch, second=True)


def diagnosed(backward: Backward, rate: float = 0.05, kind: type[torch.optim.Optimizer] = torch.optim.SGD) -> Diagnosis:
    """Return the diagnosis of a run that diverges."""
    model = network()
    optimizer = kind(model.parameters(), lr=rate)  # type: ignore[call-arg]
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(40):
            optimizer.zero_grad()
            backward(watch, model, batch)
            optimizer.step()
        found = watch.diagnosis()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (factor_of_loss, "multiplies the loss by 300 for its backward pass"),
        (factor_of_gradients, "300 times that of the gradients of the loss: the loop replaces, adds to or multiplies"),
        (noise, "the loop replaces, adds to or multiplies"),
        (perturbed, "the loop replaces, adds to or multiplies"),
        (perturbed_and_watched, "writes to the weights between the backward pass and the optimizer's step"),
    ],
    ids=["factor of the loss", "factor of gradients", "noise", "perturbed weights", "perturbed and watched"],
)
def test_steps_that_do_not_follow_the_loss_are_no_rate_that_is_too_high(backward: Backward, words: str) -> None:
    """The cause is unknown, with what the loop does to gradients or weights; at this rate the same loss falls."""
    found = diagnosed(backward)
    assert found.causes[0].kind == "unknown"
    assert words in found.causes[0].evidence[0]


def test_gradients_that_are_amplified_after_each_of_several_passes_are_accumulated_too_often() -> None:
    """Those of earlier passes are amplified again by each later one."""

    def amplified(watch: GradientWatch, model: nn.Module, batch: Tensor) -> None:
        for rows in batch.split(2):  # type: ignore[no-untyped-call]
            plain(watch, model, rows)
            for weight in model.parameters():
                assert weight.grad is not None
                weight.grad.mul_(2.0)

    cause = diagnosed(amplified).causes[0]
    assert cause.kind == "accumulated-gradients"
    assert "changed them after 8 of the backward passes" in cause.evidence[0]


def test_a_loss_that_the_loop_maximizes_has_no_floor() -> None:
    """The factor of its backward pass is negative, and it rises."""
    cause = diagnosed(upward).causes[0]
    assert cause.kind == "loss-without-floor"
    assert "multiplies the loss by -1" in cause.evidence[0]


def test_a_loss_that_rises_in_short_steps_is_no_matter_of_the_rate() -> None:
    """As with hooks that reverse all gradients, which a loop without a replay does not show."""
    found = diagnosed(hooked).causes[0]
    assert found.kind == "unknown"
    assert "too short to overshoot" in found.evidence[0]


def test_a_factor_of_the_loss_cancels_out_with_adam() -> None:
    """It divides by the size of the gradients, so that the rate is the cause."""
    assert diagnosed(factor_of_loss, rate=30.0, kind=torch.optim.Adam).causes[0].kind == "learning-rate"


def test_gradients_of_the_loss_itself_leave_the_rate() -> None:
    """A step of gradient descent that is far too long is named although no step can be computed again."""
    assert diagnosed(plain, rate=30.0).causes[0].kind == "learning-rate"
