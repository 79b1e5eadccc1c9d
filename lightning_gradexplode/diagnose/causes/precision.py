"""Overflow and underflow of float16 and bfloat16."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.operation_evidence import fault
from lightning_gradexplode.diagnose.causes.optimization import disruptive_update
from lightning_gradexplode.diagnose.curves import curve, first_nonfinite, loss_curve, signs
from lightning_gradexplode.diagnose.faults.operations import is_half, location_of, name_of
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, RunFacts

SMALLEST_FLOAT16 = 2.0**-25
"""Numbers below this are rounded to zero in float16."""

SMALLEST_CHANGE = {"float16": 2.0**-12, "bfloat16": 2.0**-9}
"""Relative changes below these are rounded away when they are added to a weight of the type."""


@dataclass(slots=True)
class _Case:
    """The evidence for half precision: sentences, a confidence, a place and remedies, the strongest sign first."""

    sentences: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    confidence: float = 0.0
    where: str | None = None

    def add(self, confidence: float, sentence: str, *remedy: str, where: str | None = None) -> None:
        self.sentences.append(sentence)
        self.remedies += [one for one in remedy if one not in self.remedies]
        self.confidence = max(self.confidence, confidence)
        self.where = self.where or where


def half_precision(evidence: Evidence) -> Cause | None:
    """Return the cause if the fault is there because of float16 or bfloat16, and would not be in float32."""
    unscaled = _step_without_scaler(evidence)
    if unscaled is not None:
        return unscaled
    kind = half_type(evidence.run)
    found, replay = fault(evidence), evidence.replay
    unnamed = replay.half_operations if replay is not None else ()
    if kind is None and not unnamed and not (found is not None and is_half(found[0])):
        return None
    experiments = evidence.experiments
    if experiments is not None and experiments.finite_in_float32 is False:
        return None
    case = _Case()
    _measured(evidence, case)
    _of_unnamed(evidence, unnamed, case)
    if kind is not None:
        _optimizer_epsilon(evidence, case)
        _scale(evidence, kind, case)
        _underflow(evidence, kind, case)
    if not case.confidence:
        return None
    return Cause(
        "half-precision",
        case.where,
        tuple(case.sentences),
        min(case.confidence, 0.97),
        (*case.remedies, *remedies.skip(evidence)),
    )


def _step_without_scaler(evidence: Evidence) -> Cause | None:
    """Return the cause if an update was taken that a gradient scaler would have left out.

    A scaler that adapts never takes an update with gradients that are not finite, and lowers its scale after it.
    """
    scale, taken = curve(evidence, "loss_scale").finite, curve(evidence, "update_taken")
    nonfinite = (one.step for one in evidence.findings if one.sign == "nonfinite-gradient")
    step = next((one for one in nonfinite if taken.at(one) == 1.0), None)
    if evidence.run.scaler != "adaptive" or step is None or scale.first is None or scale.last != scale.first:
        return None
    return Cause(
        "half-precision",
        None,
        (
            f"The gradients of step {step} are not finite and its update was taken, which a gradient scaler leaves "
            f"out; its scale has stayed at {scale.first:g}. The optimizer is stepped without the scaler, and its "
            f"gradients are {scale.first:g} times too large.",
        ),
        0.95,
        (
            "let the scaler take the step, which divides the gradients by the scale first: `scaler.step(optimizer)` "
            "and `scaler.update()` in place of `optimizer.step()`",
        ),
    )


def half_type(run: RunFacts) -> str | None:
    """Return ``"float16"`` or ``"bfloat16"`` if the run computes in it, else None."""
    types = {one.dtype.removeprefix("torch.") for one in run.parameters}
    if "float16" in types or "half" in types or run.precision.startswith(("16", "transformer-engine-float16")):
        return "float16"
    if "bfloat16" in types or run.precision.startswith("bf16"):
        return "bfloat16"
    return None


def weights_type(run: RunFacts) -> str | None:
    """Return ``"float16"`` or ``"bfloat16"`` if most of the weights themselves are of it, else None."""
    types = [one.dtype.removeprefix("torch.").replace("half", "float16") for one in run.parameters]
    for name in ("float16", "bfloat16"):
        if types.count(name) * 2 > len(types):
            return name
    if not types and run.precision.endswith("-true") and "16" in run.precision:
        return "bfloat16" if run.precision.startswith("bf") else "float16"
    return None


def _full_precision(evidence: Evidence) -> str:
    return f"compute in float32: {code_of(evidence.run).full_precision}"


def _measured(evidence: Evidence, case: _Case) -> None:
    """Record what the replay and the same step in float32 have shown, unless an update has replaced the weights."""
    if disruptive_update(evidence) is not None:
        return  # float32 only ends later
    found = fault(evidence)
    finite = evidence.experiments is not None and bool(evidence.experiments.finite_in_float32)
    if found is not None and is_half(found[0]) and found[1].kind in ("overflow", "undefined"):
        operation, what = found
        alone = operation.finite_in_float32
        # A row that is masked in all elements is NaN in any type.
        unmeasured = 0.6 if name_of(operation) == "softmax" and what.kind == "undefined" else 0.75
        case.add(
            0.95 if finite or alone else unmeasured,
            f"{what.sentence} Computed in float32 its result is finite." if alone else what.sentence,
            _full_precision(evidence),
            where=location_of(operation),
        )
    if finite and first_nonfinite(evidence) is not None:
        loss = evidence.experiments.float32_loss if evidence.experiments is not None else None
        shown = "" if loss is None else f", with a loss of {loss:.4g}"
        where = None if found is None else location_of(found[0])
        case.add(0.93, f"Computed in float32 the same step is finite{shown}.", _full_precision(evidence), where=where)


def _of_unnamed(evidence: Evidence, names: tuple[str, ...], case: _Case) -> None:
    """Record operations in float16, one of which has made the first value that is not finite."""
    if not names or disruptive_update(evidence) is not None:
        return
    which = " or ".join(f"`{one}`" for one in names)
    mask = (
        "where scores are masked by a large constant, use one that float16 holds: "
        "`scores.masked_fill(hidden, torch.finfo(scores.dtype).min)`"
    )
    case.add(
        0.35 if trend(evidence).has_diverged else 0.75,
        f"The first value of the loss that is not finite was computed in float16 from finite values, by {which}, or in "
        "a tensor without a gradient that it takes; float16 ends at 65504.",
        *([mask] if "softmax" in names else []),
        _full_precision(evidence),
        where=which,
    )


def _optimizer_epsilon(evidence: Evidence, case: _Case) -> None:
    """Record an epsilon of the optimizer that is zero in float16."""
    finding = first_nonfinite(evidence)
    if weights_type(evidence.run) != "float16" or finding is None or finding.sign != "nonfinite-weight":
        return
    case.add(0.6, f"At step {finding.step} loss and gradients are finite, and the weights are not after the update.")
    for one in evidence.run.optimizers:
        for group in one.groups:
            eps = group.get("eps")
            if isinstance(eps, (int, float)) and not isinstance(eps, bool) and eps < SMALLEST_FLOAT16:
                case.add(
                    0.97,
                    f"The weights are float16 and `eps={eps:g}` of {one.kind} is 0 in float16: where a gradient is "
                    "small, the update divides by zero.",
                    f"`torch.optim.{one.kind}(model.parameters(), eps=1e-4)`"
                    if one.kind in ("Adam", "AdamW", "RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad")
                    else "raise the epsilon of the optimizer: `eps=1e-4`",
                    f"keep float32 weights: {code_of(evidence.run).float16}",
                    where=finding.where,
                )
                return


def _scale(evidence: Evidence, kind: str, case: _Case) -> None:
    """Record a loss scale that is too large, or that does not adapt."""
    finding = first_nonfinite(evidence)
    if finding is None or finding.sign == "nonfinite-weight" or kind != "float16":
        return
    scale = curve(evidence, "loss_scale").last
    loss = loss_curve(evidence).at(finding.step)
    if evidence.run.scaler == "static" and scale is not None:
        case.add(
            0.85,
            f"The loss is multiplied by a static scale of {scale:g}, which does not come down when float16 overflows.",
            "use a scaler that adapts: `torch.amp.GradScaler()`",
            where=finding.where,
        )
    elif finding.sign == "nonfinite-gradient" and loss is not None and evidence.run.scaler == "none":
        if trend(evidence).has_diverged:
            return
        case.add(
            0.75,
            f"The loss is {loss:.4g} at step {finding.step} and the gradient overflows; float16 ends at 65504.",
            "lower the loss scale (a static one of 128 leaves room), or use one that adapts: `torch.amp.GradScaler()`",
            where=finding.where,
        )
    elif evidence.run.scaler == "adaptive":
        taken = curve(evidence, "update_taken").finite
        recent = taken.value[-20:]
        if len(recent) >= 10 and not recent.any() and scale is not None:
            case.add(
                0.5,
                f"None of the last {len(recent)} updates was taken; the loss scale has come down to {scale:g}.",
                _full_precision(evidence),
            )


def _underflow(evidence: Evidence, kind: str, case: _Case) -> None:
    """Record gradients that are zero in float16, and updates that are lost when they are added to the weights."""
    found = signs(evidence)
    is_small = bool(found & {"zero-gradient", "vanishing-gradient"})
    # Where the run has diverged before, gradients are zero since units have become inactive.
    if kind == "float16" and is_small and evidence.run.scaler == "none" and not trend(evidence).has_diverged:
        case.add(
            0.75,
            "Gradients are zero or next to it in float16, where numbers below 6e-8 are zero, and the loss is not "
            "scaled.",
            f"scale the loss: {code_of(evidence.run).float16} does so by itself",
        )
    weights = weights_type(evidence.run)
    ratio = curve(evidence, "update_ratio").median
    if weights is not None and "stalled-loss" in found and ratio is not None and ratio < SMALLEST_CHANGE[weights]:
        case.add(
            0.7,
            f"Updates are {ratio:.2g} of the weights; changes below {SMALLEST_CHANGE[weights]:.2g} are lost in "
            f"{weights}.",
            f"keep float32 weights: {code_of(evidence.run).bfloat16}",
        )
