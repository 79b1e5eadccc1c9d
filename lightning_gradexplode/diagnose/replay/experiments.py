"""Experiments with a copy of the module, in place of guesses about the cause."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.batch import map_batch, take_rows
from lightning_gradexplode.diagnose.replay.guard import HALF, Guard
from lightning_gradexplode.diagnose.replay.module_copy import ModuleCopy, unwrapped
from lightning_gradexplode.diagnose.replay.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.step import ReplayStep, compute, deadline_of
from lightning_gradexplode.measure.batch_fields import batch_size, fields_of
from lightning_gradexplode.measure.field_rows import MOST_ROWS
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import Experiments, Replay

STEPS, SECONDS = 30.0, 3.0
"""All experiments together may take as long as so many ordinary steps, or seconds, whichever is greater."""

FACTORS = (0.0, 0.01, 0.1, 0.3, 1.0)
"""The line search: multiples of the step's update."""

GROUPS = 4
"""Into so many groups the rows of a batch are divided, again and again, to find the one with the largest share."""


def run_experiments(
    step: ReplayStep,
    replay: Replay | None = None,
    *,
    before: Mapping[str, Tensor] | None = None,
    after: Mapping[str, Tensor] | None = None,
    rows: Sequence[int] = (),
    shares: bool = False,
    memory_grad_norm: float | None = None,
    initial_grad_norm: float | None = None,
) -> Experiments:
    """Measure with a copy of the module what tells causes apart; a measurement that fails is left out.

    Args:
        step: The step.
        replay: What its replay has shown.
        before: Weights before the step's update by parameter name, for the line search.
        after: Weights after it; None for the module's own.
        rows: Rows of the batch to leave out, where the replay names none.
        shares: Whether the largest share of one row in the loss is looked for.
        memory_grad_norm: L2 norm of the gradients that the run held, unscaled.
        initial_grad_norm: L2 norm of the run's first gradient.
    """
    begin = time.perf_counter()
    runner = _Runner(step, deadline_of(step, STEPS, SECONDS))
    failed = replay is not None and replay.status == "reproduced"
    results: dict[str, Any] = {
        "memory_grad_norm": memory_grad_norm,
        "initial_grad_norm": initial_grad_norm,
        "batch_grad_norm": None if replay is None else replay.grad_norm,
    }
    if replay is None:
        results |= _attempt(lambda: {"batch_grad_norm": runner.run().grad_norm})
    if failed and replay is not None and replay.half_precision:
        results |= _attempt(lambda: _in_float32(runner))
    rows = (_rows_at_fault(replay) if failed else ()) or tuple(rows)
    if rows:
        results |= _attempt(lambda: _without_rows(runner, rows))
    elif failed:
        results |= _attempt(lambda: _without_rows(runner, _found_row(runner)))
    if before is not None:
        results |= _attempt(lambda: _line_search(runner, before, after))
    if shares and not failed:
        results |= _attempt(lambda: _row_share(runner))
    return Experiments(**results, seconds=time.perf_counter() - begin)


def line_search(
    step: ReplayStep,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor] | None = None,
    *,
    seconds_spent: float = 0.0,
) -> tuple[tuple[float, float], ...]:
    """Measure the loss of a step's batch at multiples of the step's update.

    Args:
        step: The step.
        before: Weights before the update by parameter name.
        after: Weights after it; None for the module's own.
        seconds_spent: What earlier experiments with this step took of the budget.

    Returns:
        Pairs of a factor and a loss, as far as the budget goes.
    """
    runner = _Runner(step, deadline_of(step, STEPS, SECONDS) - seconds_spent)
    return tuple(_attempt(lambda: _line_search(runner, before, after)).get("line_search", ()))


@dataclass(frozen=True, slots=True)
class _Result:
    """One run of a step.

    Args:
        loss: Its first loss.
        is_finite: Whether its losses and gradients are finite.
        grad_norm: L2 norm of its gradients.
    """

    loss: float
    is_finite: bool
    grad_norm: float | None


class _Runner:
    """Runs variants of a step within one budget.

    Args:
        step: The step.
        deadline: When the budget is used up.
    """

    def __init__(self, step: ReplayStep, deadline: float) -> None:
        self._step = step
        self._deadline = deadline
        self.size = batch_size(fields_of(step.kept_batch))

    @property
    def module(self) -> nn.Module:
        """The module of the run."""
        return unwrapped(self._step.module)

    def run(
        self,
        *,
        weights: Mapping[str, Tensor] | None = None,
        without: Sequence[int] = (),
        float32: bool = False,
        backward: bool = True,
    ) -> _Result:
        """Compute the step on a new copy.

        Args:
            weights: Weights to use in place of the step's.
            without: Rows of the batch to leave out.
            float32: Whether everything is computed in float32.
            backward: Whether the backward pass is run.

        Raises:
            ReplayStopped: The step did not get to its end.
        """
        batch = self._step.fresh_batch()
        if without:
            left = set(without)
            keep = [row for row in range(self.size or 0) if row not in left]
            if not keep:
                raise ReplayStopped("no row is left")
            batch = take_rows(batch, keep, len(keep) + len(left))
        copy = self._step.copy(self._deadline, **({} if weights is None else {"weights": weights}))
        try:
            if float32:
                batch = map_batch(batch, _wide)
                _to_float32(copy)
            guard = Guard(copy.owned, deadline=self._deadline, float32=float32)
            context = nullcontext() if float32 else None
            outcome = compute(self._step, copy, guard, batch=batch, backward=backward, context=context)
            if outcome.stopped or not outcome.losses:
                raise ReplayStopped(outcome.stopped or "the step has no loss")
            copy.measure_gradients()
            losses = outcome.values
            is_finite = all(map(math.isfinite, losses)) and not copy.gradients.nonfinite
            return _Result(losses[0], is_finite, copy.gradients.norm)
        finally:
            copy.close()


def _attempt(experiment: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an experiment has measured, nothing if it fails."""
    try:
        return experiment()
    except (ReplayStopped, Exception):
        return {}


def _in_float32(runner: _Runner) -> dict[str, Any]:
    result = runner.run(float32=True)
    return {"finite_in_float32": result.is_finite, "float32_loss": result.loss}


def _without_rows(runner: _Runner, rows: Sequence[int]) -> dict[str, Any]:
    # Of most rows, or of more rows than are named, the others would say nothing.
    if not rows or len(rows) >= MOST_ROWS or 2 * len(rows) > (runner.size or 0):
        return {}
    result = runner.run(without=rows)
    return {
        "rows_removed": tuple(rows),
        "finite_without_rows": result.is_finite,
        "loss_without_rows": result.loss,
        "grad_norm_without_rows": result.grad_norm,
    }


def _rows_at_fault(replay: Replay | None) -> tuple[int, ...]:
    """Return the rows in which a replay found non-finite values first."""
    if replay is None:
        return ()
    operations = [one for one in (replay.hidden, replay.first) if one is not None and one.rows]
    return operations[0].rows if operations else replay.source_rows


def _found_row(runner: _Runner) -> tuple[int, ...]:
    """Find the one row without which the step is finite, by leaving out half of those that it may be.

    Returns:
        The row; empty if there is no such row, or if the step is finite without another row, too.
    """
    candidates: Sequence[int] = range(runner.size or 0)
    while len(candidates) > 1:
        middle = len(candidates) // 2
        halves = candidates[:middle], candidates[middle:]
        found = next((half for half in halves if runner.run(without=half).is_finite), None)
        if found is None:
            return ()
        candidates = found
    if not candidates or (runner.size or 0) < 3:
        return ()
    other = (candidates[0] + 1) % (runner.size or 1)
    return () if runner.run(without=[other]).is_finite else tuple(candidates)


def _line_search(
    runner: _Runner, before: Mapping[str, Tensor], after: Mapping[str, Tensor] | None
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return the loss of the batch at multiples of the update, as far as the budget goes."""
    own = dict(runner.module.named_parameters()) if after is None else after
    ends = {plain_name(name): one for name, one in own.items()}
    found: list[tuple[float, float]] = []
    for factor in FACTORS:
        weights = {name: _between(one, ends.get(plain_name(name), one), factor) for name, one in before.items()}
        try:
            found.append((factor, runner.run(weights=weights, backward=False).loss))
        except ReplayStopped:
            break
    return {"line_search": tuple(found)}


def _between(start: Tensor, end: Tensor, factor: float) -> Tensor:
    if factor in (0.0, 1.0) or not (start.is_floating_point() or start.is_complex()):
        return end if factor == 1.0 else start
    start, end = start.detach(), end.detach().to(start.device)
    return (start + factor * (end - start)).to(start.dtype)


def _row_share(runner: _Runner) -> dict[str, Any]:
    """Find the row with the largest share in a loss that is a mean over rows, by leaving out ever smaller groups."""
    total, size = runner.run(backward=False).loss, runner.size or 0
    if size < 2 or not math.isfinite(total) or total == 0.0:
        return {}

    def share(group: Sequence[int]) -> float:
        rest = runner.run(without=group, backward=False).loss
        return 1.0 - rest * (size - len(group)) / (total * size)

    best, candidates = 1.0, range(size)
    while len(candidates) > 1:
        width = math.ceil(len(candidates) / GROUPS)
        groups = [candidates[at : at + width] for at in range(0, len(candidates), width)]
        best, candidates = max(((share(group), group) for group in groups), key=lambda one: one[0])
    return {"row_share": best, "heaviest_row": candidates[0]}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _to_float32(copy: ModuleCopy) -> None:
    """Convert the half-precision parameters and buffers of a copy; the run's own stay as they are."""
    for parameter in copy.module.parameters():
        if parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    for module in copy.module.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in HALF:
                module._buffers[name] = wide = buffer.float()
                copy.owned.append(wide)
