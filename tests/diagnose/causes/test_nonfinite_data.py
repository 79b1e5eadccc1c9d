"""Fields that are not finite, as rules over recorded facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.nonfinite_data import nonfinite_input, nonfinite_target
from lightning_gradexplode.records import ModuleFacts, Replay
from tests.diagnose.evidence import batch, diverged, failed, field, operand, operation, renamed, reproduced, run
from tests.diagnose.fault_examples import FAULTS, HALF


def test_data_of_a_graph_are_named_unless_they_may_be_computed() -> None:
    """One element of a row is missing; whole rows, columns and constants may result from a division by zero."""
    missing = field("input of net.0", nan_count=1, nonfinite_rows=(3,))
    whole = replace(missing, nan_count=8)
    constant = renamed(missing, "constant in mul")
    column = replace(missing, nan_count=16, nonfinite_rows=tuple(range(16)))
    causes = [nonfinite_input(failed(20, batch=batch(one))) for one in (missing, whole, constant, column)]
    assert [one is not None and one.confidence for one in causes] == [0.65, 0.3, 0.3, 0.3]
    assert causes[0] is not None
    assert causes[0].where == "input of net.0, row 3"
    overflown = replace(missing, dtype="float16", nan_count=0, inf_count=1)  # as it was converted
    for value, confidence in ((overflown, 0.3), (replace(overflown, dtype="bfloat16"), 0.65)):
        cause = nonfinite_input(failed(20, batch=batch(value)))
        assert cause is not None
        assert cause.confidence == confidence
    of_all = nonfinite_input(failed(0, batch=batch(column)))  # a column that the dataset has divided by zero
    assert of_all is not None
    assert of_all.confidence == 0.65


def test_data_of_a_graph_that_a_divergence_came_before_are_its_consequence() -> None:
    """What was computed without a gradient overflows with the network; a batch that is known was not computed."""
    target = field("target of mse_loss", shape=(16,), inf_count=4, nonfinite_rows=(1, 2, 5, 7))
    computed = nonfinite_target(diverged(batch=batch(target)))
    known = nonfinite_target(diverged(batch=batch(field(), renamed(target, "[1]"))))
    assert computed is not None
    assert known is not None
    assert (computed.confidence, known.confidence) == (0.3, 0.5)


def test_targets_made_beside_an_operation_that_overflows_are_not_named() -> None:
    """A style that is computed without a gradient overflows in half precision, as what is compared with it does."""
    target = field("target of mse_loss", dtype="float16", nan_count=3)
    product = replace(operation("bmm", "inf", inputs=[operand(dtype="float16")]), finite_in_float32=True)
    for first in (product, replace(product, name="sum")):
        evidence = failed(0, batch=batch(target), replay=reproduced(first), run=HALF)
        cause = nonfinite_target(evidence)
        assert cause is not None
        assert cause.confidence == 0.4
        assert diagnose(evidence).causes[0].kind == "half-precision"


def test_rows_are_counted_in_the_field_that_they_are_of() -> None:
    """The first field of a batch of graphs holds the atoms of all of them."""
    target = field("Y", shape=(16, 1), nan_count=1, nonfinite_rows=(10,))
    cause = nonfinite_target(failed(5, batch=replace(batch(field("V", shape=(140, 8)), target), size=140)))
    assert cause is not None
    assert cause.evidence[0] == '`batch["Y"]` holds 1 NaN element, in row 10 of 16.'


@pytest.mark.parametrize(
    ("reaches_layers", "kind"), [(False, "nonfinite-target"), (True, "nonfinite-input"), (None, "nonfinite-input")]
)
def test_a_field_that_no_layer_reads_is_a_target(reaches_layers: bool | None, kind: str) -> None:
    """Its name says nothing; the replay has shown that only the loss reads it."""
    mesh = field("fit_mesh", nan_count=1, nonfinite_rows=(9,))
    replay = Replay("reproduced", source="batch", source_name="fit_mesh", source_reaches_layers=reaches_layers)
    found = diagnose(failed(5, batch=batch(mesh, field("image"), field("target")), replay=replay)).causes[0]
    assert (found.kind, found.where) == (kind, 'batch["fit_mesh"], row 9')


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({}, "nonfinite-input"),
        ({"usual_least": None}, "undefined-operation"),
        ({"nan_count": 16}, "undefined-operation"),
    ],
    ids=["new infinities", "first batch", "masked NaN"],
)
def test_infinities_that_earlier_batches_did_not_hold_come_before_the_operation_that_made_nan_of_them(
    facts: dict[str, Any], kind: str
) -> None:
    """A tanh hides them from the loss, and a product with zero in the backward pass makes NaN of them."""
    column = field("[0]", **{"inf_count": 16, "nonfinite_rows": tuple(range(16)), **facts})
    product = operation("mm", "nan", inputs=[operand(-0.0, -0.0, 0.0)], phase="backward", node="AddmmBackward0")
    replay = reproduced(product, source="batch", source_name="[0]")
    found = diagnose(failed(28, "nonfinite-gradient", batch=batch(column, field("[1]")), replay=replay))
    assert found.causes[0].kind == kind
    assert sum(one.confidence >= 0.9 for one in found.causes) == 1


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
