"""One record of all optimizers of a batch, against norms of the joined vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.records import FloatArray, StepRecord, combine

Gradients = tuple[FloatArray, FloatArray, FloatArray]


def record_of(optimizer: int, gradient: FloatArray, weights: FloatArray, update: FloatArray) -> StepRecord:
    """Build the record of one optimizer with a single parameter."""
    return StepRecord(
        step=7,
        optimizer=optimizer,
        parameters=(f"net_{optimizer}.weight",),
        grad_norm=float(np.linalg.norm(gradient)),
        grad_max=float(np.abs(gradient).max()),
        nonfinite_count=int((~np.isfinite(gradient)).sum()),
        weight_norm=float(np.linalg.norm(weights + update)),
        weight_norm_before=float(np.linalg.norm(weights)),
        update_ratio=float(np.linalg.norm(update) / np.linalg.norm(weights)),
        severity=optimizer,
        per_parameter={"grad_norm": np.array([np.linalg.norm(gradient)])},
    )


def vectors(seed: int, sizes: tuple[int, ...]) -> list[Gradients]:
    """Return random gradients, weights and updates of each optimizer."""
    random = np.random.default_rng(seed)
    return [tuple(random.normal(size=size) for _ in range(3)) for size in sizes]  # type: ignore[misc]


def test_norms_are_those_of_all_vectors_joined() -> None:
    """Norm, maximum and update ratio equal what numpy computes of all parameters together."""
    parts = vectors(0, (3, 50, 400))
    combined = combine([record_of(index, *part) for index, part in enumerate(parts)])
    gradient, weights, update = (np.concatenate(one) for one in zip(*parts, strict=True))
    assert combined.grad_norm == pytest.approx(np.linalg.norm(gradient))
    assert combined.grad_max == np.abs(gradient).max()
    assert combined.weight_norm == pytest.approx(np.linalg.norm(weights + update))
    assert combined.update_ratio == pytest.approx(np.linalg.norm(update) / np.linalg.norm(weights))
    assert (combined.step, combined.severity) == (7, 2)
    assert combined.parameters == ("net_0.weight", "net_1.weight", "net_2.weight")
    assert combined.per_parameter["grad_norm"] == pytest.approx([np.linalg.norm(part[0]) for part in parts])


def test_an_optimizer_that_steps_twice_counts_with_its_last_step() -> None:
    """A critic's earlier steps of the batch are not added, whatever the order of the steps."""
    earlier, critic, generator = vectors(1, (5, 5, 9))
    records = [record_of(1, *earlier), record_of(0, *generator), record_of(1, *critic)]
    expected = np.linalg.norm(np.concatenate([generator[0], critic[0]]))
    assert combine(records).grad_norm == pytest.approx(expected)


def test_the_record_of_a_single_optimizer_is_returned_as_it_is() -> None:
    """With one optimizer nothing is computed."""
    record = StepRecord(step=1, grad_norm=2.0)
    assert combine([record]) is record


def test_no_record_is_an_error() -> None:
    """There is nothing to combine."""
    with pytest.raises(ValueError, match="at least one record"):
        combine([])


def test_what_was_not_measured_of_every_optimizer_is_not_known() -> None:
    """The norm of a part of the weights is not logged as the norm of all."""
    both = [StepRecord(step=1, grad_norm=3.0, weight_norm=1.0), StepRecord(step=1, optimizer=1, grad_norm=4.0)]
    combined = combine(both)
    assert combined.grad_norm == pytest.approx(5.0)
    assert combined.weight_norm is None
    assert combined.update_ratio is None


def test_a_clip_value_is_kept_where_all_agree() -> None:
    """Two optimizers with different thresholds have no common one."""
    same = [StepRecord(step=1, clip_val=1.0), StepRecord(step=1, optimizer=1, clip_val=1.0)]
    other = [StepRecord(step=1, clip_val=1.0), StepRecord(step=1, optimizer=1, clip_val=2.0)]
    assert combine(same).clip_val == 1.0
    assert combine(other).clip_val is None


def test_rates_counts_and_updates_of_all_optimizers() -> None:
    """The clip rate is the mean, counts are sums, the learning rate is the largest, and one update is an update."""
    first = StepRecord(0, clip_rate=0.2, weight_count=3, nonfinite_count=1, learning_rate=0.1, update_taken=False)
    second = StepRecord(
        0, optimizer=1, clip_rate=0.4, weight_count=5, nonfinite_count=0, learning_rate=0.01, update_taken=True
    )
    combined = combine([first, second])
    assert combined.clip_rate == pytest.approx(0.3)
    assert (combined.weight_count, combined.nonfinite_count) == (8, 1)
    assert (combined.learning_rate, combined.update_taken) == (0.1, True)


@given(st.lists(st.floats(min_value=0) | st.just(math.nan), min_size=2, max_size=5))
def test_any_norms_combine_without_an_error(norms: list[float]) -> None:
    """NaN stays NaN, infinity stays infinite, and the largest finite norms do not raise."""
    combined = combine([StepRecord(step=0, optimizer=index, grad_norm=norm) for index, norm in enumerate(norms)])
    assert combined.grad_norm is not None
    if any(math.isnan(norm) for norm in norms):
        assert math.isnan(combined.grad_norm)
    else:
        assert combined.grad_norm >= max(norms)
