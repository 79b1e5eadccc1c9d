"""Targets outside of what the loss takes."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.targets import target_out_of_range
from lightning_gradexplode.records import LossTerm, Replay
from tests.diagnose.evidence import NAN, batch, diverged, failed, field, history, labels, operand, operation, reproduced


@pytest.mark.parametrize(
    ("least", "greatest", "code"),
    [
        (1.0, 2.0, "batch[1] - 1"),
        (-1.0, 0.0, "batch[1] + 1"),
        (0.0, 255.0, "batch[1] / 255"),
        (-1.0, 1.0, "(batch[1] + 1) / 2"),
        (-0.5, 3.5, "(batch[1] + 0.5) / 4"),
    ],
)
def test_targets_of_a_probability_are_brought_to_its_range(least: float, greatest: float, code: str) -> None:
    """The code maps the least target to zero, and the greatest to one."""
    taken = operand(least=least, greatest=greatest)
    replay = Replay("finite", losses=(LossTerm("binary_cross_entropy_with_logits", (operand(), taken)),))
    found = target_out_of_range(
        diverged(batch=batch(field(), field("[1]", least=least, greatest=greatest)), replay=replay)
    )
    assert found is not None
    assert f"`batch[1] = {code}`" in found.remedies[0]
    mapped = [eval(code.replace("batch[1]", "y"), {"y": end}) for end in (least, greatest)]
    assert mapped == [0.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "losses", "argument", "is_named"),
    [
        ({}, (0.7, -0.9), (0.0, 0.99), True),
        ({"least": -1.0, "greatest": 1.0}, (0.7, -0.9), (0.0, 0.99), True),
        ({"greatest": 1.0}, (0.7, -0.9), (0.0, 0.99), False),
        ({"is_integral": False}, (0.7, -0.9), (0.0, 0.99), False),
        ({"name": "returns"}, (0.7, -0.9), (0.0, 0.99), False),
        ({}, (0.7, 0.1), (0.0, 0.99), False),
        ({}, (-0.7, -0.9), (0.0, 0.99), False),
        ({}, (0.7, -0.9), (-2.0, 3.0), False),
    ],
)
def test_logarithms_of_probabilities_whose_loss_is_negative_have_wrong_labels(
    changes: dict[str, Any], losses: tuple[float, float], argument: tuple[float, float], is_named: bool
) -> None:
    """A cross-entropy that is written by hand takes labels of 2, or of -1, until its logarithm is infinite."""
    label = field(**{"name": "[1]", "shape": (16,), "least": 0.0, "greatest": 2.0, "is_integral": True, **changes})
    quantities = {"loss": [losses[0], 0.5, losses[1], NAN], "grad_norm": [0.5, 0.6, 0.7, NAN]}
    replay = reproduced(operation("log", "-inf", inputs=[operand(0.0, *argument)]))
    evidence = failed(3, batch=batch(field(), label), replay=replay, history=(history(quantities),))
    found = target_out_of_range(evidence)
    assert (found is not None) == is_named
    assert diagnose(evidence).causes[0].kind == ("target-out-of-range" if is_named else "undefined-operation")


@pytest.mark.parametrize("name", ["nll_loss", "binary_cross_entropy_with_logits"])
def test_targets_that_the_loss_takes_are_not_at_fault(name: str) -> None:
    """What is not finite there are the weights of classes; the labels are from 0 to 1, as for both losses."""
    label = labels(dtype="float32") if "binary" in name else labels()
    taken = operand(least=0.0, greatest=1.0, shape=(16,), dtype=label.dtype)
    first = operation(name, inputs=[operand(), taken, operand(shape=(2,), inf_count=1)])
    evidence = failed(0, batch=batch(field(), label), replay=reproduced(first))
    assert target_out_of_range(evidence) is None
    assert diagnose(evidence).causes[0].kind == "undefined-operation"


@pytest.mark.parametrize(("failures", "is_named"), [(6, True), (1, False)])
def test_saturated_probabilities_with_the_range_of_labels_are_not_taken_for_them(failures: int, is_named: bool) -> None:
    """Of 16 labels with a mean of 0.625 six are 0: the logarithm of the labels themselves fails at six elements."""
    label = labels(dtype="float32", mean=0.625, is_integral=True)
    taken = operand(0.0, 0.0, 1.0, shape=(16,))
    first = operation("log", "-inf", inputs=[taken], rows=tuple(range(failures)), element_count=failures)
    evidence = failed(0, batch=batch(field(), label), replay=reproduced(first))
    assert (target_out_of_range(evidence) is not None) == is_named


def test_a_target_that_multiplies_a_logarithm_is_not_its_argument() -> None:
    """A plain loop names the target by the logarithm that it multiplies, whatever range both have."""
    taken = operand(0.0, 0.0, 1.0, shape=(16,))
    first = operation("log", "-inf", inputs=[taken], rows=(3,), element_count=6)
    target = labels("target of log", dtype="float32", mean=0.625, is_integral=True)
    evidence = failed(0, batch=batch(target), replay=reproduced(first))
    assert target_out_of_range(evidence) is None


@pytest.mark.parametrize(("std", "is_third"), [(0.8, True), (0.9999, False)])
def test_labels_from_minus_one_to_one_are_mapped_unless_there_are_zeros(std: float, is_third: bool) -> None:
    """Two labels are mapped to 0 and 1; of three, one marks missing labels, or there are three classes."""
    signs = field("[1]", least=-1.0, greatest=1.0, mean=0.0, std=std, is_integral=True)
    replay = Replay(
        "finite", losses=(LossTerm("binary_cross_entropy", (operand(), operand(least=-1.0, greatest=1.0))),)
    )
    found = target_out_of_range(diverged(batch=batch(field(), signs), replay=replay))
    assert found is not None
    assert ("known = batch[1] >= 0" in found.remedies[0]) is is_third
    assert ("(batch[1] + 1) / 2" in found.remedies[0]) is not is_third


@pytest.mark.parametrize(
    ("is_masked", "first", "second"), [(True, "undefined-operation", 0.5), (False, "target-out-of-range", 0.96)]
)
def test_targets_whose_logarithm_the_code_masks_are_as_it_expects(is_masked: bool, first: str, second: float) -> None:
    """Only the slope at zero is not: `torch.where(claim > 0, loss(claim.log()), 0)`."""
    claims = labels(dtype="float32", least=0.0, greatest=425.6, is_integral=False)
    logarithm = operation("log", "-inf", inputs=[operand(0.0, 0.0, 425.6, shape=(16,))], rows=(3,))
    masked = reproduced(operation("mul", "nan", "backward"), hidden=logarithm)
    evidence = failed(
        4, "nonfinite-gradient", batch=batch(field(), claims), replay=masked if is_masked else reproduced(logarithm)
    )
    found = target_out_of_range(evidence)
    assert found is not None
    assert found.confidence == second
    assert diagnose(evidence).causes[0].kind == first


def test_a_slope_whose_operand_has_the_range_of_the_labels_by_chance_is_no_matter_of_them() -> None:
    """Labels from 0 to 2 are no reason of a root without a slope, of numbers that range from 0 to 2."""
    slope = operation("div", "inf", "backward", [operand(0.0, 0.0, 2.0, shape=(16, 3))], node="SqrtBackward0")
    assert target_out_of_range(failed(4, batch=batch(field(), labels(greatest=2.0)), replay=reproduced(slope))) is None


@pytest.mark.parametrize(
    ("least", "greatest", "code"), [(-0.9, 0.7, "target.softmax(dim=-1)"), (-9.0, -0.1, "log_target=True")]
)
def test_the_target_of_a_divergence_is_no_score_and_no_logarithm(least: float, greatest: float, code: str) -> None:
    """The target multiplies its own logarithm, which is NaN below zero."""
    target = operand(least, least, greatest)
    divergence = operation("xlogy", "nan", inputs=[target, target])
    found = target_out_of_range(failed(0, replay=reproduced(divergence)))
    assert found is not None
    assert f"from {least:.4g} to {greatest:.4g}" in found.evidence[0]
    assert code in found.remedies[0]


def test_a_logarithm_of_what_the_model_made_is_no_matter_of_the_target() -> None:
    """A probability of zero is multiplied with its target, which is another tensor."""
    likelihood = operation("xlogy", "-inf", inputs=[operand(1.0, 0.0), operand(0.0, 0.0)])
    assert target_out_of_range(failed(0, replay=reproduced(likelihood))) is None


def test_a_mask_is_no_target() -> None:
    """A field of booleans has no values outside of what a loss takes, even if it is the last of a batch."""
    masked = operation("masked_fill", "-inf", inputs=[operand(0.1), operand(1.0, 0.0, 1.0, dtype="bool")])
    mask = field("is_padding", least=0.0, greatest=1.0, dtype="bool", shape=(16, 4))
    assert target_out_of_range(failed(4, batch=batch(field(), mask), replay=reproduced(masked))) is None


@pytest.mark.parametrize(("later", "is_named"), [((-1.0, 1.0), True), ((0.0, 1.0), False)])
def test_targets_of_the_first_loss_are_known_where_the_step_was_not_computed_again(
    later: tuple[float, float], is_named: bool
) -> None:
    """Labels of -1 and 1 in a loop that passes its batches, with a loss that is a function and no module."""
    taken = operand(least=later[0], greatest=later[1])
    first = (LossTerm("binary_cross_entropy_with_logits", (operand(), taken)),)
    known = diverged(batch=batch(field(), field("[1]", least=later[0], greatest=later[1])), first_losses=first)
    found = target_out_of_range(known)
    assert (None if found is None else found.where) == ("batch[1]" if is_named else None)


def test_a_target_that_the_graph_names_has_no_name_in_code() -> None:
    """A loop passes the loss only: its graph names the loss, whose domain is known."""
    taken = field("target of binary_cross_entropy_with_logits", least=0.0, greatest=100.0)
    found = target_out_of_range(diverged(batch=batch(field("input of net"), taken)))
    assert found is not None
    assert "its target ranges from 0 to 100" in found.evidence[0]
    assert "`target = target / 100`" in found.remedies[0]


@pytest.mark.parametrize(("least", "greatest", "is_possible"), [(-3.0, -1.0, False), (-1.0, 3.0, True)])
def test_whole_numbers_that_are_all_negative_are_no_labels_of_a_loss_that_is_not_known(
    least: float, greatest: float, is_possible: bool
) -> None:
    """They weigh the terms of an objective, such as rewards; with numbers of both signs the cause stays uncertain."""
    signed = field("advantage", shape=(16,), least=least, greatest=greatest, is_integral=True)
    quantities = {"loss": [1.0, -3.0, -8.0, -20.0], "grad_norm": [0.5, 0.6, 0.7, 0.8]}
    found = target_out_of_range(diverged(batch=batch(field(), signed), history=(history(quantities),)))
    assert (found is not None) == is_possible
    assert found is None or found.confidence < 0.6
