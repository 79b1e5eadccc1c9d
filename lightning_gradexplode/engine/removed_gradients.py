"""Gradients that the user's own code removes between their measurement and the optimizer's step."""

from __future__ import annotations

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.gradients import GradientReading
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import few

REMOVED = (
    "gradexplode at step %d: the gradients of %s were removed (grad is None) between the backward pass and the step of "
    "the optimizer, which does not update these parameters; the norms that are recorded are those before that"
)


class RemovedGradients:
    """Logs the first time that an optimizer does not get gradients that were measured.

    Args:
        loop: The training loop.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._is_named = False

    def look(self, measured: GradientReading, parameters: ParameterSet) -> None:
        """Log if parameters that had a gradient when it was measured have none now.

        Args:
            measured: The measured gradients.
            parameters: The parameters that the optimizer is about to update.
        """
        if self._is_named or len(measured.gradients) != len(parameters.tensors):
            return
        pairs = zip(measured.gradients, parameters.tensors, parameters.names, strict=True)
        removed = [name for before, now, name in pairs if before is not None and now.grad is None]
        if not removed or self._loop.removes_gradients:
            return
        self._is_named = True
        if self._loop.is_main_process:
            is_all = all(one.grad is None for one in parameters.tensors)
            logger.warning(REMOVED, self._loop.step, "all parameters" if is_all else few(removed))
