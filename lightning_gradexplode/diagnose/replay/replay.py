"""A step computed again, operation by operation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from lightning_gradexplode.diagnose.replay.copies.module_copy import ModuleCopy
from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.observation.batch_shape import BatchShape
from lightning_gradexplode.diagnose.replay.observation.events import Event, Source, earliest
from lightning_gradexplode.diagnose.replay.observation.finiteness import all_finite
from lightning_gradexplode.diagnose.replay.observation.guard import WRITES
from lightning_gradexplode.diagnose.replay.observation.module_hooks import ModuleHooks
from lightning_gradexplode.diagnose.replay.observation.observer import Observer
from lightning_gradexplode.diagnose.replay.observation.sources import is_as_before, origins_before
from lightning_gradexplode.diagnose.replay.step import Outcome, ReplayStep, compute, deadline_of, failure
from lightning_gradexplode.measure.batch_fields import fields_of
from lightning_gradexplode.records import Replay

STEPS, SECONDS = 15.0, 1.0
"""Time limit of a replay, in ordinary steps and in seconds; the greater one counts."""

TOLERANCE = 1e-3
"""Relative difference up to which the loss of the replay counts as that of the run."""

Failed = Literal["loss", "gradient", "gradient, maybe loss", "tested value", "exception"]


def replay_step(
    step: ReplayStep,
    *,
    failed: Failed | None = None,
    expected_loss: float | None = None,
    seconds_spent: float = 0.0,
) -> Replay:
    """Compute a step again and find the first operation that made a non-finite value out of finite ones.

    Args:
        step: The step.
        failed: What was not finite in the run: the loss, a gradient while the loss was finite, or a gradient while the
            loss is not known, as in manual optimization; or a value that the step has tested and then returned no
            loss, or raised an exception; None if all was finite.
        expected_loss: The loss of the run, as `ReplayStep.run_step` returns it; None if it is not known.
        seconds_spent: Part of the time limit that an earlier attempt took.
    """
    begin = time.perf_counter()
    deadline = deadline_of(step, STEPS, SECONDS) - seconds_spent
    replay = _attempt(step, failed, expected_loss, deadline, clone_parameters=False)
    if replay.reason.startswith(WRITES):
        # A step that averages or clamps weights itself needs weights of its own.
        replay = _attempt(step, failed, expected_loss, deadline, clone_parameters=True)
    return replace(replay, seconds=time.perf_counter() - begin)


def _attempt(
    step: ReplayStep, failed: Failed | None, expected_loss: float | None, deadline: float, *, clone_parameters: bool
) -> Replay:
    """Compute the step once on a copy."""
    try:
        copy = step.copy(deadline, clone_parameters=clone_parameters)
    except ReplayStopped as stop:
        return Replay("not-possible", stop.reason)
    except Exception as error:
        return Replay("not-possible", failure(error))
    try:
        batch = step.fresh_batch()
        fields = fields_of(batch)
        observer = Observer(
            BatchShape.of(fields),
            [one for field in fields for one in field.tensors],
            origins_before(copy, fields),
            owned=copy.owned,
            deadline=deadline,
        )
        hooks = ModuleHooks(copy.module, observer)
        outcome = compute(step, copy, observer, batch=batch)
        return _record(copy, observer, hooks, outcome, failed, expected_loss, step.is_updated)
    except ReplayStopped as stop:
        return Replay("not-possible", stop.reason, notes=tuple(copy.notes))
    except Exception as error:
        return Replay("not-possible", failure(error), notes=tuple(copy.notes))
    finally:
        copy.close()


def _record(
    copy: ModuleCopy,
    observer: Observer,
    hooks: ModuleHooks,
    outcome: Outcome,
    failed: Failed | None,
    expected_loss: float | None,
    is_updated: bool,
) -> Replay:
    """Return what a computation of the step has shown, compared with what is known of the step itself."""
    losses = outcome.values
    copy.measure_gradients()
    exact = copy.has_run_weights or [True] * len(outcome.losses)
    bad_losses = [one for one, counts in zip(outcome.losses, exact, strict=True) if counts and not all_finite(one)]
    bad_gradients = list(copy.gradients.nonfinite.values())
    if failed in ("tested value", "exception"):
        is_tested = outcome.has_raised and observer.has_just_tested if failed == "exception" else not outcome.losses
        failed = "loss"
        bad_losses = [observer.tested] if is_tested and observer.tested is not None else []
    reached: Failed | None = "loss" if bad_losses else "gradient" if bad_gradients else None
    event, source = _beginning(observer, bad_losses[:1] or bad_gradients)
    if failed == "gradient, maybe loss":
        failed = reached if reached == "loss" and bad_gradients else "gradient"
    status, reason = _status(copy, outcome, reached, failed, expected_loss)
    if status == "not-reproduced" and is_updated:
        reason = f"the optimizer has stepped since, and the weights before are not known: {reason}"
    held_nan = source if source is not None and source.has_nan else None
    if status == "reproduced" and held_nan is not None and not is_as_before(held_nan, copy, observer.written):
        status, reason = "not-reproduced", f"the step itself has changed where it began: {held_nan.name} is not finite"
    cause = None if event is None or event.cause is None or event.cause.is_fill else event.cause
    return Replay(
        status=status,
        reason=reason,
        first=event.operation if event is not None else None,
        hidden=cause.operation if cause is not None else None,
        source=source.kind if source is not None else None,
        source_name=source.name if source is not None else None,
        source_rows=source.rows if source is not None else (),
        source_reaches_layers=(
            hooks.reaches_layers(source.name) if source is not None and source.kind == "batch" else None
        ),
        loss=next((one for one in losses if not math.isfinite(one)), losses[0] if losses else None),
        backward_losses=losses,
        grad_norm=copy.gradients.norm,
        execution_order=hooks.execution_order,
        activations=hooks.activations(),
        losses=tuple(observer.loss_terms),
        grown=observer.grown,
        half_precision=observer.half_precision,
        operations=observer.operations,
        notes=tuple(copy.notes),
    )


def _beginning(observer: Observer, tensors: Sequence[Tensor]) -> tuple[Event | None, Source | None]:
    """Return the earliest event that non-finite tensors come from, and the tensor of the run that held them before."""
    found = [observer.origins.of(one) for one in tensors]
    events = [one.event for one in found if one.event is not None]
    event = earliest(events) if events else None
    if event is not None:
        return event, event.source
    return None, next((one.source for one in found if one.source is not None), None)


def _status(
    copy: ModuleCopy, outcome: Outcome, reached: Failed | None, failed: Failed | None, expected_loss: float | None
) -> tuple[Literal["reproduced", "finite", "not-reproduced", "not-possible"], str]:
    """Return the status of a replay and why."""
    if outcome.stopped and reached is None:
        return "not-possible", outcome.stopped
    if expected_loss is not None and math.isfinite(expected_loss) and reached != "loss" and outcome.losses:
        seen = [*outcome.values, sum(outcome.values) / len(outcome.values)]
        seen += [] if outcome.returned is None else [float(outcome.returned.float().mean())]
        if not any(math.isclose(one, expected_loss, rel_tol=TOLERANCE, abs_tol=1e-7) for one in seen):
            return "not-reproduced", f"its loss is {seen[0]:.6g}, that of the run was {expected_loss:.6g}"
    run = {None: "everything was finite", "loss": "the loss was not", "gradient": "a gradient was not"}
    updates = "; an optimizer steps before its last loss, which the replay leaves out"
    note = "" if all(copy.has_run_weights) else updates
    if reached != failed:
        here = {
            None: "everything is finite in it",
            "loss": "its loss is not finite",
            "gradient": "a gradient of it is not finite",
        }
        return "not-reproduced", f"{here[reached]}, while in the run {run[failed]}{note}"
    return ("finite" if failed is None else "reproduced"), ""
