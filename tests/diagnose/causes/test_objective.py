"""Objectives without a floor, and modules that make targets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_gradexplode.diagnose.causes.objective import copied_module, loss_without_floor
from lightning_gradexplode.records import LossTerm, Replay
from tests.diagnose.evidence import diverged, growing, history, operand, parameter, run


def facts(names: Sequence[str], untrained: str = "", count: int = 2) -> object:
    """Return what is known of a network of equal modules, of which one may have no optimizer."""
    parameters = [
        parameter(f"{name}.{layer}.weight", (8, 8), optimizer=None if name == untrained else 0)
        for name in names
        for layer in range(count)
    ]
    return copied_module(run(parameters=tuple(parameters)))


@pytest.mark.parametrize(
    ("names", "untrained"),
    [(("online", "target"), ""), (("student", "mirror"), "mirror")],
    ids=["by its name", "without an optimizer"],
)
def test_a_copy_is_known_by_its_name_or_since_nothing_trains_it(names: Sequence[str], untrained: str) -> None:
    """The pair is named, the copy second."""
    assert facts(names, untrained) == names


def test_layers_of_equal_shapes_are_no_copies() -> None:
    """Query, key and value of an attention, although a key encoder makes targets elsewhere."""
    assert facts(("query", "key", "value"), count=1) is None


def test_a_likelihood_of_plain_outputs_has_no_floor() -> None:
    """Logarithms of probabilities are never above zero; the line and the missing log-softmax are named."""
    falling = history({**growing(), "loss": [0.2, *(-(2.0**step) for step in range(1, 12))]})
    plain, log = (
        LossTerm("nll_loss_forward", (operand(least=-9.0, greatest=most),), file="m.py", line=3)
        for most in (40.0, -0.1)
    )
    found = loss_without_floor(diverged(history=(falling,), replay=Replay("finite", losses=(plain,))))
    assert found is not None
    assert found.where == "`nll_loss` at m.py:3"
    assert "log_softmax" in found.remedies[0]
    other = loss_without_floor(diverged(history=(falling,), replay=Replay("finite", losses=(log,))))
    assert other is not None
    assert other.where is None
