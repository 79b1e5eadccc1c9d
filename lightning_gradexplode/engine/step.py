"""One optimizer step, from its gradients to its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay import AttributeState, KeptBatch, RandomState
from lightning_gradexplode.engine.accumulation import AccumulatedReading
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.measure.details import GradientDetails, shown_histograms
from lightning_gradexplode.measure.gradients import GradientReading, norms_of
from lightning_gradexplode.measure.maxima import measure_maxima
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.reading import PendingRead
from lightning_gradexplode.measure.sample import WeightSample
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.records import Finding, FloatArray, Histogram, Norms, StepRecord


class Phase(Enum):
    """How far a step is."""

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


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs:
    """What a step needs to be computed again.

    Args:
        batch: Its last micro-batch.
        batch_idx: Index of that in the epoch.
        is_last: Whether that is the last batch of the epoch.
        random_state: The state of the random number generators before it.
        attributes: Numbers and generators of the module before it.
        weights: Copies of the weights before it, None where none were kept.
    """

    batch: KeptBatch
    batch_idx: int
    is_last: bool
    random_state: RandomState | None = None
    attributes: AttributeState | None = None
    weights: Mapping[str, Tensor] | None = None


class Step:
    """One optimizer step in progress. It is mutable, and frozen into a `StepRecord` by `record`.

    Args:
        state: The optimizer.
        parameters: Its parameters.
        reading: Its gradients, as far as they are measured.
        scalars_due: Whether its scalars are logged.
        histograms_due: Whether its histograms are logged.
        **values: Fields of `StepRecord` that are known from the start.

    Attributes:
        phase: How far it is.
        scale: The factor that the gradients in memory are multiplied by.
        evaluations: Number of times that gradients were computed within the step.
        gradients_intact: Whether the gradients in memory are those that were measured.
        gathered: What the processes have exchanged of it on their devices, None if they have not.
        gathered_norms: The norms of all processes' shards on the device, if they have exchanged them.
        device_clip: Clip value and norm of the step on their device, where only that knows them.
        is_guarded: Whether the optimizer leaves the update out by itself if it is not finite.
        inputs: What is needed to compute it again, None where it cannot be.
        decided_late: Whether the optimizer had stepped before the numbers were read.
    """

    def __init__(
        self,
        state: OptimizerState,
        parameters: ParameterSet,
        reading: AccumulatedReading,
        scalars_due: bool,
        histograms_due: bool,
        **values: Any,
    ) -> None:
        self.state = state
        self.parameters = parameters
        self.reading = reading
        self.scalars_due = scalars_due
        self.histograms_due = histograms_due
        self.phase = Phase.COLLECTING
        self.scale = 1.0
        self.evaluations = 1
        self.gradients_intact = True
        self.decided_late = False
        self.gathered: GradientReading | PendingRead | None = None
        self.gathered_norms: Tensor | None = None
        self.device_clip: tuple[Tensor, Tensor] | None = None
        self.is_guarded = False
        self.inputs: StepInputs | None = None
        self._values = {**values, "parameters": parameters.names}
        self._per_parameter: dict[str, FloatArray] = {}
        self._histograms: dict[str, Mapping[str, Histogram]] = {}
        self._weights_before: WeightCopy | WeightSample | None = None
        self._has_details = False

    # What is known so far.

    def record(self) -> StepRecord:
        """Return what is known of the step as a frozen record, whose arrays cannot be written to."""
        return StepRecord(
            **self._values,
            per_parameter=MappingProxyType(dict(self._per_parameter)),
            histograms=MappingProxyType(dict(self._histograms)),
        )

    def set(self, **values: Any) -> None:
        """Set fields of the record; mappings have to be read-only, since it is handed to users' own parts."""
        self._values.update(values)

    @property
    def number(self) -> int:
        """The step that other metrics are logged at."""
        number: int = self._values["step"]
        return number

    @property
    def severity(self) -> int:
        """The worst severity found so far, 0 for none."""
        severity: int = self._values.get("severity", 0)
        return severity

    @property
    def batch_idx(self) -> int:
        """Index of its batch in the epoch."""
        index: int = self._values["batch_idx"]
        return index

    @property
    def is_updated(self) -> bool:
        """Whether its optimizer has stepped."""
        return bool(self._values["update_taken"])

    @property
    def is_skipped(self) -> bool:
        """Whether the update is held back."""
        return self._values.get("skipped_by") is not None

    @property
    def grad_norm(self) -> float | None:
        """L2 norm of all gradients before clipping, None if not measured."""
        norm: float | None = self._values.get("grad_norm")
        return norm

    @property
    def grad_max(self) -> float | None:
        """Largest absolute value of a gradient element, None if not measured."""
        largest: float | None = self._values.get("grad_max")
        return largest

    @property
    def clip_val(self) -> float | None:
        """The clip value in force, None without clipping."""
        value: float | None = self._values.get("clip_val")
        return value

    @property
    def clip_algorithm(self) -> str | None:
        """The clip algorithm in force, None without clipping."""
        algorithm: str | None = self._values.get("clip_algorithm")
        return algorithm

    @property
    def nonfinite_weights(self) -> int | None:
        """Number of parameters that are not finite after the update, None if not measured."""
        count: int | None = self._values.get("nonfinite_weights")
        return count

    @property
    def grad_norm_each(self) -> FloatArray:
        """L2 norm of each gradient before clipping, shape ``(parameters,)``."""
        return self._per_parameter["grad_norm"]

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Raise the record's severity to that of the worst finding."""
        worst = max((int(finding.severity) for finding in findings), default=0)
        if worst > self.severity:
            self._values["severity"] = worst

    def norm_on_device(self) -> Tensor | None:
        """Return the L2 norm of all gradients on their device, unscaled; None where the device cannot know it."""
        copies = self.parameters.shards.copies
        if copies is None:
            device = self.parameters.tensors[0].device
            norms = self.reading.gradients.norms_on_device(device)
        elif self.gathered_norms is None or len(set(copies)) > 1:
            return None
        else:
            norms = self.gathered_norms / float(copies[0]) ** 0.5
        total: Tensor = torch.linalg.vector_norm(norms)
        return total

    # What is measured before the update.

    def set_gradient_norms(self, norms: Norms) -> None:
        """Set the norms of the gradients, and the numbers of their elements that are not finite where counted."""
        count = norms.nonfinite_total
        self._values["grad_norm"] = norms.total
        self._values["nonfinite_count"] = count
        self._put("grad_norm", norms.each)
        if count is not None:
            self._put("nonfinite_count", norms.nonfinite)

    def measure_start(self) -> None:
        """Measure the weights before the run's first step."""
        self._set_weights_before(norms_of(self.parameters, self.parameters.tensors))

    def measure_gradients(self, clips_by_value: bool) -> None:
        """Measure what a step that is logged, or clipped by value, needs besides the gradients' norms."""
        early = self.reading.gradients.details
        if not self.gradients_intact and early is None:
            return
        if self.scalars_due and not self._has_details:
            self._has_details = True
            if self.reading.gradients.torch_total is not None:  # measured by torch's less exact kernel
                self.set_gradient_norms(norms_of(self.parameters, self.parameters.gradients, self.scale))
            self._set_details(early or GradientDetails.of(self.parameters, self.scale))
        elif self.gradients_intact and clips_by_value and self.grad_max is None:
            local = measure_maxima(self.parameters.gradients, self.scale)
            self._set_maxima(self.parameters.shards.maxima_and_sums(local, np.zeros_like(local))[0])

    def measure_again(self) -> None:
        """Measure the gradients as they are now, in place of those that were measured before."""
        self.set_gradient_norms(norms_of(self.parameters, self.parameters.gradients, self.scale))
        if self._has_details:
            self._set_details(GradientDetails.of(self.parameters, self.scale))

    def _set_details(self, local: GradientDetails) -> None:
        """Set the largest absolute values, and the share of each gradient's elements with one of 1.0 and more."""
        maxima, counts = self.parameters.shards.maxima_and_sums(local.maxima, local.above_one)
        self._set_maxima(maxima)
        self._put("share_above_one", counts / [max(parameter.numel(), 1) for parameter in self.parameters.tensors])

    def _set_maxima(self, maxima: FloatArray) -> None:
        self._values["grad_max"] = float(np.max(maxima, initial=0.0))  # NaN wins over all
        self._put("grad_max", maxima)

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

    # What is measured after the update.

    def measure_clipped(self, may_be_clipped: bool) -> None:
        """Measure the gradients after clipping, if they are logged; where nothing clips they are the same."""
        if not self.scalars_due or self.evaluations > 1:
            return
        if may_be_clipped:
            norms = norms_of(self.parameters, self.parameters.gradients)
            self.set_clipped_norms(norms.total, norms.each)
        elif self.phase is not Phase.COLLECTING:
            self.set_unclipped()

    def set_unclipped(self) -> None:
        """Set the norms after clipping to those before it."""
        self.set_clipped_norms(self.grad_norm, self._per_parameter["grad_norm"])

    def set_clipped_norms(self, total: float | None, each: FloatArray) -> None:
        """Set the gradients' norms after clipping."""
        self._values["grad_norm_clipped"] = total
        self._put("grad_norm_clipped", each)

    def measure_weights(self) -> None:
        """Measure the weights after the update, and their change where they were kept before it, if that is due."""
        detectors = self.state.detectors
        if self.phase is Phase.COLLECTING and self.parameters.shards.copies is not None:
            return  # until the exchange of the step is read
        if self._weights_before is not None:
            self._measure_weight_change(self._weights_before)
            self._weights_before = None
        elif detectors.expects_weights if self.phase is Phase.COLLECTING else detectors.wants_weights:
            self._set_weights(norms_of(self.parameters, self.parameters.tensors))

    def _measure_weight_change(self, before: WeightCopy | WeightSample) -> None:
        change = before.change(self.parameters.tensors, self.parameters.shards)
        self._set_weights(change.weights)
        self._set_weights_before(change.before)
        self._values["update_ratio"] = change.update_ratio
        self._put("update_ratio", change.update_ratio_each)
        if self.histograms_due:
            if change.differences:
                self._set_histograms("update", shown_histograms(self.parameters, change.differences))
            self._set_histograms("weight", shown_histograms(self.parameters, self.parameters.tensors))

    def _set_weights(self, norms: Norms) -> None:
        self._values["weight_norm"] = norms.total
        self._values["nonfinite_weights"] = int((norms.nonfinite > 0).sum())
        self._put("weight_norm", norms.each)

    def _set_weights_before(self, norms: Norms) -> None:
        self._values["weight_norm_before"] = norms.total
        self._values["weight_count"] = sum(tensor.numel() for tensor in self.parameters.tensors)
        self._put("weight_norm_before", norms.each)

    # Small things.

    def _put(self, quantity: str, each: FloatArray) -> None:
        each.setflags(write=False)  # records go to detectors, policies and responses of users,
        self._per_parameter[quantity] = each.view()  # and a view cannot be made writeable again

    def _set_histograms(self, quantity: str, local: Mapping[str, Histogram]) -> None:
        """Set histograms of what this process holds of each parameter."""
        whole = local if self.parameters.shards.copies is None else _unsharded(local, self.parameters)
        self._histograms[quantity] = MappingProxyType(dict(whole))


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
