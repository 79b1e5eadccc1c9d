"""Clipping of a run: the policy's value on its way to the trainer, or to gradients that the trainer does not clip."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode import _lightning
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.respond.apply import clip_gradients
from lightning_gradexplode.watch import OptimizerWatch


class Clipper:
    """Writes clip values to a trainer, and puts back what it found there.

    In manual optimization Lightning ignores the trainer's value; a fused optimizer under mixed precision, and a
    module's own ``configure_gradient_clipping``, may refuse it. There the gradients are clipped right here, before
    the optimizer steps.

    Args:
        trainer: The trainer of the run.
    """

    def __init__(self, trainer: _lightning.Trainer) -> None:
        self._trainer = trainer
        self._found = (trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        self._module_clips = _lightning.overrides_clipping(trainer)
        self._by_hand = self._module_clips or not _lightning.is_automatic(trainer)

    def algorithm(self, watch: OptimizerWatch) -> str:
        """Name the algorithm that an optimizer's gradients are clipped by, ``"norm"`` or ``"value"``."""
        return watch.policy.algorithm if watch.policy is not None else _lightning.clipping(self._trainer)[1]

    def set(self, watch: OptimizerWatch, record: StepRecord) -> StepRecord:
        """Settle the clip value of a step, and give the record with it."""
        if watch.policy is None:
            value, algorithm = _lightning.clipping(self._trainer)
        else:
            value, algorithm = watch.policy.threshold(record), watch.policy.algorithm
            if not self._is_by_hand(watch):
                _lightning.set_clipping(self._trainer, value, algorithm)
        if value is None:
            return record
        size = record.grad_norm if algorithm == "norm" else record.grad_max
        return replace(record, clip_val=value, clip_algorithm=algorithm, clip_rate=watch.clip_rate(value, size))

    def clip(
        self, watch: OptimizerWatch, parameters: ParameterSet, record: StepRecord, scale: float, known: bool
    ) -> None:
        """Clip the gradients, where the trainer does not do it for us.

        Args:
            watch: The optimizer.
            parameters: Its parameters.
            record: The step, with its clip value.
            scale: What the gradients in memory are multiplied by.
            known: Whether the record's norm is that of the gradients as they are now.
        """
        if watch.policy is None or record.clip_val is None or record.clip_algorithm is None:
            return
        if not self._is_by_hand(watch):
            return
        gradients = parameters.gradients
        norm = record.grad_norm if known else parameters.shards.norms(measure_norms(gradients, scale)).total
        assert norm is not None
        clip_gradients(gradients, record.clip_val, record.clip_algorithm, norm, scale)

    def _is_by_hand(self, watch: OptimizerWatch) -> bool:
        return self._by_hand or _lightning.refuses_to_clip(self._trainer, watch.optimizer)

    def changes(self, record: StepRecord) -> bool:
        """Tell whether a step's gradients may differ from those that were measured, by anybody's clipping."""
        return record.clip_val is not None or self._module_clips

    def restore(self) -> None:
        """Leave the trainer as it was found."""
        self._trainer.gradient_clip_val, self._trainer.gradient_clip_algorithm = self._found
