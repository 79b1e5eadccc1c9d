"""Optimizer steps that one of several processes leaves out, such as where its loss is NaN, and that others make."""

from __future__ import annotations

from lightning_gradexplode.engine.components import Components


class MissingSteps:
    """Takes part in the exchange of a step that this process leaves out.

    The processes exchange numbers at each step. One that leaves a step out would go on to the next backward pass, which
    waits for the others, while these wait for its numbers. It is known that a step was left out once gradients are
    cleared without one. Where gradients are not reduced within the backward pass, no process waits there.

    Args:
        components: The components of the run.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._applies = components.is_distributed and not components.loop.gradients_may_differ
        self._has_stepped = self._is_expected = False
        self._loss: float | None = None
        self._batch_idx = 0

    def pass_begins(self) -> None:
        """Report to the other processes if the gradients of the last backward pass were cleared without a step.

        Raises:
            ProcessFailedError: Others have made a step.
        """
        is_expected, self._has_stepped, self._is_expected = self._is_expected, False, False
        if is_expected and self._are_cleared():
            self._components.exchange.report_missing_step(self._loss, self._batch_idx)

    def pass_ended(self) -> None:
        """Expect a step, unless it was made within the backward pass."""
        self._is_expected = self._applies and not self._has_stepped
        self._loss, self._batch_idx = self._components.window.newest_loss, self._components.batch.index

    def step_begins(self) -> None:
        """Expect no step any more."""
        self._has_stepped, self._is_expected = True, False

    def _are_cleared(self) -> bool:
        states = self._components.optimizers.states
        return all(gradient is None for state in states for gradient in state.parameters().gradients)
