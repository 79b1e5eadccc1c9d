"""A factor of the learning rate during an optimizer's step."""

from __future__ import annotations

import pytest
import torch

from lightning_gradexplode.learning_rate_factor import LearningRateFactor


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_rate_is_multiplied_for_the_step_only(as_tensor: bool) -> None:
    """A rate that is a tensor is changed in place, since a captured graph reads it, and has its old bits afterwards."""
    rates = [torch.tensor(0.1) if as_tensor else 0.1, 0.02]
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    optimizer, factor = torch.optim.Adam(groups), LearningRateFactor()
    factor.apply(optimizer, 0.3)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.03, 0.006])
    assert (optimizer.param_groups[0]["lr"] is rates[0]) is as_tensor
    factor.undo()
    assert [group["lr"] for group in optimizer.param_groups] == [torch.tensor(0.1) if as_tensor else 0.1, 0.02]
    factor.undo()  # a second call changes nothing
    assert optimizer.param_groups[0]["lr"] is rates[0]
