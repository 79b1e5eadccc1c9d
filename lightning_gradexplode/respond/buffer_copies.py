"""Copies of the buffers after each step, to undo the changes by the forward pass of a skipped step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_gradexplode.respond.buffers import Buffer, buffers_of, is_alike, is_finite

Copies = dict[Buffer, Tensor]


class BufferCopies:
    """Copies of the buffers that training changes, as they were after the last step.

    A skipped update does not change the weights, but the forward pass has already changed the running averages. If
    these are not finite, the buffers of their module are restored.

    All buffers are copied at the start. After the first step those that it has not changed are dropped, except those of
    normalization layers, whose averages may be frozen at first. From then on a step costs one copy of the others.

    Args:
        network: The network.
        averages: Returns modules whose buffers are averages of those of the network, by name.
    """

    def __init__(self, network: nn.Module, averages: Callable[[], Mapping[str, nn.Module]] = dict) -> None:
        self._network = network
        self._averages = averages
        self._last: Copies = {}  # after the last step
        self._before_last: Copies = {}  # after the step before that one
        self._was_finite: dict[Buffer, bool] = {}  # at the start
        self._knows_changing = False  # whether buffers that training does not change were dropped

    def start(self) -> None:
        """Copy all buffers, at the start of a fit."""
        with torch.no_grad():
            buffers = self._all_buffers()
            self._last = {buffer: buffer.local.clone() for buffer in buffers}
            self._was_finite = {buffer: is_finite(buffer.tensor) for buffer in buffers}
        self._knows_changing = False

    def clear(self) -> None:
        """Drop all copies."""
        self._last, self._before_last, self._was_finite = {}, {}, {}

    def update(self, keeps_last: bool = False) -> None:
        """Copy the buffers, at the end of a step.

        Args:
            keeps_last: Whether the copies of the step before are kept too, since it is not known yet whether this step
                has left the buffers finite.
        """
        with torch.no_grad():
            if not self._knows_changing:
                self._last = {buffer: copy for buffer, copy in self._last.items() if _may_change(buffer, copy)}
                self._knows_changing = True
            elif keeps_last:
                reused = self._before_last or {buffer: copy.clone() for buffer, copy in self._last.items()}
                self._last, self._before_last = reused, self._last
            _copy_into(self._last)

    def restore(self) -> tuple[list[str], list[str]]:
        """Restore the buffers of each module of which one is not finite.

        Returns:
            Names of the buffers that were not finite and are restored, and of those that are still not finite, since
            there is no copy of them.
        """
        with torch.no_grad():
            buffers = self._all_buffers()
            bad = [buffer for buffer in buffers if self._is_wrongly_nonfinite(buffer, buffer.local)]
            for module in dict.fromkeys(buffer.module for buffer in bad):
                of_module = [buffer for buffer in buffers if buffer.module is module]
                for buffer, copy in self._latest_finite(of_module).items():
                    buffer.write(copy)
            is_restored = {buffer: is_finite(buffer.tensor) for buffer in bad}
        restored = [buffer.name for buffer in bad if is_restored[buffer]]
        not_restored = [buffer.name for buffer in bad if not is_restored[buffer]]
        return restored, not_restored

    def nonfinite_names(self) -> list[str]:
        """Return the names of the buffers of the network that are not finite but should be."""
        with torch.no_grad():
            return [one.name for one in buffers_of(self._network) if self._is_wrongly_nonfinite(one, one.local)]

    def _all_buffers(self) -> list[Buffer]:
        averaged = [buffer for name, module in self._averages().items() for buffer in buffers_of(module, name)]
        return [*buffers_of(self._network), *averaged]

    def _latest_finite(self, buffers: Sequence[Buffer]) -> Copies:
        """Return the latest copies of the buffers of a module that are all finite where they should be."""
        for copies in (self._last, self._before_last):
            known = {buffer: copies[buffer] for buffer in buffers if buffer in copies}
            if not any(self._is_wrongly_nonfinite(buffer, copy) for buffer, copy in known.items()):
                return known
        return {}

    def _is_wrongly_nonfinite(self, buffer: Buffer, values: Tensor) -> bool:
        """Return whether values of a buffer are not finite but should be; a mask of infinities need not be."""
        if is_finite(values):
            return False
        is_new_and_bad = buffer.is_of_normalization or bool(torch.isnan(values).any())
        return self._was_finite.get(buffer, is_new_and_bad)


def _may_change(buffer: Buffer, copy: Tensor) -> bool:
    """Return whether training changes a buffer, by a copy from before the first step."""
    local = buffer.local
    return buffer.is_of_normalization or not (is_alike(copy, local) and torch.equal(copy, local))


def _copy_into(copies: Copies) -> None:
    """Write the present values into the copies, with one kernel for each type; buffers of a new shape are cloned."""
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for buffer, copy in copies.items():
        local = buffer.local
        if is_alike(copy, local):
            pairs[copy.dtype].append((copy, local))
        else:
            copies[buffer] = local.clone()
    for same_type in pairs.values():
        torch._foreach_copy_([copy for copy, _ in same_type], [local for _, local in same_type])
