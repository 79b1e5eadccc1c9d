"""All that is measured of one optimizer step, by one object that is there once per optimizer."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from lightning_gradexplode.measure.histograms import measure_histograms
from lightning_gradexplode.measure.maxima import count_at_least, measure_maxima
from lightning_gradexplode.measure.norms import PendingNorms, is_torch_list, start_norms, start_torch_norms
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.sample import WeightSample
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.records import FloatArray, Histogram, Norms, StepRecord


class GradientReading:
    """Norms of gradients, and what is needed to tell whether the gradients are still those that were measured.

    Args:
        gradients: The gradients.
        pending: Their norms, and other numbers that are read along with them.
        divisor: What the gradients are multiplied by; None if that is the last of the other numbers.
        torch_total: The norm of all as ``torch.nn.utils.get_total_norm`` gives it, to the last bit; None if the norms
            were measured by our own kernel, which is the more exact one.
    """

    def __init__(
        self,
        gradients: Sequence[Tensor | None],
        pending: PendingNorms,
        divisor: float | None = 1.0,
        torch_total: Tensor | None = None,
    ) -> None:
        self.gradients = gradients
        self.torch_total = torch_total
        self._pending = pending
        self._divisor = divisor
        self._versions = _versions(gradients)

    @property
    def any(self) -> bool:
        """Whether there is any gradient at all."""
        return any(gradient is not None for gradient in self.gradients)

    @property
    def is_there(self) -> bool:
        """Whether nobody has to wait for an accelerator to be given the numbers."""
        return self._pending.is_there

    @property
    def scalars(self) -> FloatArray:
        """The other numbers."""
        return self._pending.scalars if self._divisor is not None else self._pending.scalars[:-1]

    @property
    def norms(self) -> Norms:
        """The norms, with the scale divided out, of gradients that still are as they were measured."""
        return self.finish(intact=True)

    def finish(self, intact: bool) -> Norms:
        """Give the norms, with the scale divided out.

        Args:
            intact: Whether the gradients still are as they were measured; if not, what is not finite is not counted.
        """
        divisor = float(self._pending.scalars[-1]) if self._divisor is None else self._divisor
        return self._pending.norms(intact).divided_by(divisor)

    @classmethod
    def take(
        cls, parameters: ParameterSet, scale: float | Tensor = 1.0, scalars: Sequence[Tensor] = ()
    ) -> GradientReading:
        """Measure the gradients as they lie in memory now, with one read from the device.

        Args:
            parameters: Whose gradients.
            scale: What they are multiplied by; a tensor of one element is read from the device along with the norms.
            scalars: Tensors of one element that are read along with them.
        """
        gradients = parameters.gradients
        if isinstance(scale, Tensor):
            return cls(gradients, start_norms(gradients, [*scalars, scale], parameters.gradient_plan), None)
        return cls(gradients, start_norms(gradients, scalars, parameters.gradient_plan), scale)

    @classmethod
    def take_as_torch_does(cls, parameters: ParameterSet, scalars: Sequence[Tensor] = ()) -> GradientReading:
        """Measure unscaled gradients by the very kernel that torch clips by, so that a clip need not measure them anew.

        In tensors of millions of elements these norms are off by up to 2e-4, being float32 sums.
        """
        gradients = parameters.gradients
        if not is_torch_list(gradients):
            return cls.take(parameters, scalars=scalars)
        pending, total = start_torch_norms(gradients, scalars)
        return cls(gradients, pending, torch_total=total)

    def holds(self, parameters: ParameterSet) -> bool:
        """Tell whether the gradients are the same tensors, not written to since.

        A gradient scaler's ``unscale_`` does not count: torch raises no version for it.
        """
        now = parameters.gradients
        same = len(now) == len(self.gradients) and all(map(operator.is_, now, self.gradients))
        return same and _versions(now) == self._versions


def _versions(gradients: Sequence[Tensor | None]) -> list[int]:
    return [gradient._version for gradient in gradients if gradient is not None]


def norms_of(parameters: ParameterSet, tensors: Sequence[Tensor | None], divisor: float = 1.0) -> Norms:
    """Measure something of all parameters, such as their gradients or themselves, on all processes together.

    Args:
        parameters: The parameters.
        tensors: What to measure, one for each of them.
        divisor: What the norms are divided by: the scale of a gradient scaler.
    """
    local = start_norms(tensors, (), parameters.gradient_plan).norms()
    return parameters.shards.norms(local.divided_by(divisor))


def with_gradient_norms(record: StepRecord, norms: Norms, **fields: Any) -> StepRecord:
    """Put the norms of the gradients into a record.

    Args:
        record: The record.
        norms: The norms.
        **fields: What else of the record is known by now; at every step a second copy of it would cost as much again.
    """
    count = norms.nonfinite_total
    counts = {} if count is None else {"nonfinite_count": norms.nonfinite}
    return replace(
        record,
        grad_norm=norms.total,
        nonfinite_count=count,
        per_parameter={**record.per_parameter, "grad_norm": norms.each, **counts},
        **fields,
    )


def with_details(record: StepRecord, parameters: ParameterSet, scale: float) -> StepRecord:
    """Add what is logged of the gradients besides their norms to a record.

    These are the largest absolute values, and the share of each gradient's elements with one of 1.0 and more.
    """
    gradients = parameters.gradients
    maxima, counts = measure_maxima(gradients, scale), np.zeros(len(gradients))
    # A gradient whose maximum is below 1.0 needs no counting.
    above = {n: one for n, one in enumerate(gradients) if one is not None and not maxima[n] < 1.0}
    counts[list(above)] = count_at_least(list(above.values()), scale)
    maxima, counts = parameters.shards.maxima_and_sums(maxima, counts)
    shares = counts / [max(parameter.numel(), 1) for parameter in parameters.tensors]
    return replace(
        record,
        grad_max=float(np.max(maxima, initial=0.0)),  # NaN wins over all
        per_parameter={**record.per_parameter, "grad_max": maxima, "share_above_one": shares},
    )


def with_maxima(record: StepRecord, parameters: ParameterSet, scale: float) -> StepRecord:
    """Add the largest absolute values of the gradients to a record."""
    local = measure_maxima(parameters.gradients, scale)
    maxima, _ = parameters.shards.maxima_and_sums(local, np.zeros_like(local))
    grad_max = float(np.max(maxima, initial=0.0))
    return replace(record, grad_max=grad_max, per_parameter={**record.per_parameter, "grad_max": maxima})


def with_clipped_norm(record: StepRecord, norms: Norms | None) -> StepRecord:
    """Add the gradients' norms after clipping to a record; None if nothing was clipped, so that they are the same."""
    total, each = (record.grad_norm, record.per_parameter["grad_norm"]) if norms is None else (norms.total, norms.each)
    return replace(record, grad_norm_clipped=total, per_parameter={**record.per_parameter, "grad_norm_clipped": each})


def with_weights(record: StepRecord, norms: Norms) -> StepRecord:
    """Add the weights' norms after the step to a record."""
    return replace(
        record,
        weight_norm=norms.total,
        nonfinite_weights=int((norms.nonfinite > 0).sum()),
        per_parameter={**record.per_parameter, "weight_norm": norms.each},
    )


def with_weights_before(record: StepRecord, parameters: ParameterSet, norms: Norms) -> StepRecord:
    """Add the weights' number, and their norms before the step, to a record."""
    return replace(
        record,
        weight_norm_before=norms.total,
        weight_count=sum(tensor.numel() for tensor in parameters.tensors),
        per_parameter={**record.per_parameter, "weight_norm_before": norms.each},
    )


def with_weight_change(
    record: StepRecord, parameters: ParameterSet, copy: WeightCopy | WeightSample, histograms: bool
) -> StepRecord:
    """Add the weights' norms and their change by the step to a record, with histograms of both if they are due."""
    change = copy.change(parameters.tensors, parameters.shards)
    record = with_weights_before(with_weights(record, change.weights), parameters, change.before)
    record = replace(
        record,
        update_ratio=change.update_ratio,
        per_parameter={**record.per_parameter, "update_ratio": change.update_ratio_each},
    )
    if not histograms:
        return record
    if change.differences:
        record = with_histograms(record, "update", parameters, change.differences)
    return with_histograms(record, "weight", parameters, parameters.tensors)


def with_histograms(
    record: StepRecord,
    quantity: str,
    parameters: ParameterSet,
    tensors: Sequence[Tensor | None],
    scale: float = 1.0,
) -> StepRecord:
    """Add a histogram of each shown parameter's tensor to a record."""
    chosen = {
        name: tensor
        for name, tensor, shown in zip(parameters.names, tensors, parameters.shown, strict=True)
        if shown and tensor is not None
    }
    measured = dict(zip(chosen, measure_histograms(list(chosen.values()), scale), strict=True))
    if parameters.shards.copies is not None:
        measured = _whole_histograms(measured, parameters)
    return replace(record, histograms={**record.histograms, quantity: measured})


def _whole_histograms(measured: dict[str, Histogram], parameters: ParameterSet) -> dict[str, Histogram]:
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
