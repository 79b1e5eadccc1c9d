"""The gradients of one optimizer step: their norms, and whether they are still those that were measured."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradexplode.distributed.shard_layout import version_of
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.details import GradientDetails
from lightning_gradexplode.measure.norms import PendingNorms, is_torch_list, start_norms, start_torch_norms
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, Norms


class GradientReading:
    """Norms of gradients, and what is needed to decide whether the gradients are still those that were measured.

    Args:
        gradients: The gradients.
        pending: Their norms, and other numbers that are read along with them.
        divisor: What the gradients are multiplied by; None if that is the last of the other numbers.
        scale: The same as a tensor on its device, where it is one of the other numbers.
        torch_total: The norm of all as ``torch.nn.utils.get_total_norm`` gives it, to the last bit; None if the norms
            were measured by our own kernel, which is the more exact one.

    Attributes:
        details: What else was measured of them at the same time; None if nothing was.
    """

    def __init__(
        self,
        gradients: Sequence[Tensor | None],
        pending: PendingNorms,
        divisor: float | None = 1.0,
        torch_total: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        self.gradients = gradients
        self._scale = scale
        self.torch_total = torch_total
        self._pending = pending
        self._divisor = divisor
        self._versions = _versions(gradients)
        self.details: GradientDetails | None = None

    @property
    def any(self) -> bool:
        """Whether there is any gradient at all."""
        return bool(self._versions)

    @property
    def is_there(self) -> bool:
        """Whether the numbers are there without waiting for an accelerator."""
        return self._pending.is_there

    def norms_on_device(self, device: torch.device) -> Tensor:
        """Return the norms, with the scale divided out, without a wait for the device; 0 for a missing gradient.

        Args:
            device: Where to.

        Returns:
            Shape ``(parameters,)`` in the widest type of the device; what is negative is no norm, see `NormPlan`.
        """
        wide = reading.widest_type(device)
        if not self._pending.measured:
            return torch.from_numpy(self.norms.each.copy()).to(device, wide)
        zero = torch.zeros((), dtype=wide, device=device)
        each = [zero] * len(self.gradients)
        measured = (one for part in self._pending.measured for one in part.to(device, wide).unbind())
        for place, norm in zip(self._pending.places.tolist(), measured, strict=True):
            each[place] = norm
        stacked = torch.stack(each) if each else zero.new_zeros(0)
        return stacked if self._scale is None else stacked / self._scale.to(device, wide)

    def unless_clipped(self, before: GradientReading) -> GradientReading | None:
        """Choose on the device between these norms and those of the same gradients before they may have been clipped.

        Returns:
            The earlier norms where they are larger in all, or where neither are finite; gradients that were cleaned or
            added to count as they are. None where the choice is the host's.
        """
        pending = self._pending.unless_clipped(before._pending)
        if pending is None:
            return None
        chosen = GradientReading(self.gradients, pending, self._divisor, scale=self._scale)
        chosen._versions = [-1]  # which gradients these norms are of is not known before they are read
        return chosen

    def start(self, more: Sequence[Tensor]) -> bool:
        """Start the transfer to the host, with further tensors in it; return whether it had not started before."""
        return self._pending.start(more)

    @property
    def more(self) -> FloatArray:
        """The further tensors that were given to `start`."""
        return self._pending.more

    @property
    def scalars(self) -> FloatArray:
        """The other numbers."""
        return self._pending.scalars if self._divisor is not None else self._pending.scalars[:-1]

    @property
    def norms(self) -> Norms:
        """The norms, with the scale divided out, of gradients that still are as they were measured."""
        return self.finish(intact=True)

    def finish(self, intact: bool) -> Norms:
        """Return the norms, with the scale divided out.

        Args:
            intact: Whether the gradients still are as they were measured; if not, what is not finite is not counted.
        """
        divisor = float(self._pending.scalars[-1]) if self._divisor is None else self._divisor
        norms = self._pending.norms(intact)
        return norms if divisor == 1.0 else norms.divided_by(divisor)

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
        gradients, plan = parameters.gradients, parameters.gradient_plan
        if isinstance(scale, Tensor):
            return cls(gradients, start_norms(gradients, [*scalars, scale], plan, starts), None, scale=scale)
        return cls(gradients, start_norms(gradients, scalars, plan, starts), scale)

    @classmethod
    def take_as_torch_does(cls, parameters: ParameterSet, scalars: Sequence[Tensor] = ()) -> GradientReading:
        """Measure unscaled gradients by the kernel that torch clips by, so that a clip need not measure them again.

        In tensors of millions of elements these norms are off by up to 2e-4, being float32 sums.
        """
        gradients = parameters.gradients
        if not is_torch_list(gradients):
            return cls.take(parameters, scalars=scalars)
        pending, total = start_torch_norms(gradients, scalars)
        return cls(gradients, pending, torch_total=total)

    def holds(self, parameters: ParameterSet) -> bool:
        """Return whether the gradients are the same tensors, not written to since.

        A gradient scaler's ``unscale_`` does not count: torch increments no version for it.
        """
        now = parameters.gradients
        same = len(now) == len(self.gradients) and all(map(operator.is_, now, self.gradients))
        return same and _versions(now) == self._versions


def _versions(gradients: Sequence[Tensor | None]) -> list[int]:
    # No call for a plain tensor: there is one of them for each parameter at each step.
    return [one._version if type(one) is Tensor else version_of(one) for one in gradients if one is not None]


def norms_of(parameters: ParameterSet, tensors: Sequence[Tensor | None], divisor: float = 1.0) -> Norms:
    """Measure something of all parameters, such as their gradients or themselves, on all processes together.

    Args:
        parameters: The parameters.
        tensors: What to measure, one for each of them.
        divisor: What the norms are divided by: the scale of a gradient scaler.
    """
    local = start_norms(tensors, (), parameters.gradient_plan).norms()
    return parameters.shards.norms(local.divided_by(divisor))
