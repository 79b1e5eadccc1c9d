"""A step computed again, operation by operation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lightning_gradexplode.diagnose.replay.batch import batch_size, tensors
from lightning_gradexplode.diagnose.replay.finiteness import all_finite
from lightning_gradexplode.diagnose.replay.module_copy import ModuleCopy, nonfinite_sources
from lightning_gradexplode.diagnose.replay.module_hooks import ModuleHooks
from lightning_gradexplode.diagnose.replay.observer import Event, Observer, Source
from lightning_gradexplode.diagnose.replay.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.step import Outcome, ReplayStep, compute, deadline_of, failure
from lightning_gradexplode.records import Replay

STEPS, SECONDS = 15.0, 1.0
"""A replay may take as long as so many ordinary steps, or so many seconds, whichever is greater."""

TOLERANCE = 1e-3
"""Relative difference up to which the loss of the replay counts as that of the run."""

Failed = Literal["loss", "gradient"]


def replay_step(step: ReplayStep, *, failed: Failed | None = None, expected_loss: float | None = None) -> Replay:
    """Compute a step again and find the first operation that made a non-finite value out of finite ones.

    Args:
        step: The step.
        failed: What was not finite in the run: the loss, or a gradient while the loss was finite; None if both were
            finite.
        expected_loss: The loss of the run, as `ReplayStep.run_step` returns it; None if it is not known.
    """
    begin = time.perf_counter()
    deadline = deadline_of(step, STEPS, SECONDS)
    try:
        copy = step.copy(deadline)
        weights = [one for one in copy.sources().values() if one.kind == "parameter"]
        if weights:
            raise ReplayStopped(f"the weights are not finite any more ({weights[0].name})")
        batch = step.fresh_batch()
        fields = nonfinite_sources([("batch", name, one) for name, one in tensors(batch)], batch_size(batch))
        observer = Observer(batch_size(batch), copy.sources() | fields, owned=copy.owned, deadline=deadline)
        hooks = ModuleHooks(copy.module, observer)
        outcome = compute(step, copy, observer, batch=batch)
        return _record(copy, observer, hooks, outcome, failed, expected_loss, begin)
    except ReplayStopped as stop:
        return Replay("not-possible", stop.reason, seconds=time.perf_counter() - begin)
    except Exception as error:
        return Replay("not-possible", failure(error), seconds=time.perf_counter() - begin)


def _record(
    copy: ModuleCopy,
    observer: Observer,
    hooks: ModuleHooks,
    outcome: Outcome,
    failed: Failed | None,
    expected_loss: float | None,
    begin: float,
) -> Replay:
    losses = outcome.values
    gradients = copy.measure_gradients()
    bad_loss = next((one for one in outcome.losses if not all_finite(one)), None)
    reached = "loss" if bad_loss is not None else "gradient" if gradients.nonfinite else None
    status, reason = _status(outcome, reached, failed, expected_loss)
    event, source = _began(observer, [bad_loss] if bad_loss is not None else list(gradients.nonfinite.values()))
    stale = source or (event.source if event is not None else None)
    if status == "reproduced" and stale is not None and stale.kind in ("buffer", "attribute") and stale.has_nan:
        status, reason = (
            "not-reproduced",
            f"it starts from what the step has changed: {stale.name} is not finite any more",
        )
    hidden = event.cause.operation if event is not None and event.cause is not None else None
    named = source or (event.source if event is not None else None)
    return Replay(
        status=status,
        reason=reason,
        first=event.operation if event is not None else None,
        hidden=hidden,
        source=named.kind if named else None,  # type: ignore[arg-type]
        source_name=named.name if named else None,
        source_rows=named.rows if named else (),
        loss=next((one for one in losses if not math.isfinite(one)), losses[0] if losses else None),
        backward_losses=losses,
        grad_norm=gradients.norm,
        execution_order=hooks.execution_order,
        activations=hooks.activations(),
        losses=tuple(observer.loss_terms),
        half_precision=observer.half_precision,
        operations=observer.operations,
        seconds=time.perf_counter() - begin,
        notes=tuple(copy.notes),
    )


def _began(observer: Observer, tensors: Sequence[Tensor]) -> tuple[Event | None, Source | None]:
    """Return the earliest event, or else the tensor of the run, that non-finite tensors come from."""
    found = [observer.origin(one) for one in tensors]
    events = [event for event, _ in found if event is not None]
    if events:
        return min(events, key=lambda one: one.order), None
    return None, next((source for _, source in found if source is not None), None)


def _status(
    outcome: Outcome, reached: str | None, failed: Failed | None, expected_loss: float | None
) -> tuple[Literal["reproduced", "finite", "not-reproduced", "not-possible"], str]:
    """Return the status of a replay and why."""
    if outcome.stopped and reached is None:
        return "not-possible", outcome.stopped
    if expected_loss is not None and math.isfinite(expected_loss) and reached != "loss" and outcome.losses:
        seen = [*outcome.values, *([] if outcome.returned is None else [float(outcome.returned.float().mean())])]
        seen.append(sum(outcome.values) / len(outcome.values))
        if not any(math.isclose(one, expected_loss, rel_tol=TOLERANCE, abs_tol=1e-7) for one in seen):
            return "not-reproduced", f"its loss is {seen[0]:.6g}, that of the run was {expected_loss:.6g}"
    if reached == failed:
        return ("finite" if failed is None else "reproduced"), ""
    says = {None: "nothing", "loss": "the loss", "gradient": "a gradient"}
    return "not-reproduced", f"{says[reached]} is not finite in it, {says[failed]} was not in the run"
