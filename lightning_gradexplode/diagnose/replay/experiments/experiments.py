"""Experiments with a copy of the module, which distinguish between causes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.experiments.slopes import slope_ratios
from lightning_gradexplode.diagnose.replay.experiments.starts import try_starts
from lightning_gradexplode.diagnose.replay.experiments.variants import Variants
from lightning_gradexplode.diagnose.replay.step import ReplayStep, deadline_of
from lightning_gradexplode.measure.field_rows import MAX_ROWS
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import Experiments, Replay

STEPS, SECONDS = 30.0, 3.0
"""Time limit of all experiments together, in ordinary steps and in seconds; the greater one counts."""

FACTORS = (0.0, 0.01, 0.1, 0.3, 1.0)
"""The line search: multiples of the step's update."""


def run_experiments(
    step: ReplayStep,
    replay: Replay | None = None,
    *,
    before: Mapping[str, Tensor] | None = None,
    rows: Sequence[int] = (),
    memory_grad_norm: float | None = None,
    initial_grad_norm: float | None = None,
    repeated: Sequence[str] = (),
    gradients: Mapping[str, Tensor] | None = None,
) -> Experiments:
    """Compute variants of a step that distinguish between causes; an experiment that fails is left out.

    Args:
        step: The step.
        replay: Its replay, None without one.
        before: Weights before the step's update by parameter name, for the line search.
        rows: Rows of the batch to leave out, where the replay names none.
        memory_grad_norm: L2 norm of the gradients that the run held, unscaled.
        initial_grad_norm: L2 norm of the run's first gradient.
        repeated: Names of weights whose other initializations are tried, if the step is the first one of the run.
        gradients: The gradients that the run holds for this step, by parameter name, to compare them with the slope of
            the loss.
    """
    begin = time.perf_counter()
    deadline = deadline_of(step, STEPS, SECONDS)
    variants = Variants(step, deadline)
    failed = replay is not None and replay.status == "reproduced"
    results: dict[str, Any] = {
        "memory_grad_norm": memory_grad_norm,
        "initial_grad_norm": initial_grad_norm,
        "batch_grad_norm": None if replay is None else replay.grad_norm,
    }
    if replay is None:
        results |= _attempt(lambda: {"batch_grad_norm": variants.run().grad_norm})
    if failed and replay is not None and replay.half_precision:
        results |= _attempt(lambda: _in_float32(variants))
    rows = (_rows_at_fault(replay) if failed else ()) or tuple(rows)
    if rows:
        results |= _attempt(lambda: _without_rows(variants, rows))
    elif failed:
        results |= _attempt(lambda: _without_rows(variants, _found_row(variants)))
    if before is not None:
        results |= _attempt(lambda: _line_search(variants, before))
    if repeated:
        results |= _attempt(lambda: {"starts": try_starts(variants, step.weights, repeated)})
    if gradients and replay is not None and replay.loss is not None and memory_grad_norm is not None:
        loss, norm = replay.loss, memory_grad_norm
        rest = Variants(step, 0.5 * (time.perf_counter() + deadline))  # half of the time is for the line search
        results |= _attempt(lambda: slope_ratios(rest, step.weights, gradients, loss, norm))
    return Experiments(**results, seconds=time.perf_counter() - begin)


def line_search(
    step: ReplayStep,
    before: Mapping[str, Tensor],
    *,
    seconds_spent: float = 0.0,
) -> tuple[tuple[float, float], ...]:
    """Measure the loss of a step's batch at multiples of the step's update.

    Args:
        step: The step.
        before: Weights before the update by parameter name.
        seconds_spent: Part of the time limit that earlier experiments with this step took.

    Returns:
        Pairs of a factor and a loss; only the first ones if the time limit is reached.
    """
    variants = Variants(step, deadline_of(step, STEPS, SECONDS) - seconds_spent)
    return tuple(_attempt(lambda: _line_search(variants, before)).get("line_search", ()))


def _attempt(experiment: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the results of an experiment by name, none if it fails."""
    try:
        return experiment()
    except (ReplayStopped, Exception):
        return {}


def _in_float32(variants: Variants) -> dict[str, Any]:
    result = variants.run(float32=True)
    return {"finite_in_float32": result.is_finite, "float32_loss": result.loss}


def _without_rows(variants: Variants, rows: Sequence[int]) -> dict[str, Any]:
    # The rest shows nothing if most rows are left out, or if not all rows at fault are listed.
    if not rows or len(rows) >= MAX_ROWS or 2 * len(rows) > (variants.size or 0):
        return {}
    result = variants.run(without=rows)
    return {
        "rows_removed": tuple(rows),
        "finite_without_rows": result.is_finite,
        "grad_norm_without_rows": result.grad_norm,
    }


def _rows_at_fault(replay: Replay | None) -> tuple[int, ...]:
    """Return the rows in which a replay found non-finite values first."""
    if replay is None:
        return ()
    operations = [one for one in (replay.hidden, replay.first) if one is not None and one.rows]
    return operations[0].rows if operations else replay.source_rows


def _found_row(variants: Variants) -> tuple[int, ...]:
    """Find the one row without which the step is finite, by leaving out half of those that it may be.

    Returns:
        The row; empty if there is no such row, or if the step is finite without another row, too.
    """
    candidates: Sequence[int] = range(variants.size or 0)
    while len(candidates) > 1:
        middle = len(candidates) // 2
        halves = candidates[:middle], candidates[middle:]
        found = next((half for half in halves if variants.run(without=half).is_finite), None)
        if found is None:
            return ()
        candidates = found
    if not candidates or (variants.size or 0) < 3:
        return ()
    other = (candidates[0] + 1) % (variants.size or 1)
    return () if variants.run(without=[other]).is_finite else tuple(candidates)


def _line_search(variants: Variants, before: Mapping[str, Tensor]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return the loss of the batch at multiples of the update, between `before` and the module's own weights."""
    ends = {plain_name(name): one for name, one in variants.module.named_parameters()}
    found: list[tuple[float, float]] = []
    for factor in FACTORS:
        weights = {name: _between(one, ends.get(plain_name(name), one), factor) for name, one in before.items()}
        try:
            found.append((factor, variants.run(weights=weights, backward=False).loss))
        except ReplayStopped:
            break
    return {"line_search": tuple(found)}


def _between(start: Tensor, end: Tensor, factor: float) -> Tensor:
    if factor in (0.0, 1.0) or not (start.is_floating_point() or start.is_complex()):
        return end if factor == 1.0 else start
    start, end = start.detach(), end.detach().to(start.device)
    return (start + factor * (end - start)).to(start.dtype)
