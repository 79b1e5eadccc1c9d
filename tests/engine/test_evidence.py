"""What is known of an incident with several findings."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradexplode import GradientWatch

EMPTY_AT, LARGE_AT, STEPS = 30, 34, 36
"""Steps of a mean over nothing and of a loss that is many times as large, and number of steps."""


def test_a_later_finding_of_an_incident_does_not_make_its_harmless_step_harmful() -> None:
    """A mean over nothing has no gradient; a large batch a few steps later is no reason to skip that one's update."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step in range(STEPS):
            data = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = model(data[:0] if step == EMPTY_AT else data).square().mean()
            loss = loss * 1e3 if step == LARGE_AT else loss
            watch.loss(loss)
            loss.backward()
            optimizer.step()
        assert [(one.step, one.sign) for one in watch.findings] == [
            (EMPTY_AT, "nonfinite-loss"),
            (LARGE_AT, "gradient-spike"),
        ]
        diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert "no weight is harmed" in diagnosis.what
    assert not any("on_explosion" in one for one in diagnosis.remedies)
