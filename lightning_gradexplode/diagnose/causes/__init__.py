"""One rule for each kind of cause: a pure function of the evidence that returns a cause, or None."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradexplode.diagnose.causes.accumulation import accumulated_gradients
from lightning_gradexplode.diagnose.causes.depth import depth
from lightning_gradexplode.diagnose.causes.empty_reduction import empty_reduction
from lightning_gradexplode.diagnose.causes.forward_overflow import forward_overflow
from lightning_gradexplode.diagnose.causes.initialization import initialization
from lightning_gradexplode.diagnose.causes.moving_target import moving_target
from lightning_gradexplode.diagnose.causes.nonfinite_data import nonfinite_input, nonfinite_target
from lightning_gradexplode.diagnose.causes.objective import loss_without_floor
from lightning_gradexplode.diagnose.causes.optimization import learning_rate
from lightning_gradexplode.diagnose.causes.optimizer import optimizer_state
from lightning_gradexplode.diagnose.causes.outliers import outlier_batch
from lightning_gradexplode.diagnose.causes.precision import half_precision
from lightning_gradexplode.diagnose.causes.rate_rise import learning_rate_jump
from lightning_gradexplode.diagnose.causes.recurrence import recurrence
from lightning_gradexplode.diagnose.causes.targets import target_out_of_range
from lightning_gradexplode.diagnose.causes.undefined_operation import undefined_operation
from lightning_gradexplode.diagnose.causes.unscaled_data import unscaled_data
from lightning_gradexplode.records import Cause, Evidence

Rule = Callable[[Evidence], Cause | None]

RULES: dict[str, Rule] = {
    "nonfinite-input": nonfinite_input,
    "nonfinite-target": nonfinite_target,
    "target-out-of-range": target_out_of_range,
    "empty-reduction": empty_reduction,
    "unscaled-data": unscaled_data,
    "outlier-batch": outlier_batch,
    "undefined-operation": undefined_operation,
    "forward-overflow": forward_overflow,
    "half-precision": half_precision,
    "learning-rate": learning_rate,
    "learning-rate-jump": learning_rate_jump,
    "optimizer-state": optimizer_state,
    "accumulated-gradients": accumulated_gradients,
    "initialization": initialization,
    "depth": depth,
    "recurrence": recurrence,
    "loss-without-floor": loss_without_floor,
    "moving-target": moving_target,
}
"""The rules by kind of cause, in the order of `CAUSE_KINDS`."""

__all__ = ["RULES", "Rule"]
