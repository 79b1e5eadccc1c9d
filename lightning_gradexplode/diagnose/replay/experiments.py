"""Experiments with a copy of the module, in place of guesses about the cause."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay.batch import batch_size, map_batch, take_rows
from lightning_gradexplode.diagnose.replay.guard import HALF, Guard
from lightning_gradexplode.diagnose.replay.module_copy import ModuleCopy, unwrapped
from lightning_gradexplode.diagnose.replay.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.step import Outcome, ReplayStep, compute, deadline_of
from lightning_gradexplode.records import Experiments, Replay

STEPS, SECONDS = 30.0, 3.0
"""All experiments together may take as long as so many ordinary steps, or seconds, whichever is greater."""

FACTORS = (0.0, 0.01, 0.1, 0.3, 1.0)
"""The line search: multiples of the step's update."""

Result = TypeVar("Result")


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
    """Measure with a copy of the module what tells causes apart; each measurement that fails is left out.

    Args:
        step: The step.
        replay: What its replay has shown.
        before: Weights before the step's update by parameter name, for the line search.
        after: Weights after it; None for the module's own.
        rows: Rows of the batch to leave out; empty for those of the replay's first operation.
        shares: Whether the largest share of one row in the loss is looked for.
        memory_grad_norm: L2 norm of the gradients that the run held, unscaled.
        initial_grad_norm: L2 norm of the run's first gradient.
    """
    begin = time.perf_counter()
    runner = _Runner(step, deadline_of(step, STEPS, SECONDS))
    rows = tuple(rows) or _rows_at_fault(replay)
    nothing: dict[str, Any] = {}
    no_pairs: tuple[tuple[float, float], ...] = ()
    results: dict[str, Any] = {
        "memory_grad_norm": memory_grad_norm,
        "initial_grad_norm": initial_grad_norm,
        "batch_grad_norm": replay.grad_norm if replay is not None else None,
    }
    failed = replay is not None and replay.status == "reproduced"
    if failed and replay is not None and replay.half_precision:
        results |= _attempt(lambda: _float32(runner), nothing)
    if failed and rows:
        results |= _attempt(lambda: _without_rows(runner, rows), nothing)
    if before is not None:
        results["line_search"] = _attempt(lambda: _line_search(runner, before, after), no_pairs)
    if shares:
        results |= _attempt(lambda: _row_shares(runner), nothing)
    if results["batch_grad_norm"] is None and replay is None:
        results["batch_grad_norm"] = _attempt(lambda: runner.run()[1].measure_gradients().norm, None)
    return Experiments(**results, seconds=time.perf_counter() - begin)


class _Runner:
    """Runs variants of a step within one budget.

    Args:
        step: The step.
        deadline: When the budget is used up.
    """

    def __init__(self, step: ReplayStep, deadline: float) -> None:
        self.step = step
        self.deadline = deadline

    def run(
        self, *, weights: Mapping[str, Tensor] | None = None, float32: bool = False, **settings: Any
    ) -> tuple[Outcome, ModuleCopy]:
        """Compute the step on a new copy.

        Args:
            weights: Weights to use.
            float32: Whether everything is computed in float32.
            **settings: Arguments of `compute`.

        Raises:
            ReplayStopped: The step did not get to its end.
        """
        copy = self.step.copy(self.deadline, **({} if weights is None else {"weights": weights}))
        if float32:
            _to_float32(copy)
        guard = Guard(copy.owned, deadline=self.deadline, float32=float32)
        outcome = compute(self.step, copy, guard, **settings)
        if outcome.stopped:
            raise ReplayStopped(outcome.stopped)
        return outcome, copy


def _attempt(experiment: Callable[[], Result], otherwise: Result) -> Result:
    try:
        return experiment()
    except (ReplayStopped, Exception):
        return otherwise


def _is_finite(outcome: Outcome, copy: ModuleCopy) -> bool:
    return bool(outcome.losses) and all(map(math.isfinite, outcome.values)) and not copy.measure_gradients().nonfinite


def _float32(runner: _Runner) -> dict[str, Any]:
    """Compute the step in float32."""
    batch = map_batch(runner.step.fresh_batch(), _float)
    outcome, copy = runner.run(float32=True, batch=batch, context=nullcontext())
    return {"finite_in_float32": _is_finite(outcome, copy), "float32_loss": _first(outcome)}


def _without_rows(runner: _Runner, rows: Sequence[int]) -> dict[str, Any]:
    batch = runner.step.fresh_batch()
    size = batch_size(batch)
    keep = [row for row in range(size or 0) if row not in set(rows)]
    if size is None or not keep:
        return {}
    outcome, copy = runner.run(batch=take_rows(batch, keep, size))
    return {
        "rows_removed": tuple(rows),
        "finite_without_rows": _is_finite(outcome, copy),
        "loss_without_rows": _first(outcome),
        "grad_norm_without_rows": copy.measure_gradients().norm,
    }


def _line_search(
    runner: _Runner, before: Mapping[str, Tensor], after: Mapping[str, Tensor] | None
) -> tuple[tuple[float, float], ...]:
    """Return the loss of the batch at multiples of the update."""
    found = []
    ends = dict(unwrapped(runner.step.module).named_parameters()) if after is None else after
    for factor in FACTORS:
        weights = {
            name: torch.lerp(start.detach().float(), ends[name].detach().float(), factor).to(start.dtype)
            if start.is_floating_point()
            else start
            for name, start in before.items()
        }
        outcome, _ = runner.run(weights=weights, backward=False)
        found.append((factor, _first(outcome)))
    return tuple(found)


def _row_shares(runner: _Runner) -> dict[str, Any]:
    """Find the row with the largest share in a loss that is a mean over rows, by leaving out ever smaller groups."""
    batch = runner.step.fresh_batch()
    size = batch_size(batch)
    outcome, _ = runner.run(backward=False, batch=batch)
    total = _first(outcome)
    if size is None or size < 2 or not math.isfinite(total) or total == 0.0:
        return {}

    def share(group: Sequence[int]) -> float:
        keep = [row for row in range(size) if row not in set(group)]
        rest, _ = runner.run(backward=False, batch=take_rows(runner.step.fresh_batch(), keep, size))
        return 1.0 - _first(rest) * len(keep) / (total * size)

    candidates: Sequence[int] = range(size)
    best = 0.0
    while len(candidates) > 1:
        width = max(1, math.ceil(len(candidates) / 4))
        groups = [candidates[at : at + width] for at in range(0, len(candidates), width)]
        best, candidates = max(((share(group), group) for group in groups), key=lambda one: one[0])
    return {"row_share": best, "heaviest_row": candidates[0]}


def _rows_at_fault(replay: Replay | None) -> tuple[int, ...]:
    """Return the rows in which a replay found non-finite values first."""
    if replay is None:
        return ()
    operations = [one for one in (replay.hidden, replay.first) if one is not None and one.rows]
    return operations[0].rows if operations else replay.source_rows


def _first(outcome: Outcome) -> float:
    return outcome.values[0] if outcome.losses else float("nan")


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _to_float32(copy: ModuleCopy) -> None:
    """Convert the half-precision parameters and buffers of a copy; the run's own stay as they are."""
    for parameter in copy.module.parameters():
        if parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    for module in copy.module.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = wide = _float(buffer)
                copy.owned.append(wide)
