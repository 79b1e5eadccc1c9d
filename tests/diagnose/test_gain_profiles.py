"""How outputs grow over the layers of a network before any update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.detect import BackwardGain
from lightning_gradexplode.diagnose.gain_profiles import backward_gain, steepest_profile
from lightning_gradexplode.records import Activation, Evidence, Replay
from tests.detect.steps import findings_of
from tests.detect.test_backward_gain import profile, steps
from tests.diagnose.evidence import NAN, finding, history, parameter, run

LAYERS = [f"layers.{place}" for place in range(12)]


@pytest.mark.parametrize(("norm", "is_known"), [(12.0, True), (28.0, False)])
def test_outputs_that_grow_after_a_large_first_update_say_nothing_of_the_layers(norm: float, is_known: bool) -> None:
    """The first norm that is measured is that after the first update; it is compared with the initial weights'."""
    replay = Replay(
        "reproduced", activations=tuple(Activation(one, "Linear", 3.0**n, 9.0**n) for n, one in enumerate(LAYERS))
    )
    kept = replace(
        history({"loss": [4.8, NAN], "weight_norm": [norm, NAN]}),
        parameters=tuple(f"{one}.weight" for one in LAYERS),
        parameter_grad_norm=np.zeros((2, 12), np.float32),
    )
    facts = run(parameters=tuple(parameter(f"{one}.weight", (12, 12), std=12**0.5 / 12) for one in LAYERS))
    evidence = Evidence(1, 1, (finding("nonfinite-loss", 1),), facts, (kept,), replay=replay)
    assert (steepest_profile(evidence) is not None) is is_known


def test_the_number_of_modules_is_read_from_the_message_of_the_detector() -> None:
    """With another message of the detector this sign would no longer be evidence for a cause."""
    found = findings_of(BackwardGain(), steps(profile(300.0, 280.0, 270.0, 1.1, 1.0, 1.0)))
    known = backward_gain(Evidence(0, 0, tuple(found), run(), ()))
    assert known is not None
    assert known.count == 6
    assert known.total == pytest.approx(300.0)
