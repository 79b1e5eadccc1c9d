"""One optimizer step in progress: its phase and its measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.engine.accumulation import AccumulatedReading, unscales_itself
from lightning_gradexplode.engine.calm_step import NOTHING_DONE, Preliminary
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.engine.unfinished_record import UnfinishedRecord
from lightning_gradexplode.measure.gradient_details import GradientDetails, shown_histograms
from lightning_gradexplode.measure.gradients import GradientReading, norms_of
from lightning_gradexplode.measure.maxima import measure_maxima
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.reading import PendingRead
from lightning_gradexplode.measure.weight_sample import WeightSample
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.records import Finding, Histogram


class Phase(Enum):
    """The phase of a step."""

    COLLECTING = 1
    """Its gradients are being measured; no number is on the host yet."""
    MEASURED = 2
    """The norms of its gradients and its loss are known."""
    DECIDED = 3
    """Findings before the update, clip value and responses are settled."""
    STEPPED = 4
    """The optimizer has changed the weights."""
    FINISHED = 5
    """Its record is final."""


@dataclass(slots=True)
class OnDevice:
    """What is known of a step only on its device, as long as its numbers are not on the host.

    Attributes:
        gathered: The measurements that the processes have exchanged on their devices, None without an exchange.
        gathered_norms: The norms of all processes' shards, if they have exchanged them.
        clip: Clip value and norm, if they are not known on the host.
        is_guarded: Whether the optimizer skips the update by itself if it is not finite.
    """

    gathered: GradientReading | PendingRead | None = None
    gathered_norms: Tensor | None = None
    clip: tuple[Tensor, Tensor] | None = None
    is_guarded: bool = False


class Step(UnfinishedRecord):
    """One optimizer step in progress, which measures what its record needs.

    Args:
        state: The optimizer.
        parameters: Its parameters.
        reading: Its gradients, as far as they are measured.
        number: The step that other metrics are logged at.
        scalars_due: Whether its scalars are logged.
        histograms_due: Whether its histograms are logged.
        preliminary: What was done of it before it was known that it is not a calm step.

    Attributes:
        phase: Its phase.
        inputs: The inputs to compute the step again, None if that is not possible.
        scale: The factor that the gradients in memory are multiplied by.
        gradients_intact: Whether the gradients in memory are those that were measured.
        evaluations: Number of times that gradients were computed within the step.
        clips_directly: Whether the monitor itself clips the gradients, and not the training loop.
        on_device: What is known only on its device.
        is_deferred: Whether its numbers are read after its update.
        deferred_findings: The findings before and after its update, once it is deferred and its numbers are read.
    """

    def __init__(
        self,
        state: OptimizerState,
        parameters: ParameterSet,
        reading: AccumulatedReading,
        number: int,
        scalars_due: bool,
        histograms_due: bool,
        preliminary: Preliminary = NOTHING_DONE,
    ) -> None:
        self.state = state
        self.parameters = parameters
        self.reading = reading
        self.number = number
        self.scalars_due = scalars_due
        self.histograms_due = histograms_due
        self.preliminary = preliminary
        self.set(
            learning_rate=state.learning_rate,
            scale_adapts=reading.scale_adapts,
            micro_batches=reading.micro_batches,
            backward_passes=reading.backward_passes,
            update_taken=False,
        )
        self.phase = Phase.COLLECTING
        self.inputs: StepInputs | None = None
        self.scale = 1.0
        self.gradients_intact = True
        self.evaluations = 1
        self.clips_directly = True
        self.on_device = OnDevice()
        self.is_deferred = False
        self.deferred_findings: tuple[Sequence[Finding], Sequence[Finding]] | None = None
        self._weights_before: WeightCopy | WeightSample | None = None

    # Properties known before the update.

    @property
    def is_left_out_unseen(self) -> bool:
        """Whether a gradient scaler skips a non-finite update without a sign in the optimizer's hooks.

        A fused optimizer is called by the scaler in any case, and skips its update by itself.
        """
        is_seen = self.state.has_hooks and not unscales_itself(self.state.optimizer)
        return self.reading.has_scale and not is_seen

    def norm_on_device(self) -> Tensor | None:
        """Return the L2 norm of all gradients on their device, unscaled; None if it cannot be computed there."""
        copies = self.parameters.shards.copies
        if copies is None:
            return self.reading.gradients.total_on_device(self.parameters.tensors[0].device)
        norms = self.on_device.gathered_norms
        if norms is None or len(set(copies)) > 1:
            return None
        total: Tensor = torch.linalg.vector_norm(norms / float(copies[0]) ** 0.5)
        return total

    # Measurements before the update.

    def measure_start(self) -> None:
        """Measure the weights before the run's first step."""
        self.set_weights_before(norms_of(self.parameters, self.parameters.tensors))

    def measure_gradients(self, clips_by_value: bool) -> None:
        """Measure further statistics of the gradients, for a step that is logged or clipped by value."""
        early = self.reading.gradients.details
        if not self.gradients_intact and early is None:
            return
        if self.scalars_due and not self._has_details:
            if self.reading.gradients.torch_total is not None:  # measured by torch's less precise kernel
                self.set_gradient_norms(norms_of(self.parameters, self.parameters.gradients, self.scale))
            self._set_details(early or GradientDetails.of(self.parameters, self.scale))
        elif self.gradients_intact and clips_by_value and self.grad_max is None:
            local = measure_maxima(self.parameters.gradients, self.scale)
            self.set_maxima(self.parameters.shards.maxima_and_sums(local, np.zeros_like(local))[0])

    def measure_again(self) -> None:
        """Measure the gradients as they are now, in place of those that were measured before."""
        self.set_gradient_norms(norms_of(self.parameters, self.parameters.gradients, self.scale))
        if self._has_details:
            self._set_details(GradientDetails.of(self.parameters, self.scale))

    @property
    def _has_details(self) -> bool:
        return "share_above_one" in self.per_parameter

    def _set_details(self, local: GradientDetails) -> None:
        """Set the largest absolute values, and the share of each gradient's elements with one of 1.0 and more."""
        maxima, counts = self.parameters.shards.maxima_and_sums(local.maxima, local.above_one)
        self.set_maxima(maxima)
        self.set_per_parameter(
            share_above_one=counts / [max(parameter.numel(), 1) for parameter in self.parameters.tensors]
        )

    def measure_gradient_histograms(self) -> None:
        """Count the gradients into histograms, unless they have changed since the reading and were not counted then."""
        early = self.reading.gradients.details
        if early is not None and early.histograms is not None:
            self._set_histograms("gradient", early.histograms)
        elif self.gradients_intact:
            self._set_histograms("gradient", shown_histograms(self.parameters, self.parameters.gradients, self.scale))

    def keep_weights(self, sample: int | None) -> None:
        """Copy the weights before the update, or a sample of them, if its size is to be logged.

        Args:
            sample: Number of weights in the sample; None copies all.
        """
        if self.scalars_due:
            tensors = self.parameters.tensors
            self._weights_before = WeightCopy(tensors) if sample is None else WeightSample(tensors, sample)

    # Measurements after the update.

    def measure_clipped(self, may_be_clipped: bool) -> None:
        """Measure the gradients after clipping, if they are logged; without clipping they are the same."""
        if not self.scalars_due or self.evaluations > 1:
            return
        if may_be_clipped:
            norms = norms_of(self.parameters, self.parameters.gradients)
            self.set_clipped_norms(norms.total, norms.each)
        elif self.phase is not Phase.COLLECTING:
            self.set_unclipped()

    def measure_weights(self) -> None:
        """Measure the weights after the update, and their change where they were kept before it, if that is due."""
        detectors = self.state.detectors
        if self.phase is Phase.COLLECTING and self.parameters.shards.copies is not None:
            return  # until the exchange of the step is read
        if self._weights_before is not None:
            self._measure_weight_change(self._weights_before)
            self._weights_before = None
        elif detectors.expects_weights if self.is_deferred else detectors.needs_weights:
            self.set_weights(norms_of(self.parameters, self.parameters.tensors))

    def _measure_weight_change(self, before: WeightCopy | WeightSample) -> None:
        change = before.change(self.parameters.tensors, self.parameters.shards)
        self.set_weights(change.weights)
        self.set_weights_before(change.before)
        self.set(update_ratio=change.update_ratio)
        self.set_per_parameter(update_ratio=change.update_ratio_each)
        if self.histograms_due:
            if change.differences:
                self._set_histograms("update", shown_histograms(self.parameters, change.differences))
            self._set_histograms("weight", shown_histograms(self.parameters, self.parameters.tensors))

    def _set_histograms(self, quantity: str, local: Mapping[str, Histogram]) -> None:
        """Set histograms of what this process holds of each parameter."""
        whole = local if self.parameters.shards.copies is None else _unsharded(local, self.parameters)
        self.histograms = MappingProxyType({**self.histograms, quantity: MappingProxyType(dict(whole))})


def _unsharded(measured: Mapping[str, Histogram], parameters: ParameterSet) -> dict[str, Histogram]:
    """Add up the histograms of shards; a process without elements of a parameter counts as holding none of them."""
    none = Histogram.merged(())
    parts = [measured.get(name, none) for name in parameters.names]
    sums = parameters.shards.sums(np.stack([np.append(part.counts, part.nonfinite) for part in parts]).astype(float))
    wholes = {
        name: Histogram(row[:-1].astype(np.int64), int(row[-1]))
        for name, row, shown in zip(parameters.names, sums, parameters.shown, strict=True)
        if shown
    }
    return {name: whole for name, whole in wholes.items() if name in measured or whole.finite or whole.nonfinite}
