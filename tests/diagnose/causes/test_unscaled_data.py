"""Fields on a large scale, as a rule over recorded facts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.diagnose.causes.unscaled_data import unscaled_data
from lightning_gradexplode.records import AppliedWeight, Evidence, Severity
from tests.diagnose.evidence import batch, calm, diverged, field, finding, growing, history, parameter, run

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


@pytest.mark.parametrize(("died", "growth", "named"), [(8, 10.0, True), (60, 10.0, False), (8, 1.0, False)])
def test_large_inputs_whose_first_updates_make_units_inactive_are_unscaled(
    died: int, growth: float, named: bool
) -> None:
    """Pictures from 0 to 255, after which no gradient passes; not of layers that were never large, or died later."""
    steps = 100
    quantities = {**calm(steps), "grad_norm": [1e3] * died + [0.5] * (steps - died), "loss": [14.0, *[2.3] * 99]}
    start = math.sqrt(sum(one.std**2 * math.prod(one.shape) for one in run().parameters))
    quantities["weight_norm"] = [start * min(1 + (growth - 1) * step / 5, growth) for step in range(steps)]
    norms = np.ones((steps, 2), dtype=np.float32)
    norms[died:, 0] = 0
    kept = replace(history(quantities), parameters=("body.weight", "head.weight"), parameter_grad_norm=norms)
    warned = (finding("zero-gradient", steps - 1, Severity.WARNING, "body.weight"),)
    pictures = field("image", least=0.0, greatest=255.0, mean=127.0, std=74.0, usual_least=0.0, usual_greatest=255.0)
    found = unscaled_data(Evidence(steps - 1, steps - 1, warned, run(), (kept,), batch=batch(pictures, field("label"))))
    assert (found is not None) == named


def test_indices_into_a_table_are_not_unscaled() -> None:
    """By a table of the network with so many rows, or by the name of the field."""
    table = run(parameters=(parameter("users.weight", (1_000_000, 8)),))
    assert unscaled_data(diverged(batch=batch(field("price"), USERS, field("label")), run=table)) is None
    named = replace(USERS, name="user_id")
    assert unscaled_data(diverged(batch=batch(field("price"), named, field("label")))) is None


def test_a_few_rows_do_not_make_a_field_unscaled() -> None:
    """A sample of a billion, which earlier batches held as well, leaves the other rows on their scale."""
    price = field("price", greatest=1e9, std=2.5e8, usual_greatest=1e9, usual_std=2.5e8, row_size=3.0)
    assert unscaled_data(diverged(batch=batch(price, field("label")))) is None
    assert unscaled_data(diverged(batch=batch(replace(price, row_size=4e8), field("label")))) is not None


def test_a_column_that_never_changes_can_be_standardized() -> None:
    """Its deviation is zero, and what it is divided by is not."""
    price = replace(field("price"), least=0.0, greatest=9e3, mean=4e3, std=2e3, usual_least=0.0, usual_greatest=9e3)
    found = unscaled_data(diverged(batch=batch(price, field("label"))))
    assert found is not None
    assert "/ (std + 1e-6)" in found.remedies[0]


@pytest.mark.parametrize(("period", "is_named"), [(20, True), (1, False)])
def test_losses_that_vary_may_be_low_now_and_then(period: int, is_named: bool) -> None:
    """A late failure is of the scale of the data, unless the loss had come down at most steps."""
    far = replace(field("price"), least=0.0, greatest=45.0, mean=22.0, std=13.0, usual_least=0.0, usual_greatest=45.0)
    values = calm(60)
    values["loss"] = [4e3, *[200.0 if step % period == 0 else 4e3 for step in range(1, 60)]]
    values["grad_norm"] = [3e3] * 60
    evidence = diverged(step=59, now=59, history=(history(values),), batch=batch(far, field("label")))
    evidence = replace(evidence, findings=(finding("weight-growth", 59),))
    assert (unscaled_data(evidence) is not None) is is_named


@pytest.mark.parametrize(
    ("sign", "is_named"), [("clip-saturated", True), ("gradient-above-one", True), ("unstable-loss", False)]
)
def test_clipping_at_nearly_every_step_hides_data_on_a_large_scale(sign: str, is_named: bool) -> None:
    """It is found once it has gone on for long, as is the size of gradients that were as large from the start."""
    far = replace(field("price"), least=0.0, greatest=9e3, mean=4e3, std=2e3, usual_least=0.0, usual_greatest=9e3)
    values = calm(60)
    values["loss"] = [1e7 * 0.95**step for step in range(60)]
    values["grad_norm"] = [1e6] * 60
    warned = (finding(sign, 49, Severity.WARNING),)
    evidence = diverged(step=49, now=59, findings=warned, history=(history(values),), batch=batch(far, field("label")))
    assert (unscaled_data(evidence) is not None) is is_named


@pytest.mark.parametrize(
    ("parts", "is_named"),
    [
        ({}, True),
        ({"applied": (AppliedWeight("body.weight", 1, 500.0), AppliedWeight("head.weight", 1, 500.0))}, False),
        ({"applied": (AppliedWeight("body.weight", 1, 1.0), AppliedWeight("head.weight", 1, None))}, False),
        ({"run": run(parameters=(parameter("body.weight", (32, 8), 50.0), parameter("head.weight", (1, 32))))}, False),
        ({"loss_divisors": (1e-6,)}, False),
        ({"loss_divisors": None}, False),
        ({"compares_layer": False}, False),
    ],
    ids=["targets", "inputs", "unknown", "weights", "a factor of the loss", "an unknown factor", "divided outputs"],
)
def test_targets_are_what_is_left_of_a_huge_first_loss(parts: dict[str, Any], is_named: bool) -> None:
    """If they are not known, and what all layers take, the weights and the factors of the loss are on a usual scale."""
    values = growing()
    values["loss"] = [1e13 * one for one in values["loss"]]
    values["grad_norm"] = [1e6 * one for one in values["grad_norm"]]
    known: dict[str, Any] = {
        "applied": (AppliedWeight("body.weight", 1, 1.0), AppliedWeight("head.weight", 1, 0.5)),
        "loss_divisors": (),
        "compares_layer": True,
        "batch": batch(field("input of body")),
        "history": (history(values),),
    }
    assert (unscaled_data(diverged(**{**known, **parts})) is not None) is is_named


@pytest.mark.parametrize("count", [1, 2])
def test_all_data_on_a_large_scale_are_standardized_at_once(count: int) -> None:
    """Where the graph of the loss is all that shows them, one remedy names both: one of them alone is not enough."""
    large: dict[str, Any] = {"least": -4e5, "greatest": 4e5, "std": 1e5, "usual_std": 1e5, "usual_greatest": 4e5}
    fields = field("input of body", **large), field("target of mse_loss", **large)
    values = growing()
    values["grad_norm"] = [1e5 * one for one in values["grad_norm"]]
    found = unscaled_data(diverged(batch=batch(*fields[:count]), history=(history(values),)))
    assert found is not None
    assert all(one.name in found.remedies[0] for one in fields[:count])


@pytest.mark.parametrize(("size", "is_named"), [(5e6, True), (20.0, False)])
def test_features_that_a_model_computes_are_known_by_what_its_first_layer_takes(size: float, is_named: bool) -> None:
    """Powers of a number up to ten are on a large scale, though no field of the batch is."""
    values = growing()
    values["grad_norm"] = [1e5 * one for one in values["grad_norm"]]
    known = AppliedWeight("body.weight", 1, size), AppliedWeight("head.weight", 1, size)
    found = unscaled_data(diverged(batch=batch(field("x"), field("y")), applied=known, history=(history(values),)))
    assert (found is not None and found.where == "the input of `body`") is is_named
    few = field("y", greatest=1e9, std=2.5e8, row_size=3.0)  # rows of the batch, not computed ones
    assert unscaled_data(diverged(batch=batch(field("x"), few), applied=known, history=(history(values),))) is None


@pytest.mark.parametrize(
    ("sizes", "gain", "is_named"),
    [
        ((1.0, 3000.0), 0.58, True),
        ((1.0, 300.0), 0.58, False),
        ((1.0, 3000.0), 30.0, False),
        ((50.0, 3000.0), 1, False),
    ],
    ids=["positions added", "smaller", "by large weights", "grown from layer to layer"],
)
def test_what_is_computed_between_two_layers_is_known_by_what_the_second_takes(
    sizes: tuple[float, float], gain: float, is_named: bool
) -> None:
    """Positions up to 5,000 that are added to the result of a layer, for example; weights and data are usual."""
    values = growing()
    values["grad_norm"] = [1e5 * one for one in values["grad_norm"]]
    weights = parameter("body.weight", (32, 8), gain), parameter("head.weight", (1, 32))
    applied = tuple(AppliedWeight(one.name, 1, size) for one, size in zip(weights, sizes, strict=True))
    evidence = diverged(
        batch=batch(field("x"), field("y")),
        applied=applied,
        history=(history(values),),
        run=run(parameters=weights),
    )
    found = unscaled_data(evidence)
    assert (found is not None and found.where == "the input of `head`") is is_named


@pytest.mark.parametrize(("taken", "confidence"), [(0.7, 0.35), (105.0, 0.7), (None, 0.7)])
def test_a_field_that_no_layer_takes_as_it_is_is_probably_scaled_in_the_step(
    taken: float | None, confidence: float
) -> None:
    """As pictures that the loss divides by 255; what each layer multiplies is on the usual scale."""
    values = growing()
    values["grad_norm"] = [1e3 * one for one in values["grad_norm"]]
    large: dict[str, Any] = {"least": 0.0, "greatest": 255.0, "std": 105.0, "usual_std": 105.0, "usual_greatest": 255.0}
    weights = parameter("body.weight", (32, 8)), parameter("head.weight", (1, 32))
    found = unscaled_data(
        diverged(
            batch=batch(field("pixels", **large), field("y")),
            applied=(AppliedWeight("body.weight", 1, taken), AppliedWeight("head.weight", 1, 0.5)),
            history=(history(values),),
            run=run(parameters=weights),
        )
    )
    assert found is not None
    assert found.confidence == pytest.approx(confidence)
