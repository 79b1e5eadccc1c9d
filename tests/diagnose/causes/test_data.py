"""Causes in the batch, as rules over recorded facts."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.data import nonfinite_input, outlier_batch, unscaled_data
from lightning_gradexplode.records import ModuleFacts
from tests.diagnose.evidence import batch, calm, diverged, failed, field, finding, history, labels, parameter, run
from tests.diagnose.fault_examples import FAULTS

NANOSECONDS = field(
    "time", dtype="int64", least=1.7e18, greatest=1.8e18, mean=1.75e18, std=1e16, usual_least=1.7e18,
    usual_greatest=1.8e18, usual_std=1e16, is_integral=True,
)  # fmt: skip
USERS = replace(
    NANOSECONDS, name="user", least=0.0, greatest=9e5, mean=4e5, std=2e5, usual_least=0.0, usual_greatest=9e5
)


def test_whole_numbers_that_are_no_indices_are_unscaled() -> None:
    """Times in nanoseconds are, whatever their type."""
    found = unscaled_data(diverged(batch=batch(field("price"), NANOSECONDS, field("label"))))
    assert found is not None
    assert found.where == 'batch["time"]'


def test_indices_into_a_table_are_not_unscaled() -> None:
    """By a table of the network with so many rows, or by the name of the field."""
    table = run(parameters=(parameter("users.weight", (1_000_000, 8)),))
    assert unscaled_data(diverged(batch=batch(field("price"), USERS, field("label")), run=table)) is None
    named = replace(USERS, name="user_id")
    assert unscaled_data(diverged(batch=batch(field("price"), named, field("label")))) is None


def test_an_outlier_whose_loss_is_infinite_is_not_to_be_clipped() -> None:
    """A gradient that is not finite stays so at any clip value."""
    fill = field(least=-3.0, greatest=9.97e36, outlier_rows=(28,))
    finite, lost = (outlier_batch(one) for one in (diverged(batch=batch(fill)), failed(20, batch=batch(fill))))
    assert finite is not None
    assert lost is not None
    assert "clip" in finite.remedies[0]
    assert 'on_explosion="skip"' in lost.remedies[0]
    assert not any("clip" in one for one in lost.remedies)


def test_an_outlier_that_running_averages_take_in_is_to_be_limited_first() -> None:
    """Neither a clipped update nor one that is left out keeps it from them; without them the update is clipped."""
    outlier = batch(field("image", least=-9e4, greatest=1e5, outlier_rows=(5,)), field("label"))
    net = run(modules=(ModuleFacts("norm", "BatchNorm2d", "normalization"),))
    averaged, plain = (outlier_batch(diverged(batch=outlier, **parts)) for parts in ({"run": net}, {}))
    assert averaged is not None
    assert plain is not None
    assert 'batch["image"].clamp(-3.5, 3.5)' in averaged.remedies[0]
    assert "BatchNorm2d" in averaged.remedies[0]
    assert "clip=" in plain.remedies[0]


def test_a_column_that_never_changes_can_be_standardized() -> None:
    """Its deviation is zero, and what it is divided by is not."""
    price = replace(field("price"), least=0.0, greatest=9e3, mean=4e3, std=2e3, usual_least=0.0, usual_greatest=9e3)
    found = unscaled_data(diverged(batch=batch(price, field("label"))))
    assert found is not None
    assert "/ (std + 1e-6)" in found.remedies[0]


def test_a_jump_of_the_loss_over_data_of_a_usual_range_is_little_reason() -> None:
    """Where the data are not known they are the likely reason; where they are as usual, something else may be."""
    quantities = calm(30)
    quantities["loss"][26] *= 60
    jump = diverged(step=26, now=29, findings=(finding("diverging-loss", 26),), history=(history(quantities),))
    unknown, usual = outlier_batch(jump), outlier_batch(replace(jump, batch=batch(field(), labels())))
    assert unknown is not None
    assert usual is not None
    assert (unknown.confidence, usual.confidence) == (0.65, 0.4)


def test_data_of_a_graph_are_named_unless_they_may_be_computed() -> None:
    """One element of a row is missing; a whole row, or a constant, may be the result of a division by zero."""
    missing = field("input of net.0", nan_count=1, nonfinite_rows=(3,))
    whole = replace(missing, nan_count=8)
    constant = replace(missing, name="constant in mul")
    causes = [nonfinite_input(failed(20, batch=batch(one))) for one in (missing, whole, constant)]
    assert [one is not None and one.confidence for one in causes] == [0.8, 0.3, 0.3]
    assert causes[0] is not None
    assert causes[0].where == "input of net.0, row 3"


def test_clipping_is_no_remedy_for_nan_data() -> None:
    """No gradient of a NaN can be clipped to anything; skipping the update helps."""
    said = " ".join(diagnose(FAULTS["a row of NaN"][1]).remedies)
    assert "clip" not in said
    assert 'on_explosion="skip"' in said
    assert "row 5" in said


def test_rows_and_samples_are_named() -> None:
    """The rows of the batch, and the indices of the dataset where they are known."""
    cause = diagnose(FAULTS["a row of NaN"][1]).causes[0]
    assert cause.where == "batch[0], row 5"
    assert "305" in " ".join(cause.evidence)


def test_running_averages_that_took_nan_in_are_no_case_for_skipping() -> None:
    """The forward pass of a batch that is skipped has changed them already."""
    evidence = FAULTS["a row of NaN"][1]
    net = run(modules=(ModuleFacts("norm", "BatchNorm1d", "normalization"),))
    assert '"skip"' not in " ".join(diagnose(replace(evidence, run=net)).causes[0].remedies)
