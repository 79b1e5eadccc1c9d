"""Losses that wait for a backward pass, in loops that announce each loss; in runs of one process only."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_gradexplode.distributed.shard_layout import readable
from lightning_gradexplode.engine.accumulation import host_number
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.left_out import LeftOutSteps, left_out_record
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.measure.reading import read

MAX_EXPECTED = 8
"""Largest number of losses that wait for a backward pass; of more, the oldest counts as left out."""


class Expected(NamedTuple):
    """A loss that waits for its backward pass.

    Args:
        value: The loss without its graph.
        graph: A weak reference to an object that lives as long as the graph of the loss.
        step: The step that it belongs to.
        batch_idx: Index of its batch.
        inputs: The inputs of that batch.
    """

    value: Tensor
    graph: weakref.ref[Any]
    step: int
    batch_idx: int
    inputs: StepInputs | None


class ExpectedLosses:
    """Notes losses that a backward pass is expected of, and finds those that are not finite and that none has reached.

    Args:
        components: The components of the run.
        left_out: Reports them.
    """

    def __init__(self, components: Components, left_out: LeftOutSteps) -> None:
        self._components = components
        self._left_out = left_out
        self._expected: list[Expected] = []

    def expect(self, loss: Tensor, graph: object) -> None:
        """Note a loss that a backward pass is expected of.

        Args:
            loss: The loss.
            graph: An object that lives as long as the graph of the loss.
        """
        components = self._components
        own = readable(loss.detach())
        if components.is_distributed or loss.numel() != 1 or own is None:
            return
        value = host_number(loss)
        if value is not None and not math.isfinite(value):
            components.graphs.read(loss, value)  # there may be no backward pass in which it could be read
        step, batch_idx, inputs = components.loop.step, components.batch.index, components.inputs.current
        self._expected.append(Expected(own, weakref.ref(graph), step, batch_idx, inputs))

    def reached(self, graph: object) -> None:
        """Note that a backward pass has reached the loss of a graph."""
        self._expected = [one for one in self._expected if one.graph() is not graph]

    def take_nonfinite(self, are_over: bool = False) -> list[Expected]:
        """Remove and return the losses that are not finite and that no backward pass can reach any more.

        Args:
            are_over: Whether no backward pass will follow, whatever is still in memory.
        """
        kept = [] if are_over else [one for one in self._expected if one.graph() is not None][-MAX_EXPECTED:]
        identities = set(map(id, kept))  # to compare them would compare the losses, and wait for an accelerator
        losses = [one for one in self._expected if id(one) not in identities]
        self._expected = kept
        return [one for one in losses if not math.isfinite(float(read([one.value])[0]))]

    def report(self, losses: Sequence[Expected]) -> None:
        """Report losses that are not finite and that no backward pass has reached."""
        for one in losses:
            self._left_out.report(left_out_record(one.step, one.batch_idx, float(one.value)), one.inputs)
