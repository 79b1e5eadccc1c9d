"""Steps of optimizers that the training loop does not know, in manual optimization."""

from __future__ import annotations

import logging

from lightning_gradexplode.hosts.base import TrainingLoop

logger = logging.getLogger("lightning_gradexplode")


class UnseenSteps:
    """Notices that weights change although no optimizer step was seen, and logs it once.

    Such a step can neither be measured nor held back. The version counter of a parameter shows that it was written to,
    at no cost on an accelerator.

    Args:
        loop: The training loop.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._is_logged = False
        self._versions: list[int] | None = None

    def backward_ended(self) -> None:
        """Remember the weights that the first backward pass of a batch began with."""
        if not self._is_logged and self._versions is None:
            self._versions = self._now()

    def batch_ended(self, stepped: bool) -> None:
        """Compare the weights with those of the backward pass.

        Args:
            stepped: Whether a step was seen in this batch.
        """
        versions, self._versions = self._versions, None
        if versions is None or stepped or versions == self._now():
            return
        self._is_logged = True
        logger.warning(
            "gradexplode: weights changed although no step was seen of an optimizer that the training loop knows; "
            "such steps are not measured, clipped or held back (step what self.optimizers() returns)"
        )

    def _now(self) -> list[int]:
        return [parameter._version for parameter in self._loop.module.parameters() if parameter.requires_grad]
