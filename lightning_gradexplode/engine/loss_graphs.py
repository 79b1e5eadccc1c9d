"""Facts from the autograd graphs of losses, for training loops that cannot compute a step again."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from lightning_gradexplode.diagnose.graph import (
    NO_LINE,
    GraphFacts,
    GraphFault,
    Loss,
    SavedTensorHooks,
    common_rows,
    facts_of_loss,
    fault_in_graph,
    is_the_same_within_a_mode,
    values_are_readable,
)
from lightning_gradexplode.engine.accumulation import is_real_number
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.incidents import CALM_STEPS
from lightning_gradexplode.engine.later_batches import LaterBatches, with_operation
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records import BatchFacts, FieldFacts, LossTerm, Operation, Replay
from lightning_gradexplode.records.log import logger

MAX_GRAPHS = 8
"""Largest number of graphs read in a run: of losses that are not finite, and again of losses after explosions."""


WITHOUT_VALUES = (
    "gradexplode: values in the graph of a loss are not read (%s), so that fewer causes are named; pass step= and "
    "watch.batch(batch) to have a failing step computed again, or use a newer version of torch"
)
"""What is logged once where the first graph is read, and no step can be computed again."""


class LossGraphs:
    """Reads the graphs of the first loss, of the first losses that are not finite, and of one after each explosion.

    Args:
        loop: The training loop.
        is_on: Whether graphs are read at all.

    Attributes:
        is_calm: Whether a loss is of interest only if it is not finite: the loss before was finite, and no graph is
            wanted.
        first: What the graph of the first loss shows; nothing before it is read.
        has_found: Whether the operation that made the data of an incident non-finite was found in a later batch, which
            is still to be published.
    """

    def __init__(self, loop: TrainingLoop, is_on: bool) -> None:
        self._loop = loop
        self._is_on = is_on
        self._hooks = SavedTensorHooks(is_on)
        self._count = self._requests = 0
        self.is_calm = False
        self._was_finite = True
        self._is_requested = False
        self.first = GraphFacts()
        self._later_divisors: tuple[int, tuple[float, ...] | None] = (-1, None)
        self._later: tuple[int, GraphFacts] = (-1, GraphFacts())
        self._faults: dict[int, GraphFault] = {}
        self._first_step = -1
        self._last_nonfinite: int | None = None
        self._later_batches = LaterBatches()
        self.has_found = False

    def request(self) -> None:
        """Have the graph of the next loss read, to compare it with that of the first one; up to `MAX_GRAPHS` times."""
        if self._requests < MAX_GRAPHS:
            self._requests += 1
            self._is_requested, self.is_calm = True, False

    def read(self, loss: Loss, value: float | None) -> None:
        """Read a graph, if its loss is not finite and the loss before it was, or if it is the first one or requested.

        On an accelerator the host has to wait for the loss, so that it is called there only if `is_calm` is false.

        Args:
            loss: The loss, before its backward pass; one that is not a real number is not read.
            value: Its value, None if it is not on the host.
        """
        if not self._is_on:
            self.is_calm = True
            return
        operation = self._later_batches.pause()
        if operation is not None:
            self._add_operation(operation)
        if value is None:
            number = loss.detach()
            if not is_real_number(number):
                return
            value = float(number)
        self._read(loss, value)
        self._later_batches.resume()
        if self._later_batches.is_looking:
            self.is_calm = False

    def _read(self, loss: Loss, value: float) -> None:
        was_finite, self._was_finite = self._was_finite, math.isfinite(value)
        is_requested, self._is_requested, self.is_calm = self._is_requested, False, self._was_finite
        if self._first_step < 0:
            self._read_first(loss)
        if not self._was_finite and was_finite and not self._is_explained() and self._count < MAX_GRAPHS:
            self._count += 1
            fault = collect_or_log("the graph of the loss", lambda: fault_in_graph(*self._of(loss)))
            if fault is not None:
                self._faults.setdefault(self._loop.step, fault)
                self._later_divisors = self._loop.step, fault.divisors
                if self._may_observe():
                    self._later_batches.look_for(self._loop.step, fault)
        elif is_requested:
            facts = collect_or_log("the graph of the loss", lambda: facts_of_loss(*self._of(loss)))
            self._later = self._loop.step, facts or GraphFacts()
            self._later_divisors = self._loop.step, self._later[1].divisors

    def _may_observe(self) -> bool:
        """Return whether the operations on the data of later batches may be observed, and nothing else shows them."""
        loop = self._loop
        return not loop.can_replay and loop.process_group.size == 1 and is_the_same_within_a_mode(loop.module)

    def _add_operation(self, operation: Operation) -> None:
        """Add the operation that has made the data of an incident non-finite to what the graph of its loss shows."""
        step = self._later_batches.step
        fault = self._faults[step]
        if fault.replay is not None:
            self._faults[step] = replace(fault, replay=with_operation(fault.replay, operation))
            self.has_found = True

    def _is_explained(self) -> bool:
        """Return whether a loss that is not finite belongs to an incident whose first such loss has been read."""
        before, self._last_nonfinite = self._last_nonfinite, self._loop.step
        return bool(self._faults) and before is not None and self._loop.step - before <= CALM_STEPS

    def _read_first(self, loss: Loss) -> None:
        self._first_step = self._loop.step
        why = self._why_without_values()
        if why and self._loop.is_main_process and not self._loop.can_replay:
            logger.warning(WITHOUT_VALUES, why)
        first = collect_or_log("the graph of the first loss", lambda: facts_of_loss(*self._of(loss)))
        self.first = first or GraphFacts()

    def _of(self, loss: Loss) -> tuple[Loss, nn.Module, bool]:
        """Return the arguments with which the graph of a loss is read."""
        return loss, self._loop.module, self._hooks.may_be_set

    def _why_without_values(self) -> str:
        """Return why only the names of operations are read from graphs, empty if values are read."""
        if not values_are_readable():
            return f"torch {torch.__version__} does not show their shapes"
        if self._hooks.may_be_set:
            return f"torch {torch.__version__} does not show which of them have hooks, as with activation checkpointing"
        return ""

    def close(self) -> None:
        """Stop looking for hooks of saved tensors, and for operations on data."""
        self._hooks.close()
        self._later_batches.pause()

    def later_losses(self, first: int) -> tuple[LossTerm, ...]:
        """Return the loss functions of a loss of an incident; none if they are not known.

        Args:
            first: The first step of the incident.
        """
        step, facts = self._later
        return facts.losses if step >= first else ()

    def input_growth(self, first: int) -> float | None:
        """Return how many times the input of the first weight is as large in a loss of an incident as in the first one.

        Args:
            first: The first step of the incident.

        Returns:
            A ratio of root mean squares, None if it is not known.
        """
        step, facts = self._later
        before, now = (next(iter(one), None) for one in (self.first.applied, facts.applied))
        if step < first or before is None or now is None or before.name != now.name:
            return None
        return now.first_rms / before.first_rms if before.first_rms and now.first_rms else None

    def later_divisors(self, first: int) -> tuple[float, ...] | None:
        """Return the numbers that the terms of a loss of an incident are divided by, None if they are not known.

        Args:
            first: The first step of the incident.
        """
        step, divisors = self._later_divisors
        return divisors if step >= first else None

    def terms(self) -> Replay | None:
        """Return the loss functions of the first loss in the form of a replay; None if none is known."""
        return Replay("not-possible", losses=self.first.losses) if self.first.losses else None

    def completed(self, replay: Replay | None, first: int, last: int) -> Replay | None:
        """Return the replay of an incident; where it did not succeed, with facts from the graph of one of its losses.

        Args:
            replay: The replay.
            first: The first step of the incident.
            last: The step of its first value that is not finite.
        """
        if replay is not None and replay.status == "not-possible" and not replay.losses:
            replay = replace(replay, losses=self.later_losses(first))
        of_graph = self.replay_in(first, last)
        if replay is not None and of_graph is not None and NO_LINE in replay.notes and replay.step == of_graph.step:
            return of_graph  # its operation may have been found since
        if replay is None or of_graph is None or replay.status in ("reproduced", "finite"):
            return replay or of_graph
        if replay.source == "buffer" and of_graph.first is None:
            return replay  # the graph shows only a constant; the replay has found the buffer that holds it
        notes = (*of_graph.notes, f"the step could not be computed again: {replay.reason}")
        # The loss functions of the replayed step are finite, and show whether they are sums.
        return replace(of_graph, notes=notes, losses=replay.losses or of_graph.losses)

    def replay_in(self, first: int, last: int) -> Replay | None:
        """Return the fault that made a loss of an incident non-finite, None if it is not known.

        Args:
            first: The first step of the incident.
            last: The last step of the incident.
        """
        step = self._step_in(first, last)
        replay = None if step is None else self._faults[step].replay
        return None if replay is None else replace(replay, step=step)

    def _step_in(self, first: int, last: int) -> int | None:
        return min((one for one in self._faults if first <= one <= last), default=None)

    def with_fields(self, batch: BatchFacts | None, first: int, last: int) -> BatchFacts | None:
        """Return the facts of a batch, with the data in the graph of the loss if the batch itself is not known.

        Args:
            batch: The facts of the batch.
            first: The first step of the incident.
            last: The last step of the incident; without a loss that is not finite in it, the first loss of the run
                shows the data, except for their rows.
        """
        step = self._step_in(first, last)
        fields, usual = self.first.fields, {one.name: one for one in self.first.fields}
        if step is not None:
            later = step > self._first_step
            fields = tuple(_compared(one, usual.get(one.name)) if later else one for one in self._faults[step].fields)
        if not fields or (batch is not None and batch.fields):
            return batch
        size = common_rows(fields)
        if size is None:  # first dimensions that are not those of the batch
            fields = tuple(replace(one, nonfinite_rows=(), outlier_rows=()) for one in fields)
        usual_size = common_rows(self.first.fields)
        return replace(batch or BatchFacts(batch_idx=None), fields=fields, size=size, usual_size=usual_size)


def _compared(field: FieldFacts, first: FieldFacts | None) -> FieldFacts:
    """Return the facts of a tensor, with its range at the first step as the usual range."""
    if first is None or first.std is None:
        return field
    return replace(
        field,
        usual_least=first.least,
        usual_greatest=first.greatest,
        usual_std=first.std,
        usual_nonfinite=first.nan_count + first.inf_count > 0,
    )
