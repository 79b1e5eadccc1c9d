"""Buffers and attributes of the user's module that are not finite."""

from __future__ import annotations

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import first_nonfinite
from lightning_gradexplode.diagnose.faults.operations import name_of
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence


def nonfinite_constant(evidence: Evidence) -> Cause | None:
    """Return the cause if a buffer or an attribute of the module was not finite before the step: a class weight.

    An infinity that only an operation made NaN of was meant to be, as in a mask; not so in the weights of a loss.
    """
    replay = evidence.replay
    if replay is None or replay.status != "reproduced" or replay.source not in ("buffer", "attribute"):
        return None
    if replay.first is not None and name_of(replay.first) not in ("nll_loss", "binary_cross_entropy_with_logits"):
        return None
    what = f"{replay.source} `{replay.source_name}`"
    return Cause(
        "undefined-operation",
        what,
        (f"The {what} of the module holds values that are not finite, and held them before the step.",),
        0.9,
        (f"make `{replay.source_name}` finite where it is computed; of a count: `1 / count.clamp(min=1)`",),
    )


def written_buffer(evidence: Evidence) -> Cause | None:
    """Return the cause if a buffer that the step itself writes is the first that is not finite."""
    replay = evidence.replay
    if replay is None or (replay.status, replay.source) != ("not-reproduced", "buffer") or not replay.source_name:
        return None
    if first_nonfinite(evidence) is None or trend(evidence).has_diverged:
        return None
    return Cause(
        "undefined-operation",
        replay.source_name,
        (
            f"The buffer `{replay.source_name}`, which the step itself writes, is not finite; loss, gradients and "
            "weights of the steps before were: what is written has no finite value, as a mean over nothing.",
        ),
        0.6,
        (
            f"keep the divisor away from zero where `{replay.source_name}` is written: `total / count.clamp(min=1)`",
            *remedies.anomaly_mode(evidence),
        ),
    )
