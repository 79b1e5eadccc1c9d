"""Changes that no update of the optimizer explains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.outside_changes import is_new_level, outside_change
from lightning_gradexplode.records import Evidence
from tests.diagnose.evidence import calm, finding, history, run


def jumped(weights: float = 900.0, ratio: float = 1e-5, later: float = 50.0) -> Evidence:
    """Return the evidence of a run whose weights and loss jump at step 30, ten steps before its end."""
    values = calm(40)
    values["loss"][30:] = [later] * 10
    values["grad_norm"][30:] = [later] * 10
    values["weight_norm"][30:] = [weights] * 10
    values["update_ratio"][30:] = [ratio] * 10
    return Evidence(30, 39, (finding("diverging-loss", 31),), run(), (history(values),))


def test_weights_that_jump_without_an_update_were_changed_by_something_else() -> None:
    """A norm cannot change by more than the norm of what is added."""
    change = outside_change(jumped())
    assert change is not None
    assert (change.step, change.after) == (30, 900.0)
    assert change.before == pytest.approx(8.029)


def test_weights_that_jump_by_an_update_were_not() -> None:
    """The update has the size of the jump."""
    assert outside_change(jumped(ratio=0.99)) is None


def test_a_jump_between_steps_whose_weights_were_not_measured_is_left_open() -> None:
    """Many updates lie between."""
    evidence = jumped()
    (one,) = evidence.history
    one.values["weight_norm"][20:30] = float("nan")
    assert outside_change(replace(evidence, history=(one,))) is None


@pytest.mark.parametrize(("factor", "is_outside"), [(1.15, True), (1.01, False)])
def test_weights_that_outgrow_their_updates_at_each_step_are_changed_by_something_else(
    factor: float, is_outside: bool
) -> None:
    """A loop that decays its weights with a wrong sign makes all of them larger, whatever the gradients."""
    values = calm(40)
    values["loss"][30:] = [50.0] * 10
    values["weight_norm"] = [8.0 * factor**step for step in range(40)]
    evidence = Evidence(30, 39, (finding("diverging-loss", 31),), run(), (history(values),))
    change = outside_change(evidence)
    assert (change is not None) is is_outside
    assert change is None or "at each step" in change.sentence
    assert change is None or "weight_decay" in diagnose(evidence).remedies[0]


def test_no_cause_is_named_where_something_else_changed_the_weights() -> None:
    """The change of the weights is reported, and a rollback is proposed."""
    found = diagnose(jumped())
    assert found.causes[0].kind == "unknown"
    assert "something other than the optimizer" in found.causes[0].evidence[0]
    assert 'on_explosion="rollback"' in found.remedies[0]


def test_a_loss_that_stays_up_under_ordinary_updates_is_no_outlier() -> None:
    """Ten batches in a row are no single one; the data have changed."""
    evidence = jumped(weights=8.1, ratio=0.003)
    assert is_new_level(evidence)
    assert diagnose(evidence).causes[0].kind == "unknown"


@pytest.mark.parametrize(("ratio", "later"), [(0.5, 50.0), (0.003, 0.8)], ids=["large updates", "no jump"])
def test_a_loss_after_large_updates_or_without_a_jump_is_no_new_level(ratio: float, later: float) -> None:
    """The updates may have made it; or nothing has happened."""
    assert not is_new_level(jumped(weights=8.1, ratio=ratio, later=later))
