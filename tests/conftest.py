"""What all tests share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Leave out warnings that third parties raise about themselves or about the size of our test data."""
    for line in (
        "ignore:.*does not have many workers:UserWarning",
        "ignore:The number of training batches:UserWarning",
        "ignore:.*isinstance\\(treespec, LeafSpec\\).*",
        "ignore:You defined a `validation_step`:UserWarning",
        "ignore:.*GPU available but not used.*",
        "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> Iterator[None]:
    """Start each test with the same random numbers and one thread, which is fastest for tiny models."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        yield
