"""Numbers of backward passes since the gradients of each of several optimizers were cleared."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_gradexplode.measure.parameters import ParameterSet


@dataclass(frozen=True, slots=True)
class _Passes:
    """The first gradient of an optimizer at one time, and the number of passes that had added to it.

    Args:
        gradient: A weak reference to the gradient; None without a gradient.
        version: Its version counter, which counts writes.
        number: The number of passes.
        evaluations: Number of evaluations of a closure within a step since the gradients were cleared.
        counted: The number of passes at the end of the last evaluation.
    """

    gradient: weakref.ref[Tensor] | None
    version: int
    number: int = 0
    evaluations: int = 0
    counted: int = 0

    @classmethod
    def of(cls, parameters: ParameterSet) -> _Passes:
        """Return the first gradient as it is now, without a number of passes."""
        gradient = next((one.grad for one in parameters.tensors if one.grad is not None), None)
        return cls(None, 0) if gradient is None else cls(weakref.ref(gradient), gradient._version)

    def with_gradient_of(self, other: _Passes) -> _Passes:
        """Return these numbers with another gradient."""
        return replace(self, gradient=other.gradient, version=other.version)

    def is_same_gradient(self, other: _Passes) -> bool:
        """Return whether there is a gradient that was neither replaced nor written to in between."""
        if self.gradient is None or other.gradient is None or self.version != other.version:
            return False
        gradient = self.gradient()
        return gradient is not None and gradient is other.gradient()


class PassesByOptimizer:
    """Counts backward passes for each of several optimizers, from their beginnings and ends.

    A change of a gradient between two passes counts as a clearing, unless there was a step in between, before which the
    gradient may have been clipped.

    Attributes:
        have_begun: Whether there was a pass to count.
    """

    def __init__(self) -> None:
        self.have_begun = False
        # By the first parameter; parameters may be replaced, and their identities used again.
        self._passes = WeakTensorKeyDictionary()

    def begins(self, optimizers: Sequence[ParameterSet]) -> None:
        """Detect, before a backward pass, which gradients were cleared since the last one.

        Args:
            optimizers: The parameters of each.
        """
        self.have_begun = True
        for parameters in optimizers:
            before, now = self._before(parameters), _Passes.of(parameters)
            is_kept = before is not None and before.is_same_gradient(now)
            self._note(parameters, before.with_gradient_of(now) if before is not None and is_kept else now)

    def ended(self, optimizers: Sequence[ParameterSet]) -> None:
        """Count a backward pass for those whose gradients it has added to.

        Args:
            optimizers: The parameters of each.
        """
        for parameters in optimizers:
            before, now = self._before(parameters), _Passes.of(parameters)
            if before is not None and now.gradient is not None and not before.is_same_gradient(now):
                self._note(parameters, replace(before.with_gradient_of(now), number=before.number + 1))

    def stepped(self, parameters: ParameterSet) -> None:
        """Record the gradient of an optimizer that has stepped."""
        before = self._before(parameters)
        if before is not None:
            self._note(parameters, replace(_Passes.of(parameters), number=before.number, counted=before.number))

    def evaluated(self, parameters: ParameterSet) -> int:
        """Record an evaluation of a closure, and return the number of those since the gradients were cleared."""
        before = self._before(parameters)
        if before is None:
            return 0
        if before.number != before.counted:
            before = replace(before, evaluations=before.evaluations + 1, counted=before.number)
            self._note(parameters, before)
        return before.evaluations

    def of(self, parameters: ParameterSet) -> int | None:
        """Return the number of backward passes since the gradients of an optimizer were cleared, None if unknown."""
        before = self._before(parameters)
        return None if before is None else before.number or None

    def _before(self, parameters: ParameterSet) -> _Passes | None:
        found: _Passes | None = None
        if parameters.tensors:
            found = self._passes.get(parameters.tensors[0])  # type: ignore[no-untyped-call]
        return found

    def _note(self, parameters: ParameterSet, passes: _Passes) -> None:
        if parameters.tensors:
            self._passes[parameters.tensors[0]] = passes
