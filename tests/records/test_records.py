"""The records that travel between folders."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lightning_gradexplode.records import BUCKET_EDGES, Finding, Histogram, Severity, StepRecord
from tests.measure.tensors import true_counts


def histogram(values: list[float], nonfinite: int = 0) -> Histogram:
    """Build a histogram by numpy."""
    return Histogram(true_counts(values), nonfinite)


def test_bucket_edges_are_quarters_of_octaves() -> None:
    """The edges are each power of two of float32's normal numbers and three points up to the next, of both signs."""
    positive = [2.0**exponent * quarter for exponent in range(-126, 128) for quarter in (1.0, 1.25, 1.5, 1.75)]
    positive.append(math.inf)
    assert BUCKET_EDGES.tolist() == [-edge for edge in reversed(positive)] + positive
    assert len(BUCKET_EDGES) == 2034


def test_severities_are_what_is_logged() -> None:
    """Alert rules of users rely on the numbers."""
    assert [int(severity) for severity in (Severity.INFO, Severity.WARNING, Severity.CRITICAL)] == [1, 2, 3]


def test_merged_histograms_count_all_values() -> None:
    """Adding and merging count all values; merging nothing gives the empty histogram."""
    one, other = histogram([1.0, -2.0], 1), histogram([1.0, 0.0, 1e-45], 2)
    for merged in (one + other, Histogram.merged([one, other])):
        np.testing.assert_array_equal(merged.counts, true_counts([1.0, -2.0, 1.0, 0.0, 1e-45]))
        assert (merged.finite, merged.nonfinite) == (5, 3)
    empty = Histogram.merged([])
    assert (empty.finite, empty.nonfinite, len(empty.counts)) == (0, 0, 2033)
    assert one.finite == 2


@pytest.mark.parametrize("where", [None, "layer.weight"])
@pytest.mark.parametrize("severity", list(Severity))
def test_a_finding_as_a_dictionary(severity: Severity, where: str | None) -> None:
    """A finding goes into plain values and comes back the same."""
    finding = Finding(3, "sign", severity, where, 1.5, math.inf, "message")
    plain = finding.as_dict()
    assert plain["severity"] == severity.name
    assert Finding.from_dict(plain) == finding
    assert pickle.loads(pickle.dumps(finding)) == finding


def test_records_cannot_be_changed() -> None:
    """What has been handed on stays what it was."""
    for record in (StepRecord(step=0), Finding(0, "sign", Severity.INFO, None, 0.0, 0.0, "")):
        with pytest.raises(FrozenInstanceError):
            record.step = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "largest", "first_nonfinite"),
    [
        ([1.0, 3.0, 2.0], "b", None),
        ([1.0, math.inf, 2.0], "b", "b"),
        ([5.0, 1.0, math.nan], "c", "c"),
        ([math.nan, math.inf, 1.0], "a", "a"),
        ([0.0, 0.0, 0.0], "a", None),
    ],
)
def test_a_record_names_parameters(values: list[float], largest: str, first_nonfinite: str | None) -> None:
    """The parameter with the largest value is named, NaN counting as largest, and the first non-finite one."""
    record = StepRecord(step=0, parameters=("a", "b", "c"), per_parameter={"grad_norm": np.array(values)})
    assert record.largest("grad_norm") == largest
    assert record.first_nonfinite("grad_norm") == first_nonfinite


def test_a_record_without_a_quantity_names_nothing() -> None:
    """What was not measured, and a run without parameters, name no parameter."""
    for record in (StepRecord(step=0), StepRecord(step=0, per_parameter={"grad_norm": np.zeros(0)})):
        assert record.largest("grad_norm") is None
        assert record.first_nonfinite("grad_norm") is None


def test_a_finding_is_one_line_of_text() -> None:
    """Severity, step, sign, place, message and limit are in it, and nothing that a terminal would act on."""
    finding = Finding(41, "gradient-growth", Severity.WARNING, "a\x1b[31m\nb\udcff", 3.0, 20.5, "it grew")
    assert str(finding) == "WARNING at step 41: gradient-growth in a [31m b : it grew (limit 20.5)"
    without = Finding(0, "nonfinite-loss", Severity.CRITICAL, None, math.nan, math.inf, "the loss is NaN")
    assert str(without) == "CRITICAL at step 0: nonfinite-loss: the loss is NaN"
