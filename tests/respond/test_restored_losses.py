"""Whether a restored state fits the data that a run has now, decided by losses alone."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.respond.restored_losses import fits

USUAL = [0.42, 0.38, 0.45, 0.4, 0.36]


@pytest.mark.parametrize(
    ("restored", "failed"),
    [
        ([0.41, 0.44], 52.0),  # the state is as good as it was
        ([0.41, 300.0], 52.0),  # the first step after it was too large; the state itself is good
        ([5.0, 6.0], 1e6),  # worse than it was, and far better than the state that failed
        ([144.0, 150.0], math.inf),  # nothing is known of the state that failed
        ([], 52.0),
    ],
)
def test_a_state_fits_if_it_is_as_good_as_it_was_or_better_than_the_one_that_failed(
    restored: list[float], failed: float
) -> None:
    """A rollback is then of use."""
    assert fits(USUAL, restored, failed)


def test_a_state_does_not_fit_if_its_loss_is_far_higher_on_the_present_data() -> None:
    """The same weights had a loss of 0.4: the weights are not what changed."""
    assert not fits(USUAL, [144.0, 150.0], 82.0)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
@pytest.mark.parametrize("offset", [-3.0, 0.0])
def test_losses_of_any_scale_and_sign_are_compared(scale: float, offset: float) -> None:
    """Negative losses, and those in other units."""
    usual = [scale * (loss + offset) for loss in USUAL]
    assert fits(usual, [scale * (0.41 + offset)], scale * (52.0 + offset))
    assert not fits(usual, [scale * (144.0 + offset)], scale * (82.0 + offset))


def test_noisy_losses_are_no_evidence_against_a_state() -> None:
    """Their range at the copy is wider than their size."""
    assert fits([0.1, 9.0, 2.0, 0.5, 4.0], [20.0, 18.0], 25.0)


def test_too_few_losses_decide_nothing() -> None:
    """The run had exploded two steps after the state was copied."""
    assert fits([0.4, 0.5], [144.0, 150.0], 82.0)
