"""Numbers of backward passes since the gradients were cleared, of one optimizer or of each of several."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_gradexplode.measure.parameters import ParameterSet


def _first_gradient(parameters: ParameterSet) -> tuple[Tensor, weakref.ref[Tensor], int] | None:
    """Return the first parameter with a gradient, a weak reference to that, and how often it was written to."""
    for parameter in parameters.tensors:
        gradient = parameter.grad
        if gradient is not None:
            return parameter, weakref.ref(gradient), gradient._version
    return None


@dataclass(frozen=True, slots=True)
class _PassCount:
    """The first gradient of an optimizer at one time, and the number of passes that had added to it.

    Args:
        gradient: A weak reference to the gradient; None without a gradient.
        version: Its version counter, which counts writes.
        number: The number of passes.
        evaluations: Number of evaluations of a closure within a step since the gradients were cleared.
        number_at_evaluation: The number of passes at the end of the last evaluation.
    """

    gradient: weakref.ref[Tensor] | None
    version: int
    number: int = 0
    evaluations: int = 0
    number_at_evaluation: int = 0

    @classmethod
    def of(cls, parameters: ParameterSet) -> _PassCount:
        """Return the first gradient as it is now, without a number of passes."""
        found = _first_gradient(parameters)
        return cls(None, 0) if found is None else cls(*found[1:])

    def with_gradient_of(self, other: _PassCount) -> _PassCount:
        """Return these numbers with another gradient."""
        return replace(self, gradient=other.gradient, version=other.version)

    def is_same_gradient(self, other: _PassCount) -> bool:
        """Return whether there is a gradient that was neither replaced nor written to in between."""
        if self.gradient is None or other.gradient is None or self.version != other.version:
            return False
        gradient = self.gradient()
        return gradient is not None and gradient is other.gradient()


class PassCounterByOptimizer:
    """Counts backward passes for each of several optimizers, from their beginnings and ends.

    A change of a gradient between two passes counts as a clearing, unless there was a step in between, before which the
    gradient may have been clipped.

    Attributes:
        have_begun: Whether there was a pass to count.
    """

    def __init__(self) -> None:
        self.have_begun = False
        # By the first parameter; parameters may be replaced, and their identities used again.
        self._counts = WeakTensorKeyDictionary()

    def begins(self, optimizers: Sequence[ParameterSet]) -> None:
        """Detect, before a backward pass, which gradients were cleared since the last one.

        Args:
            optimizers: The parameters of each.
        """
        self.have_begun = True
        for parameters in optimizers:
            before, now = self._before(parameters), _PassCount.of(parameters)
            is_kept = before is not None and before.is_same_gradient(now)
            self._note(parameters, before.with_gradient_of(now) if before is not None and is_kept else now)

    def ended(self, optimizers: Sequence[ParameterSet]) -> None:
        """Count a backward pass for those whose gradients it has added to.

        Args:
            optimizers: The parameters of each.
        """
        for parameters in optimizers:
            before, now = self._before(parameters), _PassCount.of(parameters)
            if before is not None and now.gradient is not None and not before.is_same_gradient(now):
                self._note(parameters, replace(before.with_gradient_of(now), number=before.number + 1))

    def stepped(self, parameters: ParameterSet) -> None:
        """Record the gradient of an optimizer that has stepped."""
        before = self._before(parameters)
        if before is not None:
            self._note(
                parameters, replace(_PassCount.of(parameters), number=before.number, number_at_evaluation=before.number)
            )

    def evaluated(self, parameters: ParameterSet) -> int:
        """Record an evaluation of a closure, and return the number of those since the gradients were cleared."""
        before = self._before(parameters)
        if before is None:
            return 0
        if before.number != before.number_at_evaluation:
            before = replace(before, evaluations=before.evaluations + 1, number_at_evaluation=before.number)
            self._note(parameters, before)
        return before.evaluations

    def of(self, parameters: ParameterSet) -> int | None:
        """Return the number of backward passes since the gradients of an optimizer were cleared, None if unknown."""
        before = self._before(parameters)
        return None if before is None else before.number or None

    def _before(self, parameters: ParameterSet) -> _PassCount | None:
        found: _PassCount | None = None
        if parameters.tensors:
            found = self._counts.get(parameters.tensors[0])  # type: ignore[no-untyped-call]
        return found

    def _note(self, parameters: ParameterSet, count: _PassCount) -> None:
        if parameters.tensors:
            self._counts[parameters.tensors[0]] = count


class _HasParameters(Protocol):
    """An optimizer whose parameters are listed when they are needed."""

    def parameters(self) -> ParameterSet:
        """Return its parameters."""


class BackwardPassCounter:
    """Counts backward passes since the gradients were cleared.

    With one optimizer they count as cleared if the loop clears them, or if they have changed between a step or an
    evaluation of a closure and the next pass. With several optimizers `PassCounterByOptimizer` counts.
    """

    def __init__(self) -> None:
        self._number = self._evaluations = 0
        self._by_optimizer = PassCounterByOptimizer()
        self._sees_clearing = False
        self._remembered: tuple[Tensor, weakref.ref[Tensor], int] | None = None
        self._number_remembered = 0

    def gradients_cleared(self) -> None:
        """Record that the training loop is about to clear the gradients.

        After a step, whether they are cleared is checked before the next pass: a module may override the clearing.
        """
        if self._remembered is None:
            self._number = 0

    def begins(self, optimizers: Sequence[_HasParameters]) -> None:
        """Detect, before a backward pass, whether the gradients were cleared since the last step or evaluation."""
        if len(optimizers) > 1:
            self._by_optimizer.begins([one.parameters() for one in optimizers])
        elif self._remembered is not None:
            parameter, reference, version = self._remembered
            gradient = reference()
            if gradient is None or parameter.grad is not gradient or gradient._version != version:
                self._number = self._evaluations = 0
            self._sees_clearing, self._remembered = True, None

    def ended(self, optimizers: Sequence[_HasParameters]) -> None:
        """Count a backward pass."""
        self._number += 1
        if len(optimizers) > 1:
            self._by_optimizer.ended([one.parameters() for one in optimizers])

    def stepped(self, parameters: ParameterSet) -> None:
        """Record a gradient after a step."""
        self._number_remembered, self._remembered = self._number, _first_gradient(parameters)
        self._evaluations = 0
        if self._by_optimizer.have_begun:
            self._by_optimizer.stepped(parameters)

    def left_out(self, parameters: ParameterSet, is_cleared: bool) -> None:
        """Record that a step was left out, as by a gradient scaler.

        Args:
            parameters: The parameters of the optimizer.
            is_cleared: Whether the gradients of that step have been cleared since.
        """
        if not self._by_optimizer.have_begun:
            self.stepped(parameters)
            self._sees_clearing = True
            if is_cleared:
                self._number, self._remembered = 0, None

    def evaluated(self, parameters: ParameterSet) -> int:
        """Record an evaluation of a closure, and a gradient after it.

        Returns:
            The number of evaluations within the step since the gradients were cleared.
        """
        if self._by_optimizer.have_begun:
            return self._by_optimizer.evaluated(parameters)
        has_run_backward = self._number != self._number_remembered
        self._number_remembered, self._remembered = self._number, _first_gradient(parameters)
        if has_run_backward and self._remembered is not None:
            self._evaluations += 1
        return self._evaluations

    def of(self, parameters: ParameterSet) -> int | None:
        """Return the number of backward passes since the gradients of an optimizer were cleared, None if unknown."""
        return self._number if self._sees_clearing else self._by_optimizer.of(parameters)
