"""Usual networks with planted faults: how a run counts."""

from __future__ import annotations

import pytest

from benchmarks.planted.__main__ import result_of
from benchmarks.planted.faults import FAULTS
from benchmarks.planted.runs import Loop, train
from benchmarks.planted.strengths import STRENGTHS
from benchmarks.planted.tasks import Tabular


@pytest.mark.parametrize("loop", ["lightning", "plain"])
def test_a_run_counts_by_its_first_cause_if_it_fails(loop: Loop) -> None:
    """The same run is wrong for a fault of another kind; without a fault it is healthy."""
    fault = next(one for one in FAULTS if one.name == "NaN in a sample")
    other = next(one for one in FAULTS if one.name == "a negated loss")
    failed, healthy = train(Tabular, fault, loop), train(Tabular, None, loop)
    assert failed.has_failed
    assert not failed.error
    assert (result_of(failed, fault), result_of(failed, other)) == ("right", "wrong")
    assert not healthy.has_failed
    assert (result_of(healthy, None), result_of(healthy, fault)) == ("healthy", "trains")


def test_a_fault_at_its_lowest_strength_trains_and_at_its_highest_fails() -> None:
    """Of gradient descent on a table, at a usual rate and at one a thousand times as high."""
    low, *_, high = (one for one in STRENGTHS if one.name.startswith("SGD at a rate"))
    assert result_of(train(Tabular, low, "plain"), low) == "trains"
    assert result_of(train(Tabular, high, "plain"), high) == "right"
