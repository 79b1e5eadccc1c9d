"""The evidence of incidents: what is known of the run, of the batch and, from a replay, of the step's operations."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.replay import (
    KeptBatch,
    RandomState,
    ReplayStep,
    line_search,
    replay_step,
    run_experiments,
)
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Step, StepInputs
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.batch_facts import collect_batch_facts, with_first_batch
from lightning_gradexplode.measure.run_facts import collect_run_facts, in_order
from lightning_gradexplode.measure.sample_indices import sample_indices
from lightning_gradexplode.measure.usual_ranges import UsualRanges
from lightning_gradexplode.records import (
    Attempt,
    BatchFacts,
    Diagnosis,
    Evidence,
    Experiments,
    Finding,
    History,
    Replay,
    RunFacts,
    Severity,
)

logger = logging.getLogger("lightning_gradexplode")

MOST_REPLAYS = 3
"""Number of incidents of a run whose step is replayed."""

NONFINITE_SIGNS = frozenset({"nonfinite-loss", "nonfinite-gradient", "nonfinite-weight"})

T = TypeVar("T")


class EvidenceCollector:
    """Collects the evidence of a run's incidents, and diagnoses them.

    Args:
        loop: The training loop.
        arguments: The monitor's arguments.
        states: The optimizers.

    Attributes:
        inputs: What the current step needs to be computed again.
        weights_are_finite: Whether the weights were finite when last measured.
    """

    def __init__(self, loop: TrainingLoop, arguments: Arguments, states: Sequence[OptimizerState]) -> None:
        self._loop = loop
        self._arguments = arguments
        self._states = states
        self._run: RunFacts | None = None
        self._usual = UsualRanges()
        self._resumed_epoch: int | None = None
        self._devices: tuple[torch.device, ...] = ()
        self.inputs: StepInputs | None = None
        self._replays = 0
        self._after_warning = False
        self._step_seconds = 0.0
        self._batch_began: float | None = None
        self._onset: int | None = None
        self._findings: list[Finding] = []
        self._batch: BatchFacts | None = None
        self._replay: Replay | None = None
        self._experiments: Experiments | None = None
        self._weights_before: dict[str, Tensor] | None = None
        self._replay_step: ReplayStep | None = None
        self._now = -1
        self.weights_are_finite = True
        self._update_is_harmless = False
        self._published: Diagnosis | None = None

    # Called at every step.

    def batch_started(self, batch: Any, batch_idx: int, due: bool) -> None:
        """Keep what is needed to compute the step again.

        Args:
            batch: The batch.
            batch_idx: Its index in the epoch.
            due: Whether the usual ranges of batches are sampled.
        """
        if self._run is None:
            self._start(batch)
            self._resumed_epoch = self._loop.epoch if batch_idx else None
        now = time.perf_counter()
        if self._batch_began is not None:
            # The shortest time of late stands for an ordinary step, so that a wait of the loop does not count.
            self._step_seconds = min(now - self._batch_began, 1.1 * self._step_seconds or 1e9)
        self._batch_began = now
        if due:
            self._attempt("the ranges of batches", lambda: self._usual.sample(batch, self._loop.step))
        random_state = None
        if self._arguments.diagnose:
            random_state = RandomState.capture(self._devices, everything=self._after_warning)
        self.inputs = StepInputs(KeptBatch(batch), batch_idx, self._loop.is_last_batch, random_state)

    def _start(self, batch: Any) -> None:
        arguments, loop = self._arguments, self._loop
        self._devices = tuple({parameter.device for parameter in loop.module.parameters()})
        clip = None if arguments.clip is None else _policy_name(arguments.clip)
        value, algorithm = loop.clip_setting
        settings = {
            "processes": loop.process_group.size,
            "batches_per_epoch": loop.batches_per_epoch,
            "accumulate": loop.micro_batches,
            "automatic": loop.is_automatic,
            "clip_val": value,
            "clip_algorithm": algorithm,
            "clip_policy": clip,
            "on_explosion": tuple(type(one).__name__ for one in arguments.responses if not one.only_warns),
            "first_step": loop.step,
            **loop.settings(),
        }
        optimizers = [state.optimizer for state in self._states]
        facts = self._attempt(
            "the facts of the run",
            lambda: with_first_batch(collect_run_facts(loop.module, optimizers, settings), batch),
        )
        self._run = RunFacts() if facts is None else facts

    # Called at a step with findings.

    def add(self, step: Step, findings: Sequence[Finding], onset: int | None, before_update: bool) -> None:
        """Collect the evidence of a step with findings that are new to their incident.

        Args:
            step: The step.
            findings: Those findings.
            onset: The step at which the incident began, None outside of an incident.
            before_update: Whether the optimizer has not stepped yet.
        """
        serious = [finding for finding in findings if finding.severity >= Severity.WARNING]
        if not serious or onset is None:
            return
        self._after_warning = True
        if onset != self._onset:
            self._onset, self._findings = onset, []
            self._batch = self._replay = self._experiments = None
            self._update_is_harmless = False
        began = any(one.severity is Severity.CRITICAL for one in self._findings)
        self._findings += serious
        self._now = step.number
        critical = any(finding.severity is Severity.CRITICAL for finding in serious)
        nonfinite = any(finding.sign in NONFINITE_SIGNS for finding in serious)
        self._update_is_harmless = nonfinite and step.grad_norm == 0.0
        if step.inputs is None:
            return
        if self._batch is None or (critical and not began) or nonfinite:
            self._collect_batch(step, step.inputs, began)
        if critical and self._replay is None and self._arguments.diagnose and self._replays < MOST_REPLAYS:
            self._replays += 1
            self._compute_again(step, step.inputs, before_update)

    def _collect_batch(self, step: Step, inputs: StepInputs, began: bool) -> None:
        """Collect the facts of a step's batch, if it is more likely at fault than the one of earlier findings.

        Args:
            step: The step.
            inputs: What the step was given.
            began: Whether the incident was critical before; then only a batch that holds NaN or infinity replaces one.
        """
        batch = inputs.batch.batch
        # A run that goes on within an epoch may begin with the first samples again, while its batches are counted on.
        position = None if self._loop.epoch == self._resumed_epoch else inputs.batch_idx
        indices = self._attempt(
            "the indices of samples", lambda: sample_indices(batch, self._loop.data_loader, position)
        )
        facts = self._attempt(
            "the facts of the batch",
            lambda: collect_batch_facts(
                batch,
                self._usual.before(step.number),
                batch_idx=inputs.batch_idx,
                epoch=self._loop.epoch,
                is_last=inputs.is_last,
                sample_indices=indices,
            ),
        )
        self._usual.discard(step.number)
        if self._batch is None or _is_nonfinite(facts) or not (began or _has_outliers(self._batch)):
            self._batch = facts

    def _compute_again(self, step: Step, inputs: StepInputs, before_update: bool) -> None:
        """Replay a step, and run the experiments that do not need its update."""
        loop = self._loop
        if not loop.can_replay:
            self._replay = Replay("not-possible", "this training loop cannot compute a step again")
            return
        record = step.record()
        self._replay_step = ReplayStep(
            module=loop.module,
            run_step=loop.replay_loss,
            batch=inputs.batch,
            batch_idx=inputs.batch_idx,
            random_state=inputs.random_state,
            context=loop.replay_context,
            loss_scale=record.loss_scale or 1.0,
            optimizers=tuple(loop.optimizers),
            is_updated=not before_update,
            step_seconds=self._step_seconds,
        )
        loss_failed = record.loss is not None and not _is_finite(record.loss)
        gradient_failed = bool(record.nonfinite_count)
        failed = "loss" if loss_failed else "gradient" if gradient_failed else None
        expected = record.loss if record.micro_batches == 1 and loop.process_group.size == 1 else None
        replay = self._attempt(
            "the replay",
            lambda: replay_step(self._replay_step, failed=failed, expected_loss=expected),  # type: ignore[arg-type]
        )
        self._replay = replay or Replay("not-possible", "the replay failed")
        if replay is not None and replay.execution_order and self._run is not None and not self._run.order_is_executed:
            self._run = in_order(self._run, replay.execution_order)
        if not before_update:
            return
        self._run_experiments(step)
        if failed is None and self._replay.status == "finite":
            # The line search along the update follows once the optimizer has stepped.
            self._weights_before = {
                name: parameter.detach().clone() for name, parameter in loop.module.named_parameters()
            }

    def _run_experiments(self, step: Step) -> None:
        replay_step_, record = self._replay_step, step.record()
        if replay_step_ is None or self._replay is None or self._replay.status in ("not-possible", "not-reproduced"):
            return
        first: Any = self._states[record.optimizer].recorder.first().values.get("grad_norm", ())
        outliers = {row for field in (self._batch.fields if self._batch else ()) for row in field.outlier_rows}
        self._experiments = self._attempt(
            "the experiments",
            lambda: run_experiments(
                replay_step_,
                self._replay,
                rows=sorted(outliers),
                shares=True,
                memory_grad_norm=record.grad_norm,
                initial_grad_norm=float(first[0]) if len(first) else record.grad_norm,
            ),
        )

    @property
    def awaits_update(self) -> bool:
        """Whether a line search along the coming update is due."""
        return self._weights_before is not None

    def updated(self, step: Step) -> None:
        """Run the line search along the update of a step, if one is due; called after each update."""
        if self._weights_before is None:
            return
        before, self._weights_before = self._weights_before, None
        inputs = self._replay_step
        if step.number != self._now or inputs is None:
            return
        known = self._experiments or Experiments()
        pairs = self._attempt("the line search", lambda: line_search(inputs, before, seconds_spent=known.seconds))
        self._experiments = replace(known, line_search=pairs or ())

    # The diagnosis.

    def evidence(self, attempts: Sequence[Attempt] = ()) -> Evidence:
        """Return all that is known of the latest incident; of a run without one, its facts and history.

        Args:
            attempts: What the responses did.
        """
        recorders = [state.recorder for state in self._states]
        onset = self._now if self._onset is None else self._onset
        return Evidence(
            step=onset,
            now=self._now,
            findings=tuple(self._findings),
            run=self._run or RunFacts(),
            history=tuple(_until(recorder.history(), self._now) for recorder in recorders),
            first=tuple(recorder.first() for recorder in recorders),
            batch=self._batch,
            replay=self._replay,
            experiments=self._experiments,
            attempts=tuple(one for one in attempts if one.step >= onset),
            weights_are_finite=self.weights_are_finite,
            update_is_harmless=self._update_is_harmless,
        )

    def diagnosis(self, attempts: Sequence[Attempt] = ()) -> Diagnosis | None:
        """Return the diagnosis of the latest incident, None if there was none."""
        if self._onset is None:
            return None
        evidence = self.evidence(attempts)
        found = self._attempt("the diagnosis", lambda: diagnose(evidence))
        published = self._published
        if found is None or published is None or published.step != found.step or _cause(published) != _cause(found):
            return found
        return published  # further findings of the incident do not change what was shown of it

    def published(self, diagnosis: Diagnosis) -> None:
        """Keep a diagnosis that was shown, so that all that is shown of its incident tells the same."""
        self._published = diagnosis

    def _attempt(self, what: str, collect: Callable[[], T]) -> T | None:
        """Return what is collected; a failure costs it alone."""
        try:
            return collect()
        except Exception as error:
            logger.warning("gradexplode: %s could not be collected: %s: %s", what, type(error).__name__, error)
            logger.debug("gradexplode: traceback", exc_info=True)
            return None


def _cause(diagnosis: Diagnosis) -> tuple[str, str | None]:
    """Return kind and place of the first cause."""
    return diagnosis.causes[0].kind, diagnosis.causes[0].where


def _until(history: History, step: int) -> History:
    """Return a history without the steps after one, unless that is not in an incident."""
    kept = history.step <= step if step >= 0 else np.ones(len(history.step), dtype=bool)
    return replace(
        history,
        step=history.step[kept],
        values={name: values[kept] for name, values in history.values.items()},
        parameter_grad_norm=history.parameter_grad_norm[kept],
    )


def _policy_name(policy: Any) -> str:
    value = getattr(policy, "value", None)
    name = type(policy).__name__
    return "auto" if name == "AutoPolicy" else str(value) if name == "ConstantClip" else name


def _is_nonfinite(batch: BatchFacts | None) -> bool:
    return batch is not None and any(field.nan_count or field.inf_count for field in batch.fields)


def _has_outliers(batch: BatchFacts) -> bool:
    return _is_nonfinite(batch) or any(field.outlier_rows for field in batch.fields)


def _is_finite(value: float) -> bool:
    return value - value == 0.0
