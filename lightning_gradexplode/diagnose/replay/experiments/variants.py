"""Variants of a step on copies of the module: with other weights, in float32, without some rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.batch import map_batch, take_rows
from lightning_gradexplode.diagnose.replay.copies.copyable import unwrapped
from lightning_gradexplode.diagnose.replay.copies.module_copy import ModuleCopy
from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.observation.guard import HALF, Guard
from lightning_gradexplode.diagnose.replay.step import ReplayStep, compute
from lightning_gradexplode.measure.batch_fields import batch_size, fields_of


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one variant of a step.

    Args:
        loss: Its first loss.
        is_finite: Whether its losses and gradients are finite.
        grad_norm: L2 norm of its gradients.
    """

    loss: float
    is_finite: bool
    grad_norm: float | None


class Variants:
    """Computes variants of a step within one budget.

    Args:
        step: The step.
        deadline: Time (of ``time.perf_counter``) at which the budget ends.
    """

    def __init__(self, step: ReplayStep, deadline: float) -> None:
        self._step = step
        self._deadline = deadline
        self.size = batch_size(fields_of(step.kept_batch))

    @property
    def module(self) -> nn.Module:
        """The module of the run."""
        return unwrapped(self._step.module)

    @property
    def loss_scale(self) -> float:
        """What the loss of the run was multiplied by."""
        return self._step.loss_scale

    def run(
        self,
        *,
        weights: Mapping[str, Tensor] | None = None,
        without: Sequence[int] = (),
        float32: bool = False,
        backward: bool = True,
    ) -> Result:
        """Compute the step on a new copy.

        Args:
            weights: Weights to use in place of the step's.
            without: Rows of the batch to leave out.
            float32: Whether everything is computed in float32.
            backward: Whether the backward pass is run.

        Raises:
            ReplayStopped: The step ended early.
        """
        batch = self._step.fresh_batch()
        if without:
            left = set(without)
            keep = [row for row in range(self.size or 0) if row not in left]
            if not keep:
                raise ReplayStopped("no row is left")
            batch = take_rows(batch, keep, len(keep) + len(left))
        copy = self._step.copy(self._deadline, **({} if weights is None else {"weights": weights}))
        try:
            if float32:
                batch = map_batch(batch, _wide)
                _to_float32(copy)
            guard = Guard(copy.owned, deadline=self._deadline, float32=float32)
            context = nullcontext() if float32 else None
            outcome = compute(self._step, copy, guard, batch=batch, backward=backward, context=context)
            if outcome.stopped or not outcome.losses:
                raise ReplayStopped(outcome.stopped or "the step has no loss")
            copy.measure_gradients()
            losses = outcome.values
            is_finite = all(map(math.isfinite, losses)) and not copy.gradients.nonfinite
            return Result(losses[0], is_finite, copy.gradients.norm)
        finally:
            copy.close()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _to_float32(copy: ModuleCopy) -> None:
    """Convert the half-precision parameters and buffers of a copy; the run's own stay as they are."""
    for parameter in copy.module.parameters():
        if parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    for module in copy.module.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in HALF:
                module._buffers[name] = wide = buffer.float()
                copy.owned.append(wide)
