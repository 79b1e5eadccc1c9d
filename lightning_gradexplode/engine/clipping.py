"""Clipping of a run: the policy's value on its way to the trainer, or to gradients that the trainer does not clip."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from torch.optim import Optimizer

from lightning_gradexplode.clip.apply import clip_by_total_norm, clip_gradients, has_sparse
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.step import GradientReading, norms_of
from lightning_gradexplode.records import FloatArray, StepRecord

logger = logging.getLogger("lightning_gradexplode")

_ROUNDING = 1e-3
"""Our norm and torch's float32 one differ by less."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownNorm:
    """The norm of the gradients that an optimizer is about to be handed, as long as they stay as they are."""

    optimizer: Optimizer
    parameters: ParameterSet
    reading: GradientReading
    norm: float


class GradientClipper:
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
        self._known: KnownNorm | None = None
        self._put_back = _lightning.replace_norm_clipping(trainer, self._clip_in_its_place)

    def algorithm(self, watch: OptimizerState) -> str:
        """Name the algorithm that an optimizer's gradients are clipped by, ``"norm"`` or ``"value"``."""
        return watch.policy.algorithm if watch.policy is not None else _lightning.clipping(self._trainer)[1]

    def set(self, watch: OptimizerState, record: StepRecord) -> StepRecord:
        """Settle the clip value of a step, and give the record with it."""
        if watch.policy is None:
            value, algorithm = _lightning.clipping(self._trainer)
        else:
            value, algorithm = watch.policy.threshold(record), watch.policy.algorithm
            if algorithm == "tensor":
                _lightning.set_clipping(self._trainer, None, None)
                return replace(record, clip_algorithm=algorithm)
            if not self._is_by_hand(watch):
                _lightning.set_clipping(self._trainer, value, algorithm)
            elif not self._by_hand:
                _lightning.set_clipping(self._trainer, None, None)
        if value is None:
            return record
        return self.rated(watch, replace(record, clip_val=value, clip_algorithm=algorithm))

    @staticmethod
    def rated(watch: OptimizerState, record: StepRecord) -> StepRecord:
        """Give a record with the share of steps that are clipped, once what it is up against is known."""
        if record.clip_val is None:
            return record
        size = record.grad_norm if record.clip_algorithm == "norm" else record.grad_max
        return replace(record, clip_rate=watch.clip_rate(record.clip_val, size))

    def clip(
        self, watch: OptimizerState, parameters: ParameterSet, record: StepRecord, scale: float, known: bool
    ) -> StepRecord:
        """Clip the gradients, where the trainer does not do it for us.

        Args:
            watch: The optimizer.
            parameters: Its parameters.
            record: The step, with its clip value.
            scale: What the gradients in memory are multiplied by.
            known: Whether the record's norm is that of the gradients as they are now.

        Returns:
            The record, with the clip rate where it was not known before.
        """
        if watch.policy is None or record.clip_algorithm is None:
            return record
        if record.clip_algorithm == "tensor":
            bound = watch.policy.clip_tensors(parameters, self._norms(parameters, record, scale, known), scale, known)
            return replace(record, clip_rate=watch.clip_rate(1.0, 2.0 if bound else 0.0)) if known else record
        if record.clip_val is None or not self._is_by_hand(watch):
            return record
        gradients = parameters.gradients
        norm = record.grad_norm if known else norms_of(parameters, gradients, scale).total
        assert norm is not None
        clip_gradients(gradients, record.clip_val, record.clip_algorithm, norm, scale)
        return record

    @staticmethod
    def _norms(parameters: ParameterSet, record: StepRecord, scale: float, known: bool) -> FloatArray:
        """Give the norm of each gradient as it is now."""
        if known:
            return record.per_parameter["grad_norm"]
        return norms_of(parameters, parameters.gradients, scale).each

    def expects_to_clip(self, watch: OptimizerState) -> bool:
        """Tell whether the trainer is likely to change an optimizer's gradients by their norm at the coming step."""
        return watch.bound_last and self.algorithm(watch) == "norm" and not self._is_by_hand(watch)

    def know(self, flight: Step, reading: GradientReading) -> None:
        """Note the norm of the gradients that an optimizer is about to get, for the trainer's own clipping."""
        norm, sharded = flight.record.grad_norm, flight.parameters.shards.copies is not None
        if norm is None or sharded or flight.record.clip_algorithm != "norm":  # what is sharded, all clip together
            return
        self._known = KnownNorm(flight.watch.optimizer, flight.parameters, reading, norm)

    def forget(self) -> None:
        """Let go of the gradients of a step."""
        self._known = None

    def _clip_in_its_place(self, optimizer: Optimizer, clip_val: float) -> bool:
        """Do what the trainer was about to do, or let it do so; an error of ours costs time and not the run."""
        try:
            return self._clip_by_known_norm(optimizer, clip_val)
        except Exception:
            logger.exception("gradexplode: the known norm could not be used; the trainer clips by itself from here on")
            self._put_back()
            return False

    def _clip_by_known_norm(self, optimizer: Optimizer, clip_val: float) -> bool:
        """Clip as ``clip_grad_norm_`` would, bit for bit, with the norm at hand; False where that cannot be done.

        A clip value that clearly does not bind multiplies by 1.0, which changes nothing and is left out.
        """
        known, self._known = self._known, None
        if known is None or known.optimizer is not optimizer or not known.reading.holds(known.parameters):
            return False
        if known.norm < clip_val * (1 - _ROUNDING):
            return True
        if known.reading.torch_total is None:
            return False
        clip_by_total_norm(known.reading.gradients, clip_val, known.reading.torch_total)
        return True

    def _is_by_hand(self, watch: OptimizerState) -> bool:
        refuses = self._by_hand or _lightning.refuses_to_clip(self._trainer, watch.optimizer)
        return refuses or has_sparse([p.grad for group in watch.optimizer.param_groups for p in group["params"]])

    def changes(self, record: StepRecord) -> bool:
        """Tell whether a step's gradients may differ from those that were measured, by anybody's clipping."""
        return record.clip_algorithm is not None or self._module_clips

    def restore(self) -> None:
        """Leave the trainer as it was found."""
        self._trainer.gradient_clip_val, self._trainer.gradient_clip_algorithm = self._found

    def close(self) -> None:
        """Let the trainer clip by itself again."""
        self.forget()
        self._put_back()
