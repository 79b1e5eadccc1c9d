"""Gradients that are clipped before a gradient scaler has divided them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.engine.scaled_clipping import clip_value_of_scaled
from tests.hosts.loops import batches, loss_of, network


@pytest.mark.parametrize(
    ("norm", "clipped", "scale", "value"),
    [
        (0.41, 1.0 / 65536, 65536.0, 1.0),
        (3.0, 0.25 / 4096, 4096.0, 0.25),
        (0.41, 0.1, 65536.0, None),  # clipped after the division
        (0.41, 1.2345e-5, 65536.0, None),  # no value that anyone would choose
        (2e-5, 1.0 / 65536, 65536.0, None),  # it is hardly clipped
        (0.41, 1.0 / 2, 2.0, None),
        (0.41, None, 65536.0, None),
        (0.41, 0.0, 65536.0, None),
    ],
)
def test_a_round_value_divided_by_the_scale_is_a_clip_value_of_scaled_gradients(
    norm: float, clipped: float | None, scale: float, value: float | None
) -> None:
    """Other norms show none."""
    assert clip_value_of_scaled(norm, clipped, scale) == value


@pytest.mark.parametrize("is_first", [True, False], ids=["clipped first", "divided first"])
def test_a_loop_that_clips_before_the_gradients_are_unscaled_is_told_so(
    is_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its steps are as many times too short as the scale says, and the loss stays where it is."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    with GradientWatch(model, optimizer, report=False, scaler=scaler, log_every_n_steps=1) as watch:
        for batch in batches(4):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if not is_first:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
    assert len([one for one in caplog.messages if "clipped while they are still scaled" in one]) == int(is_first)
