"""Half precision, and the gradient scaler that goes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.precision import half_precision
from lightning_gradexplode.records import Evidence, Severity
from tests.diagnose.evidence import NAN, diverged, finding, growing, history, kinds, run


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
