"""The gradients of one optimizer step: their norms, and whether they are still those that were measured."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.distributed.shard_layout import version_of
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.measure.gradient_details import GradientDetails
from lightning_gradexplode.measure.norm_plan import SINGLE_RANGE
from lightning_gradexplode.measure.norms import PendingNorms, start_norms
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, IntArray, Norms

_version = operator.attrgetter("_version")


class GradientReading(PendingNorms):
    """Norms of gradients in transfer to the host, and whether the gradients are still those that were measured.

    Args:
        gradients: The gradients.
        places: Places of the measured ones among them.
        least: The least norms that can be relied on, shape ``(places,)``.
        measured: Their norms, on the device, or as an array on the host.
        scalars: Real tensors of one element that are read in the same transfer.
        starts: Whether the transfer starts now; else with `start`, or once something is read.
        scale: What the gradients are multiplied by; a tensor is one of the scalars too, the last one.
        torch_total: The norm of all as ``torch.nn.utils.get_total_norm`` gives it, to the last bit; None if the norms
            were measured by our own kernel, which is the more exact one.

    Attributes:
        any: Whether there is any gradient at all.
        details: What else was measured of them at the same time; None if nothing was.
    """

    def __init__(
        self,
        gradients: Sequence[Tensor | None],
        places: IntArray,
        least: FloatArray,
        measured: Sequence[Tensor] | FloatArray,
        scalars: Sequence[Tensor] = (),
        starts: bool = True,
        scale: float | Tensor = 1.0,
        torch_total: Tensor | None = None,
    ) -> None:
        super().__init__(gradients, places, least, measured, scalars, starts)
        self.gradients = gradients
        self.torch_total = torch_total
        self.details: GradientDetails | None = None
        self._scale = scale
        self._versions = _versions(gradients)
        self.any = bool(self._versions)

    def norms(self, intact: bool = True) -> Norms:
        """Wait for the norms, and return them with the scale divided out.

        Args:
            intact: Whether the gradients are as they were measured; if not, what is not finite cannot be counted.
        """
        norms = super().norms(intact)
        scale = self.scalars[-1] if isinstance(self._scale, Tensor) else self._scale
        return norms if scale == 1.0 else norms.divided_by(scale)

    def norms_on_device(self, device: torch.device) -> Tensor:
        """Return the norms, with the scale divided out, without a wait for the device; 0 for a missing gradient.

        Args:
            device: Where to.

        Returns:
            Shape ``(parameters,)`` in the widest type of the device; what is negative is no norm, see `NormPlan`.
        """
        wide = reading.widest_type(device)
        if not self.measured:
            return torch.from_numpy(self.norms().each.copy()).to(device, wide)
        zero = torch.zeros((), dtype=wide, device=device)
        each = [zero] * len(self.gradients)
        measured = (one for part in self.measured for one in part.to(device, wide).unbind())
        for place, norm in zip(self.places.tolist(), measured, strict=True):
            each[place] = norm
        stacked = torch.stack(each) if each else zero.new_zeros(0)
        return stacked / self._scale.to(device, wide) if isinstance(self._scale, Tensor) else stacked

    def total_on_device(self, device: torch.device) -> Tensor:
        """Return the norm of all gradients, with the scale divided out, without a wait for the device."""
        wide = reading.widest_type(device)
        if not self.measured:
            return torch.tensor(self.norms().total, dtype=wide, device=device)
        with torch.no_grad():
            total = _total([part.to(device, wide) for part in self.measured])
            return total / self._scale.to(device, wide) if isinstance(self._scale, Tensor) else total

    def unless_clipped(self, before: GradientReading) -> GradientReading | None:
        """Choose on the device between these norms and those of the same gradients before they may have been clipped.

        Returns:
            The earlier norms where their total is larger, or where neither is finite, with the scalars of these;
            gradients that were cleaned or added to count as they are. None where the choice is the host's.
        """
        pairs = list(zip(before.measured, self.measured, strict=False))
        are_alike = np.array_equal(before.places, self.places) and len(before.measured) == len(self.measured)
        if not pairs or not are_alike or any(one.shape != other.shape for one, other in pairs):
            return None
        if self.has_started or before.has_started:
            return None
        with torch.no_grad():
            total, now = _total(before.measured), _total(self.measured)
            clipped = torch.where(total.isfinite(), now < total, ~now.isfinite())
            norms = [torch.where(clipped.to(one.device), one, other) for one, other in pairs]
        chosen = GradientReading(
            self.gradients, self.places, self._least, norms, self._scalars, starts=False, scale=self._scale
        )
        chosen._versions = [-1]  # which gradients these norms are of is not known before they are read
        return chosen

    @classmethod
    def take(
        cls,
        parameters: ParameterSet,
        scale: float | Tensor = 1.0,
        scalars: Sequence[Tensor] = (),
        starts: bool = True,
    ) -> GradientReading:
        """Measure the gradients as they lie in memory now, with one read from the device.

        Args:
            parameters: Whose gradients.
            scale: What they are multiplied by; a tensor of one element is read from the device along with the norms.
            scalars: Tensors of one element that are read along with them.
            starts: Whether the transfer to the host starts now; else with `start`, or once something is read.
        """
        gradients = parameters.gradients
        if isinstance(scale, Tensor):
            scalars = [*scalars, scale]
        return cls(gradients, *parameters.gradient_plan.measure(gradients), scalars, starts, scale)

    @classmethod
    def take_with_torch_kernel(cls, parameters: ParameterSet, scalars: Sequence[Tensor] = ()) -> GradientReading:
        """Measure unscaled gradients by the kernel that torch clips by, so that a clip need not measure them again.

        The norms are as exact as float32 sums are: off by up to 2e-4 in tensors of millions of elements.
        """
        gradients = parameters.gradients
        if not is_torch_list(gradients):
            return cls.take(parameters, scalars=scalars)
        present = {place: gradient for place, gradient in enumerate(gradients) if gradient is not None}
        with torch.no_grad():
            norms = torch.stack(torch._foreach_norm(list(present.values()), 2.0))
            total = torch.linalg.vector_norm(norms, 2.0)
        # A second look at what may have underflowed is for the host only; an accelerator would have to be waited for.
        least = np.full(len(present), SINGLE_RANGE if reading.is_on_host(norms) else 0.0)
        return cls(gradients, np.array(list(present)), least, [norms], scalars, torch_total=total)

    def holds(self, parameters: ParameterSet) -> bool:
        """Return whether the gradients are the same tensors, not written to since.

        A gradient scaler's ``unscale_`` does not count: torch increments no version for it.
        """
        now = parameters.gradients
        same = len(now) == len(self.gradients) and all(map(operator.is_, now, self.gradients))
        return same and _versions(now) == self._versions


def _versions(gradients: Sequence[Tensor | None]) -> list[int]:
    if set(map(type, gradients)) == {Tensor}:  # as nearly always; without Python code for each gradient
        return list(map(_version, gradients))
    return [version_of(one) for one in gradients if one is not None]


def is_torch_list(gradients: Sequence[Tensor | None]) -> bool:
    """Return whether ``clip_grad_norm_`` takes gradients as one list of dense float32 tensors on one device."""
    present = [gradient for gradient in gradients if gradient is not None]
    kinds = {(gradient.dtype, gradient.device) for gradient in present}
    return kinds == {(torch.float32, present[0].device)} and all(map(is_plain, present)) if present else False


def _total(norms: Sequence[Tensor]) -> Tensor:
    """Return the norm of all tensors, given the norms of each, on the device of the first ones."""
    total: Tensor = torch.linalg.vector_norm(torch.cat([part.to(norms[0].device) for part in norms]))
    return total


def norms_of(parameters: ParameterSet, tensors: Sequence[Tensor | None], divisor: float = 1.0) -> Norms:
    """Measure something of all parameters, such as their gradients or themselves, on all processes together.

    Args:
        parameters: The parameters.
        tensors: What to measure, one for each of them.
        divisor: What the norms are divided by: the scale of a gradient scaler.
    """
    local = start_norms(tensors, (), parameters.gradient_plan).norms()
    return parameters.shards.norms(local.divided_by(divisor))
