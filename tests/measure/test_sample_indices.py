"""The samples of a dataset that a batch consists of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, SequentialSampler

from lightning_gradexplode.measure.sample_indices import sample_indices


class Numbers(Dataset[Tensor]):
    """A dataset whose samples are their indices."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index))


class Stream(IterableDataset[Tensor]):
    """A dataset without indices."""

    def __iter__(self) -> Any:
        return (torch.tensor(float(index)) for index in range(23))


def distributed(**settings: Any) -> DistributedSampler[Tensor]:
    """Build the sampler of the second of three processes, in its third epoch."""
    sampler: DistributedSampler[Tensor] = DistributedSampler(Numbers(), 3, 1, seed=5, **settings)
    sampler.set_epoch(2)
    return sampler


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Numbers(), 4),
        DataLoader(Numbers(), 4, drop_last=True),
        DataLoader(Numbers(), 4, sampler=SequentialSampler(Numbers())),
        DataLoader(Numbers(), 3, sampler=distributed()),
        DataLoader(Numbers(), 3, sampler=distributed(shuffle=False)),
        DataLoader(Numbers(), 3, sampler=distributed(drop_last=True)),
    ],
)
def test_indices_are_those_of_the_samples(loader: DataLoader[Tensor]) -> None:
    """Of each batch of an epoch the indices are what the loader has put into it."""
    for batch_idx, batch in enumerate(loader):
        assert sample_indices(batch, loader, batch_idx) == tuple(batch.long().tolist())


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Numbers(), 4, shuffle=True),
        DataLoader(Numbers(), 4, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(Stream(), 4),
        DataLoader(Numbers(), batch_sampler=[[0, 1], [2, 3]]),
        DataLoader(Numbers(), None),
        DataLoader(Numbers(), 4, collate_fn=lambda samples: torch.stack(samples[::-1])),
        [torch.zeros(4)],
        None,
    ],
)
def test_indices_that_cannot_be_known_are_not_made_up(loader: Any) -> None:
    """Of samples that are drawn at random, streamed or chosen by the user's own sampler there are none."""
    assert sample_indices(torch.zeros(4), loader, 1) is None


def test_the_runs_random_numbers_and_samplers_are_left_alone() -> None:
    """A sampler that a loader is iterating over yields the same afterwards, and no random number is drawn."""
    loader = DataLoader(Numbers(), 3, sampler=distributed())
    expected = [batch.tolist() for batch in loader]
    running, random, found = iter(loader), torch.get_rng_state(), []
    for batch_idx, batch in enumerate(running):
        random = torch.get_rng_state()
        sample_indices(batch, loader, batch_idx)
        assert torch.equal(torch.get_rng_state(), random)
        found.append(batch.tolist())
    assert found == expected


def test_a_batch_of_another_size_has_no_indices() -> None:
    """Where the user's own collation drops samples, rows and indices do not belong together."""
    assert sample_indices(torch.zeros(3), DataLoader(Numbers(), 4), 0) is None
    assert sample_indices(torch.zeros(4), DataLoader(Numbers(), 4), 90) is None


@pytest.mark.parametrize("name", ["idx", "index", "indices", "sample_id", "Index"])
def test_a_field_of_indices_is_taken_at_its_word(name: str) -> None:
    """Whole and unique numbers under such a name are the indices, for any loader."""
    batch = {"x": torch.zeros(3, 2), name: torch.tensor([7, 2, 9])}
    assert sample_indices(batch) == (7, 2, 9)
    assert sample_indices({"x": torch.zeros(3, 2), "nested": {name: torch.tensor([[7], [2], [9]])}}) == (7, 2, 9)


@pytest.mark.parametrize(
    "field",
    [
        torch.tensor([7, 7, 9]),
        torch.tensor([7.0, 2.0, 9.0]),
        torch.tensor([-1, 2, 9]),
        torch.tensor([7, 2]),
        torch.tensor([True, False, True]),
        torch.tensor([[0, 1], [1, 2], [2, 0]]),
    ],
)
def test_other_fields_of_that_name_are_no_indices(field: Tensor) -> None:
    """Repeated, real, negative or differently shaped numbers are none."""
    assert sample_indices({"x": torch.zeros(3, 2), "y": torch.zeros(3), "index": field}) is None


def test_an_empty_batch_has_no_indices() -> None:
    """Nothing is known of nothing."""
    assert sample_indices({}, DataLoader(Numbers(), 4), 0) is None
