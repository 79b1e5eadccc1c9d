"""Runs in which no step has any gradient, so that nothing is recorded."""

from __future__ import annotations

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import few

NONE_HAD_GRADIENTS = 20
"""Number of steps without any gradient after which that is logged, in a run in which no step had one."""

NO_GRADIENTS = (
    "gradexplode: no parameter of the optimizers had a gradient at any of the first %d steps, so that nothing is "
    "recorded; look for a loss that does not depend on them, or gradients that are removed before the step"
)

NOT_IN_OPTIMIZERS = (
    "gradexplode: no parameter of the optimizers had a gradient at any of the first %d steps, while %s had one, which "
    "no optimizer updates: create the optimizer after the module has its final parameters, or add them to it with "
    "optimizer.add_param_group()"
)


class StepsWithoutGradients:
    """Logs once where none of the first steps of a run has a gradient.

    Args:
        loop: The training loop.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._count = 0

    def add(self, is_any_recorded: bool) -> None:
        """Add a step whose parameters have no gradient at all.

        Args:
            is_any_recorded: Whether a step of the run had one.
        """
        self._count += 1
        if self._count == NONE_HAD_GRADIENTS and not is_any_recorded and self._loop.is_main_process:
            others = _others_with_gradients(self._loop)
            if others:
                logger.warning(NOT_IN_OPTIMIZERS, NONE_HAD_GRADIENTS, few(others))
            else:
                logger.warning(NO_GRADIENTS, NONE_HAD_GRADIENTS)


def _others_with_gradients(loop: TrainingLoop) -> list[str]:
    """Return the parameters of the module that have a gradient, and that are in no optimizer."""
    taken = {id(one) for optimizer in loop.optimizers for one in held_by(optimizer)}
    named = loop.module.named_parameters()
    return [name for name, one in named if one.grad is not None and id(one) not in taken]
