"""Steps of optimizers that the training loop does not know, in manual optimization."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from lightning_gradexplode.distributed.shard_layout import local_part
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.reading import read, widest_type
from lightning_gradexplode.records.log import logger

MAX_COMPARISONS = 8
"""Number of batches without a step, after the first such batch, in which the weights themselves are compared."""


UNSEEN_BACKWARD = (
    "gradexplode: an optimizer steps with gradients that self.manual_backward(loss) has not computed; they are "
    "measured as it gets them, after any clipping"
)


class UnseenSteps:
    """Detects changes of the weights without a known optimizer step, and steps without a known backward pass.

    Such a step can neither be measured nor held back; each of the two is logged once. The version counter of a
    parameter shows that it was written to, at no cost on an accelerator. Writes through ``.data`` do not change the
    counter: for these the weights are compared in a few of the batches that had no step.

    Args:
        loop: The training loop.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._is_logged = False
        self._versions: list[int] | None = None
        self._norms: list[float] | None = None
        self._comparisons_left: int | None = None
        self._is_any_seen = self._is_any_backward_seen = False

    def batch_started(self) -> None:
        """Record the weights before a batch, as long as neither a step nor a backward pass was ever seen."""
        if not self._is_any_seen:
            self._record()

    def backward_ended(self) -> None:
        """Record the weights after the first backward pass of a batch."""
        self._is_any_backward_seen = True
        if not self._is_any_seen:
            self._is_any_seen, self._versions = True, None
        self._record()

    def _record(self) -> None:
        if not self._is_logged and self._versions is None:
            self._versions = [parameter._version for parameter in self._parameters()]
            if self._comparisons_left:
                self._comparisons_left -= 1
                self._norms = self._measured()

    def batch_ended(self, stepped: bool) -> None:
        """Compare the weights with those of the backward pass.

        Args:
            stepped: Whether a step was seen in this batch.
        """
        versions, self._versions = self._versions, None
        norms, self._norms = self._norms, None
        self._is_any_seen |= stepped
        if stepped and not self._is_any_backward_seen:
            self._is_any_backward_seen = True
            logger.warning(UNSEEN_BACKWARD)
        if versions is None or stepped:
            return
        if self._comparisons_left is None:
            self._comparisons_left = MAX_COMPARISONS
        if versions == [parameter._version for parameter in self._parameters()] and not self._differ(norms):
            return
        self._is_logged = True
        logger.warning(
            "gradexplode: weights changed although no step was seen of an optimizer that the training loop knows; "
            "such steps are not measured, clipped or held back (step what self.optimizers() returns)"
        )

    def _parameters(self) -> list[Parameter]:
        return [one for one in self._loop.module.parameters() if one.requires_grad and not is_lazy(one)]

    def _measured(self) -> list[float]:
        """Return a number for each parameter, by which a change of it is detected."""
        with torch.no_grad():
            norms = [_norm(local_part(one).detach()) for one in self._parameters()]
        return read(norms).tolist() if norms else []

    def _differ(self, norms: list[float] | None) -> bool:
        return norms is not None and not np.array_equal(norms, self._measured(), equal_nan=True)


def _norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm in the widest type, so that a small update changes it."""
    kind = torch.complex128 if tensor.is_complex() else widest_type(tensor.device)
    norm: Tensor = torch.linalg.vector_norm(tensor.to(kind))
    return norm
