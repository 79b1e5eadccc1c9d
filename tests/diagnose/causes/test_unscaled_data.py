"""Fields on a large scale, as a rule over recorded facts."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose.causes.unscaled_data import unscaled_data
from tests.diagnose.evidence import batch, diverged, field, parameter, run

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


def test_a_column_that_never_changes_can_be_standardized() -> None:
    """Its deviation is zero, and what it is divided by is not."""
    price = replace(field("price"), least=0.0, greatest=9e3, mean=4e3, std=2e3, usual_least=0.0, usual_greatest=9e3)
    found = unscaled_data(diverged(batch=batch(price, field("label"))))
    assert found is not None
    assert "/ (std + 1e-6)" in found.remedies[0]
