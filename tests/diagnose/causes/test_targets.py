"""Targets outside of what the loss takes."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.causes.targets import target_out_of_range
from lightning_gradexplode.records import LossTerm, Replay
from tests.diagnose.evidence import batch, diverged, failed, field, labels, operand, operation, reproduced


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


def test_a_slope_whose_operand_has_the_range_of_the_labels_by_chance_is_no_matter_of_them() -> None:
    """Labels from 0 to 2 are no reason of a root without a slope, of numbers that range from 0 to 2."""
    slope = operation("div", "inf", "backward", [operand(0.0, 0.0, 2.0, shape=(16, 3))], node="SqrtBackward0")
    assert target_out_of_range(failed(4, batch=batch(field(), labels(greatest=2.0)), replay=reproduced(slope))) is None
