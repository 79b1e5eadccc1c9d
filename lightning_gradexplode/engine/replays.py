"""Replays of the steps of incidents on a copy of the module, and their results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay import (
    Failed,
    ReplayStep,
    checksums,
    keep_weights,
    line_search,
    replay_step,
    run_experiments,
    similar_weights,
)
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.loss_graphs import LossGraphs
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step_inputs import StepInputKeeper, StepInputs
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import Experiments, ParameterFacts, Replay, StepRecord
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.replay import NO_REPLAY, SIMILAR_WEIGHTS

MAX_REPLAYS = 3
"""Number of incidents of a run whose step is replayed."""


class IncidentReplays:
    """Computes the step of an incident again and runs the experiments, for at most `MAX_REPLAYS` incidents of a run.

    Args:
        loop: The training loop.
        states: The optimizers.
        is_on: Whether steps are computed again at all.
        graphs: Facts from the graphs of losses, used if a replay is not possible.
        keeper: Keeps the inputs of the steps.

    Attributes:
        replay: The replay of the latest incident, None if there was none.
        experiments: The measurements with a copy of the module in the latest incident.
        is_on: Whether steps are computed again, so that their inputs are needed.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        states: Sequence[OptimizerState],
        is_on: bool,
        graphs: LossGraphs,
        keeper: StepInputKeeper,
    ) -> None:
        self.replay: Replay | None = None
        self.experiments: Experiments | None = None
        self._loop = loop
        self._states = states
        self.is_on = is_on
        self._graphs = graphs
        self._keeper = keeper
        self._count = 0
        self._step: ReplayStep | None = None
        self._weights_before: Mapping[str, Tensor] | None = None
        self._step_of_update = -1
        self._is_lost = False  # whether the weights of the replayed step were not known

    @property
    def is_due(self) -> bool:
        """Whether the next critical step of the latest incident is computed again."""
        return self.is_on and (self.replay is None or self._is_lost) and self.are_left

    @property
    def are_left(self) -> bool:
        """Whether a further incident of the run may be computed again."""
        return self._count < MAX_REPLAYS

    def forget(self) -> None:
        """Clear the results, as another incident begins."""
        self.replay = self.experiments = None

    def compute(
        self,
        record: StepRecord,
        inputs: StepInputs,
        before_update: bool,
        outlier_rows: Sequence[int],
        repeated: Callable[[Replay], Sequence[str]] = lambda replay: (),
        parameters: Sequence[ParameterFacts] = (),
    ) -> None:
        """Replay a step, and run the experiments that do not need its update.

        Args:
            record: The step.
            inputs: Its inputs.
            before_update: Whether the optimizer has not stepped yet.
            outlier_rows: Rows of the batch that are far outside the others.
            repeated: Returns, from the replay, the weights whose initialization is varied; called only at the first
                step of the run.
            parameters: The parameters at the start of the run, whose scales take the place of lost weights.
        """
        self._count += 1
        before = collect_or_log("the checksums", lambda: checksums(self._loop.module))
        self._compute(record, inputs, before_update, outlier_rows, repeated, parameters)
        if self.replay is not None:
            self.replay = dataclasses.replace(self.replay, step=record.step)
        if before is not None and collect_or_log("the checksums", lambda: checksums(self._loop.module)) != before:
            self.is_on = False
            logger.error(
                "gradexplode: computing a step again has changed weights, buffers or gradients of the run, so that no "
                "further one is; pass diagnose=False, and please report this"
            )

    def _compute(
        self,
        record: StepRecord,
        inputs: StepInputs,
        before_update: bool,
        outlier_rows: Sequence[int],
        repeated: Callable[[Replay], Sequence[str]],
        parameters: Sequence[ParameterFacts],
    ) -> None:
        loop = self._loop
        if not loop.can_replay:
            self.replay = self._graphs.replay_in(record.step, record.step) or self._of_first_graph(record)
            return
        again = self._again(
            inputs, loss_scale=record.loss_scale or 1.0, is_updated=not before_update and inputs.weights is None
        )
        failed = _failed(record)
        expected = record.loss if record.micro_batches == 1 and loop.process_group.size == 1 else None
        replay = _replayed(again, failed, expected)
        if replay.status == "not-reproduced" and inputs.attributes is not None and not inputs.attributes.is_unchanged:
            # A hook between the start of the batch and the step may have changed the differing values.
            as_now = dataclasses.replace(again, attributes=None)
            other = _replayed(as_now, failed, expected, replay.seconds)
            if other.status in ("reproduced", "finite"):
                again, replay = as_now, other
        if again.is_updated and failed is not None and replay.status != "reproduced":
            replay = self._with_similar_weights(again, failed, parameters, replay.seconds) or replay
        if again.is_updated and failed is not None and replay.status == "not-possible":
            replay = dataclasses.replace(replay, reason=f'{replay.reason}; on_explosion="skip" would have kept them')
        replay = self.replay = _from_rank(replay, record.rank)
        self._is_lost = again.is_updated and replay.status != "reproduced"
        if again.is_updated or replay.status in ("not-possible", "not-reproduced"):
            return
        before = None if before_update else inputs.weights
        names = repeated(replay) if record.step == loop.first_step else ()
        self._run_experiments(record, again, outlier_rows, before, names)
        if before_update and failed is None and replay.status == "finite":
            # The line search along the update follows once the optimizer has stepped.
            self._step, self._step_of_update = again, record.step
            self._weights_before = inputs.weights or collect_or_log("the weights", lambda: keep_weights(loop.module))

    def _with_similar_weights(
        self, again: ReplayStep, failed: Failed, parameters: Sequence[ParameterFacts], spent: float
    ) -> Replay | None:
        """Return the replay of a step whose weights are lost, with others of their scale; None if it does not fail."""
        weights = collect_or_log("similar weights", lambda: similar_weights(self._loop.module, parameters))
        if weights is None:
            return None
        replay = _replayed(dataclasses.replace(again, weights=weights, is_updated=False), failed, None, spent)
        if replay.status != "reproduced" or replay.source in ("parameter", "buffer"):
            return None
        return dataclasses.replace(replay, activations=(), notes=(SIMILAR_WEIGHTS, *replay.notes))

    def _of_first_graph(self, record: StepRecord) -> Replay:
        """Return what the graph of the first loss shows of a step that cannot be computed again."""
        names, overflow = self._graphs.first.operation_names, self._graphs.first.overflow
        if overflow is not None and record.step == self._loop.first_step and _failed(record) is not None:
            return Replay("reproduced", first=overflow, operation_names=names)  # its slope is infinite or NaN
        return Replay("not-possible", NO_REPLAY, operation_names=names)

    def _again(self, inputs: StepInputs, **settings: Any) -> ReplayStep:
        """Return a step to compute again, from its inputs."""
        loop = self._loop
        return ReplayStep(
            module=loop.module,
            run_step=loop.replay_loss,
            batch=inputs.batch,
            batch_idx=inputs.batch_idx,
            random_state=inputs.random_state,
            context=loop.replay_context,
            weights=inputs.weights,
            attributes=inputs.attributes,
            optimizers=tuple(loop.optimizers),
            stepped=self._keeper.stepped(),
            step_seconds=self._keeper.step_seconds,
            **settings,
        )

    def replay_without_loss(self, inputs: StepInputs, has_raised: bool = False) -> Replay | None:
        """Compute a step again whose loss is unknown, if a later incident of the run can still be computed again.

        Args:
            inputs: Its inputs.
            has_raised: Whether it has raised an exception, so that no later incident follows.

        Returns:
            The replay; None if the step has tested no value that is NaN or infinite.
        """
        limit = MAX_REPLAYS if has_raised else MAX_REPLAYS - 1
        if not self.is_on or not self._loop.can_replay or self._count >= limit:
            return None
        self._count += 1
        replay = _replayed(self._again(inputs, loss_scale=1.0), "exception" if has_raised else "tested value", None)
        return replay if replay.status == "reproduced" else None

    def _run_experiments(
        self,
        record: StepRecord,
        again: ReplayStep,
        rows: Sequence[int],
        before: Mapping[str, Tensor] | None,
        repeated: Sequence[str],
    ) -> None:
        replay = self.replay
        first: Any = self._states[record.optimizer].recorder.first().values.get("grad_norm", ())
        self.experiments = collect_or_log(
            "the experiments",
            lambda: run_experiments(
                again,
                replay,
                before=before,
                rows=rows,
                memory_grad_norm=record.grad_norm,
                initial_grad_norm=float(first[0]) if len(first) else record.grad_norm,
                repeated=repeated,
                gradients=self._gradients(record),
            ),
        )

    def _gradients(self, record: StepRecord) -> dict[str, Tensor]:
        """Return the gradients that the run holds, if they are those of one loss only; else none."""
        is_of_one_loss = record.micro_batches == 1 and (record.backward_passes or 1) == 1 and len(self._states) == 1
        if not is_of_one_loss or self._loop.process_group.size > 1:
            return {}
        named = self._loop.module.named_parameters()
        return {plain_name(name): one.grad for name, one in named if one.grad is not None and not one.grad.is_sparse}

    def updated(self, number: int) -> None:
        """Run the line search along an update, if one is due; called after each update with the step's number."""
        if self._weights_before is None:
            return
        before, self._weights_before = self._weights_before, None
        step, self._step = self._step, None
        if number != self._step_of_update or step is None:
            return
        known = self.experiments or Experiments()
        pairs = collect_or_log("the line search", lambda: line_search(step, before, seconds_spent=known.seconds))
        self.experiments = dataclasses.replace(known, line_search=pairs or ())


def _from_rank(replay: Replay, rank: int | None) -> Replay:
    """Return the replay of one process for a fault in the loss of a single process, which logs its own replay.

    Args:
        replay: The replay of this process.
        rank: The process whose loss was not finite, None if that is not known.
    """
    if rank is None or not torch.distributed.is_initialized():
        return replay
    own = torch.distributed.get_rank()
    if own != rank and replay.status == "not-reproduced":
        reason = f"the loss that was not finite is that of rank {rank}, which logs what it finds in its own batch"
        return dataclasses.replace(replay, reason=reason)
    first = replay.hidden or replay.first
    if own == rank != 0 and first is not None and replay.status == "reproduced":
        place = "" if first.file is None else f" at {first.file}:{first.line}"
        rows = f", in row {', '.join(map(str, first.rows))} of its batch" if first.rows else ""
        logger.warning("gradexplode: rank %d: %s%s made %s%s", rank, first.name, place, first.result, rows)
    return replay


def _replayed(step: ReplayStep, failed: Failed | None, expected: float | None, spent: float = 0.0) -> Replay:
    replay = collect_or_log(
        "the replay", lambda: replay_step(step, failed=failed, expected_loss=expected, seconds_spent=spent)
    )
    return replay or Replay("not-possible", "the replay failed")


def _failed(record: StepRecord) -> Failed | None:
    """Return what was not finite at a step."""
    if record.loss is not None and not math.isfinite(record.loss):
        return "loss"
    if not record.nonfinite_count:
        return None
    return "gradient, maybe loss" if record.loss is None else "gradient"
