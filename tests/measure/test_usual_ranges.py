"""The usual ranges of a run's batches."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradexplode.measure.batch_facts import collect_batch_facts, usual_batch_facts
from lightning_gradexplode.measure.usual_ranges import UsualRanges
from lightning_gradexplode.records import BatchFacts


def batch(step: int, scale: float = 1.0, rows: int = 8) -> dict[str, Any]:
    """Build a batch whose numbers follow from its step."""
    generator = torch.Generator().manual_seed(step)
    return {"x": torch.randn(rows, 5, generator=generator) * scale, "y": torch.arange(rows) % 3}


def sampled(*batches: Any) -> UsualRanges:
    """Sample batches, one a step."""
    usual = UsualRanges()
    for step, one in enumerate(batches):
        usual.sample(one, step)
    return usual


@pytest.mark.parametrize("count", [1, 5, 8, 9, 40])
def test_ranges_are_those_of_all_sampled_batches(count: int) -> None:
    """The least and greatest elements and the median deviation are those of a plain loop over small batches."""
    batches = [batch(step) for step in range(count)]
    found = sampled(*batches).before(count)
    values = [one["x"].double().numpy() for one in batches]
    x = found.fields["x"]
    assert (x.least, x.greatest) == (min(one.min() for one in values), max(one.max() for one in values))
    assert x.std == pytest.approx(statistics.median(one.std() for one in values), rel=1e-6)
    assert (found.fields["y"].least, found.fields["y"].greatest, found.size) == (0.0, 2.0, 8)


def test_a_bad_batch_is_no_part_of_what_was_usual_before_it() -> None:
    """The batch of a step, and those after it, are left out."""
    usual = sampled(*[batch(step) for step in range(20)], batch(20, scale=1e9), batch(21, scale=1e9))
    assert usual.before(20).fields["x"].largest < 10.0
    assert usual.before(21).fields["x"].largest > 1e8


def test_nothing_is_usual_at_the_beginning() -> None:
    """Without a sampled batch, nothing is known."""
    assert sampled(batch(0)).before(0) == UsualRanges().before(5)
    assert UsualRanges().before(5).size is None


def test_a_field_that_is_always_nan_is_usual() -> None:
    """It has no range, and is known to hold NaN: that a step fails is not its fault."""
    unused = torch.full((4,), math.nan)
    before = sampled(unused, unused).before(2)
    (field,) = collect_batch_facts(unused, before).fields
    assert (field.usual_nonfinite, field.usual_least, field.usual_std, field.outlier_rows) == (True, None, None, ())
    (finite,) = collect_batch_facts(torch.ones(4), before).fields
    assert (finite.usual_nonfinite, finite.usual_least, finite.outlier_rows) == (True, None, ())
    assert usual_batch_facts(BatchFacts((finite,)), before).fields[0].usual_std is None
    (later,) = sampled(unused, unused, torch.arange(4.0)).before(3).fields.values()
    assert (later.least, later.greatest, later.is_nonfinite) == (0.0, 3.0, True)


def test_usual_infinities_are_known() -> None:
    """A mask of zeros and minus infinity has the range of its finite elements, and is known to hold others."""
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
    found = sampled(mask).before(1).fields["batch"]
    assert (found.least, found.greatest, found.is_nonfinite) == (0.0, 0.0, True)
    assert sampled(torch.full((4, 4), math.nan)).before(1).fields["batch"].stds == ()


def test_a_few_bad_batches_are_not_usual() -> None:
    """NaN counts as usual only where most batches hold some, and an incident's samples can be discarded."""
    usual = sampled(batch(0), batch(1), batch(2, scale=math.nan), batch(3))
    assert not usual.before(4).fields["x"].is_nonfinite
    usual.sample(batch(4, scale=1e9), 4)
    usual.discard(4)
    assert usual.before(9).fields["x"].largest < 10.0


def test_the_usual_size_is_that_of_most_batches() -> None:
    """A last batch that is smaller does not count."""
    assert sampled(batch(0), batch(1, rows=3), batch(2)).before(3).size == 8


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(1_000_000.0).view(1000, 1000),
        torch.arange(1_000_000.0).view(1000, 1000).t(),
        torch.arange(1_000_000.0).view(1000, 10, 100).movedim(1, 2),
        torch.arange(1_000_000.0).view(100, 8, 1250).movedim(1, 0),
        torch.arange(1_000_000.0).view(4, 250_000),
        torch.arange(2_000_000.0).view(1000, 2000)[:, ::2] / 2,
        torch.arange(1_000_000.0).view(2, 500_000).t().expand(500_000, 2),
        torch.arange(1_000_000.0),
        torch.arange(1_000_000).view(10, 100_000),
    ],
    ids=[
        "matrix",
        "transposed",
        "inner transposed",
        "time first",
        "long rows",
        "with gaps",
        "two columns",
        "vector",
        "whole numbers",
    ],
)
def test_large_fields_are_sampled_evenly(tensor: torch.Tensor) -> None:
    """A sample of a million elements has nearly their range and deviation."""
    found = sampled(tensor).before(1).fields["batch"]
    assert found.least < 10_000
    assert found.greatest > 980_000
    assert found.std == pytest.approx(1_000_000 / math.sqrt(12), rel=0.02)


def test_lists_of_tensors_are_sampled() -> None:
    """Images of different sizes, and more of them than a sample has parts."""
    images = [torch.full((3, 400 + index, 300), float(index)) for index in range(40)]
    found = sampled(images).before(1).fields["batch"]
    assert found.least == 0.0
    assert found.greatest > 35.0


def test_every_column_is_sampled() -> None:
    """A column of large values is found whatever the width of a row."""
    for width in (100, 128, 224, 1000):
        tensor = torch.zeros(1_000_000 // width, width)
        for column in (0, width // 2, width - 1):
            tensor[:, column] = 7.0
            assert sampled(tensor).before(1).fields["batch"].greatest == 7.0
            tensor[:, column] = 0.0


def test_memory_does_not_grow_with_the_run() -> None:
    """Field names that change all the time fill no more than 64 entries."""
    usual = UsualRanges()
    for step in range(300):
        usual.sample({f"x{step}": torch.ones(2), "y": np.ones(2)}, step)
    found = usual.before(300)
    assert len(found.fields) == 64
    assert "y" in found.fields


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations that are run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_sampling_waits_for_no_device() -> None:
    """No operation needs a number on the host, and their number does not grow with the rows."""
    counts = []
    for rows in (8, 8000):
        batch = {"x": torch.randn(rows, 40), "adjacency": torch.eye(rows).to_sparse()}
        with Operations() as operations:
            sampled(batch)
        assert not {"_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount"} & set(operations.names)
        counts.append(len(operations.names))
    assert counts[1] <= counts[0] + 10


def test_sampling_leaves_the_batch_and_random_numbers_alone() -> None:
    """Nothing of the run changes."""
    one, random = batch(3), torch.get_rng_state()
    copy = one["x"].clone()
    sampled(one)
    assert torch.equal(one["x"], copy)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_is_compared_with_the_usual_ones() -> None:
    """Usual values are part of the facts, and a row far above earlier batches is an outlier."""
    usual = sampled(*[batch(step) for step in range(5)]).before(5)
    bad = batch(5)
    bad["x"][:] *= 1000
    bad["x"][2] /= 1000
    facts = collect_batch_facts(bad, usual)
    x = facts.fields[0]
    known = usual.fields["x"]
    assert (x.usual_least, x.usual_greatest, x.usual_std) == (known.least, known.greatest, known.std)
    assert (facts.usual_size, x.usual_nonfinite) == (8, False)
    calm = batch(5)
    calm["x"][2] *= 1000
    assert collect_batch_facts(calm, usual).fields[0].outlier_rows == (2,)
