"""Backward passes since gradients were cleared, where one of several optimizers may be cleared without the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode.engine.backward_pass_counter import BackwardPassCounter, PassCounterByOptimizer
from lightning_gradexplode.measure.parameters import ParameterSet, parameters_of


class Adversaries:
    """A generator and a judge, whose backward passes are counted as a training loop runs them."""

    def __init__(self) -> None:
        self.generator, self.judge = nn.Linear(2, 2), nn.Linear(2, 1)
        self.sets = [parameters_of(torch.optim.SGD(net.parameters()), net) for net in (self.generator, self.judge)]
        self.passes = PassCounterByOptimizer()

    def backward(self, loss: Tensor) -> None:
        """Run a backward pass."""
        self.passes.begins(self.sets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.passes.ended(self.sets)

    def step(self, clear_generator: Callable[[], None], clear_judge: Callable[[], None]) -> tuple[int | None, ...]:
        """Train both, the generator first, and return the number of passes that each of their steps follows."""
        made = self.generator(torch.ones(3, 2))
        clear_generator()
        self.backward(self.judge(made).mean())
        nn.utils.clip_grad_norm_(self.generator.parameters(), 1e-3)
        of_generator = self.passes.of(self.sets[0])
        self.passes.stepped(self.sets[0])
        clear_judge()
        self.backward(self.judge(made.detach()).square().mean())
        nn.utils.clip_grad_norm_(self.judge.parameters(), 1e-3)
        of_judge = self.passes.of(self.sets[1])
        self.passes.stepped(self.sets[1])
        return of_generator, of_judge


@pytest.mark.parametrize("to_none", [True, False])
def test_each_optimizer_has_its_own_number(to_none: bool) -> None:
    """The generator's pass reaches the judge too, which clears that away, or adds two passes at each step."""
    both, one = Adversaries(), Adversaries()
    seen = [
        both.step(lambda: both.generator.zero_grad(to_none), lambda: both.judge.zero_grad(to_none)) for _ in range(4)
    ]
    assert seen == [(1, 1)] * 4
    seen = [one.step(lambda: one.generator.zero_grad(to_none), lambda: None) for _ in range(4)]
    assert seen == [(1, 2), (1, 4), (1, 6), (1, 8)]


def test_gradients_that_no_pass_was_seen_to_begin_for_are_unknown() -> None:
    """A loop that tells of the ends of its passes only may have cleared them at any time."""
    adversaries = Adversaries()
    assert adversaries.passes.of(adversaries.sets[0]) is None
    adversaries.judge(adversaries.generator(torch.ones(3, 2))).mean().backward()
    adversaries.passes.ended(adversaries.sets)
    assert adversaries.passes.of(adversaries.sets[0]) is None


def test_a_pass_that_does_not_reach_an_optimizer_is_none_of_its_own() -> None:
    """The judge's loss of detached samples adds nothing to the generator."""
    adversaries = Adversaries()
    for _ in range(3):
        adversaries.backward(adversaries.judge(torch.ones(3, 2)).mean())
    assert [adversaries.passes.of(one) for one in adversaries.sets] == [None, 3]


class OfANetwork:
    """An optimizer of a small network."""

    def __init__(self) -> None:
        self.net = nn.Linear(2, 1)
        self.set = parameters_of(torch.optim.SGD(self.net.parameters()), self.net)

    def parameters(self) -> ParameterSet:
        """Return its parameters."""
        return self.set


@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "unannounced"])
def test_passes_of_one_optimizer_are_counted_until_its_gradients_are_cleared(is_announced: bool) -> None:
    """Whether or not the loop tells that it clears them; a clearing that is announced and not done does not count."""
    optimizer, passes, seen = OfANetwork(), BackwardPassCounter(), []
    for clears in (True, True, False, False, True):
        if is_announced:
            passes.gradients_cleared()
        if clears:
            optimizer.net.zero_grad()
        for _ in range(2):
            passes.begins([optimizer])
            optimizer.net(torch.ones(3, 2)).mean().backward()
            passes.ended([optimizer])
        seen.append(passes.of(optimizer.set))
        passes.stepped(optimizer.set)
    assert seen == [None, 2, 4, 6, 2]
