"""Half precision, and the gradient scaler that goes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.precision import half_precision
from lightning_gradexplode.records import Evidence, OptimizerFacts, Replay, Severity
from tests.diagnose.evidence import (
    NAN,
    diverged,
    failed,
    finding,
    growing,
    history,
    kinds,
    operand,
    operation,
    parameter,
    reproduced,
    run,
)


def scaled(taken: float, last_scale: float = 4096.0, scaler: str = "adaptive") -> Evidence:
    """Return the evidence of a run with a loss scale, whose gradients overflow in its last steps."""
    values = growing()
    steps = len(values["loss"])
    values["grad_norm"][-4:] = [float("inf"), NAN, NAN, NAN]
    values["loss_scale"] = [4096.0] * (steps - 1) + [last_scale]
    values["update_taken"] = [1.0] * (steps - 4) + [taken] * 4
    findings = (
        finding("diverging-loss", steps - 5),
        finding("nonfinite-gradient", steps - 4, Severity.INFO, value=4.0),
        finding("nonfinite-gradient", steps - 1, value=4.0),
    )
    return diverged(history=(history(values),), run=run(scaler=scaler), findings=findings)


def test_an_update_that_a_scaler_leaves_out_was_taken_without_it() -> None:
    """The loss is scaled, and the optimizer's own step is called: the gradients are too large by the scale."""
    found = diagnose(scaled(1.0))
    assert kinds(found)[0] == "half-precision"
    assert "4096 times too large" in found.causes[0].evidence[0]
    assert "`scaler.step(optimizer)`" in found.remedies[0]


@pytest.mark.parametrize(
    "evidence",
    [scaled(0.0, 256.0), scaled(0.0), scaled(1.0, 2048.0), scaled(1.0, scaler="static")],
    ids=["left out", "left out at the least scale", "another scale", "a static scale"],
)
def test_a_scaler_that_takes_part_is_not_at_fault(evidence: Evidence) -> None:
    """It leaves updates out and lowers its scale, or its scale is one that never changes."""
    assert half_precision(evidence) is None


def test_a_scaler_without_overflows_is_not_at_fault() -> None:
    """Its scale stays where it is, and all updates are taken."""
    calm = scaled(1.0)
    assert half_precision(replace(calm, findings=calm.findings[:1])) is None


@pytest.mark.parametrize(("rate", "kind"), [(300.0, "learning-rate"), (0.05, "half-precision")])
def test_an_overflow_of_float16_after_an_update_as_large_as_the_weights(rate: float, kind: str) -> None:
    """At an unusually high rate it is a consequence of that update, which float32 only survives for longer."""
    values = {
        "loss": [7.0, NAN],
        "grad_norm": [4.0, NAN],
        "update_ratio": [380.0, NAN],
        "weight_norm": [3000.0, NAN],
        "learning_rate": [rate, rate],
    }
    weights = tuple(parameter(f"{name}.weight", (8, 8), dtype="float16") for name in ("body", "head"))
    facts = run(optimizers=(OptimizerFacts("SGD", ({"lr": rate},)),), parameters=weights)
    inputs = [operand(greatest=493.0, dtype="float16")]
    product = operation("addmm", "inf", inputs=inputs, finite_in_float32=True)
    lost = (finding("weight-growth", 0), finding("nonfinite-loss", 1))
    found = diagnose(Evidence(0, 1, lost, facts, (history(values),), replay=reproduced(product)))
    assert found.causes[0].kind == kind


@pytest.mark.parametrize(
    ("names", "has_diverged", "confidence"),
    [(("sub", "softmax"), False, 0.75), (("sub",), True, 0.35), ((), False, None)],
    ids=["finite before", "diverged before", "no operation in float16"],
)
def test_operations_of_which_one_has_overflowed_are_named(
    names: tuple[str, ...], has_diverged: bool, confidence: float | None
) -> None:
    """Of a step that cannot be computed again; after a divergence float16 is only the first to end."""
    replay = Replay("reproduced", half_precision=True, half_operations=names)
    evidence = diverged(replay=replay) if has_diverged else failed(4, "nonfinite-loss", replay=replay)
    found = half_precision(evidence)
    assert (None if found is None else found.confidence) == confidence
    if found is not None:
        assert found.where == " or ".join(f"`{one}`" for one in names)
        assert ("finfo" in found.remedies[0]) is ("softmax" in names)


@pytest.mark.parametrize(("grows", "is_named"), [(False, True), (True, False)], ids=["calm", "diverged"])
def test_gradients_of_zero_after_a_divergence_are_those_of_inactive_units(grows: bool, is_named: bool) -> None:
    """In float16 without a loss scale they are too small to be represented, unless weights and loss grew before."""
    facts = run(parameters=(parameter("body.weight", (8, 8), dtype="float16"),))
    evidence = diverged(run=facts) if grows else failed(20, run=facts)
    zero = finding("zero-gradient", evidence.now, Severity.WARNING)
    found = half_precision(replace(evidence, findings=(*evidence.findings[:1], zero)))
    assert (found is not None and found.confidence >= 0.7) is is_named
