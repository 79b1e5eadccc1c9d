"""What the loss of a batch along an update shows."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.records import Evidence, Experiments


@pytest.mark.parametrize(
    ("along", "climbs"),
    [
        ((12.0, 25.0, 60.0, 300.0), True),
        ((30.0, 20.0, 9.0, 300.0), False),
        ((500.0, 900.0, 2e3, 9e3), False),
        ((9.0, 8.0, 20.0, 300.0), False),
    ],
    ids=["upward", "up and down", "far up", "down"],
)
def test_a_loss_climbs_if_the_smallest_factor_is_short_enough_to_show_it(
    along: tuple[float, ...], climbs: bool
) -> None:
    """It is not, if the loss is lower at a larger factor than without the update, or has multiplied."""
    pairs = ((0.0, 10.0), *zip((0.01, 0.1, 0.3, 1.0), along, strict=True))
    found = line_search(Evidence(1, 1, experiments=Experiments(line_search=pairs)))
    assert found is not None
    assert found.overshoots
    assert found.climbs is climbs


@pytest.mark.parametrize(
    ("along", "overshoots"),
    [((2.4, 150.0, 16.0, 6.7), True), ((9.9, 9.0, 7.0, 2.0), False), ((9.9, 10.5, 9.0, 8.0), False)],
    ids=["a part raises it", "down", "within a tenth"],
)
def test_a_part_of_an_update_that_raises_the_loss_overshoots(along: tuple[float, ...], overshoots: bool) -> None:
    """Even if the loss is lower with the whole update, by chance."""
    pairs = ((0.0, 10.0), *zip((0.01, 0.1, 0.3, 1.0), along, strict=True))
    found = line_search(Evidence(1, 1, experiments=Experiments(line_search=pairs)))
    assert found is not None
    assert found.overshoots is overshoots
