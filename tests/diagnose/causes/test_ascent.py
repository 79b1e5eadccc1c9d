"""Steps that go up the slope of the loss, as targets that stay and short steps show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.diagnose.causes.ascent import ascent
from lightning_gradexplode.diagnose.causes.moving_target import moving_target
from lightning_gradexplode.records import Evidence, LossTerm, Replay
from tests.diagnose.evidence import batch, diverged, finding, history, operand, parameter, run


def rising(targets: float = 3.0, outputs: float = 30.0, change: float = 0.2) -> Evidence:
    """Return the evidence of a loss that grows by a tenth at each step, and of its loss function then and at first.

    Args:
        targets: Largest target in the incident; 2.5 at the start.
        outputs: Largest output; 1.0 at the start.
        change: Change of the loss that an update can have caused to first order.
    """
    loss = [1.1**step for step in range(60)]
    quantities = {
        "loss": loss,
        "grad_norm": [one**0.5 for one in loss],
        "update_ratio": [change * one**0.5 / 10 for one in loss],
        "weight_norm": [10.0] * 59 + [20.0],
    }
    one = replace(history(quantities), parameters=("body.weight",), parameter_grad_norm=np.zeros((60, 1), np.float32))
    terms = [
        LossTerm("mse_loss", (operand(greatest=output), operand(greatest=target, is_constant=True)))
        for output, target in ((1.0, 2.5), (outputs, targets))
    ]
    return diverged(
        step=40,
        now=59,
        findings=(finding("diverging-loss", 55),),
        history=(one,),
        batch=batch(),
        run=run(parameters=(parameter("body.weight", (100, 100), std=0.1),)),
        first_losses=(terms[0],),
        replay=Replay("not-possible", losses=(terms[1],)),
    )


def test_short_steps_that_raise_the_loss_on_targets_that_stay_go_up() -> None:
    """An update of the user's own that adds the gradient; the targets do not move."""
    found = ascent(rising())
    assert found is not None
    assert (found.kind, found.confidence) == ("loss-without-floor", 0.6)
    assert "subtract the gradient" in found.remedies[0]
    assert moving_target(rising()) is None


@pytest.mark.parametrize(
    "evidence",
    [
        rising(targets=25.0),
        rising(outputs=2.0),
        rising(change=2.0),
        replace(rising(), input_growth=5.0),
        replace(rising(), moves_weights=True),
    ],
    ids=["targets grow", "outputs stay", "long steps", "inputs grow", "weights are changed by the loop"],
)
def test_other_reasons_for_a_rise_are_no_ascent(evidence: Evidence) -> None:
    """Targets made from the outputs, updates that overshoot, and data that change."""
    assert ascent(evidence) is None
