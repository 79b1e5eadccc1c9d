"""Gradients that a plain loop clips itself are measured before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradexplode import GradientWatch
from tests.hosts.details import check_details, copies
from tests.hosts.loops import batches, exact_norm, loss_of, network, recorded


def test_our_clipping_and_theirs_go_together() -> None:
    """Gradients are clipped by the loop first and by the policy then; the norm is the one before both."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, clip=0.05, log_every_n_steps=1, report=False) as watch:
        for batch in batches(4):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            truth = exact_norm(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            assert exact_norm(model.parameters()) == pytest.approx(0.05, rel=1e-4)
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
            assert watch.last is not None
            assert watch.last.grad_norm_clipped == pytest.approx(0.05, rel=1e-4)


Clip = Callable[[list[nn.Parameter]], Any]


@pytest.mark.parametrize(
    "clip", [lambda all_: nn.utils.clip_grad_norm_(all_, 0.05), lambda all_: nn.utils.clip_grad_value_(all_, 0.01)]
)
@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_logged_is_measured_before_the_clipping_of_the_loop(
    clip: Clip, scale: float | None, count: int
) -> None:
    """Norm, largest element and histograms are those before a clip by norm or value, the norm after it is the other."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    intervals: dict[str, Any] = {"log_every_n_steps": 1, "histogram_every_n_steps": 1}
    with GradientWatch(model, optimizer, scaler=scaler, report=False, **intervals) as watch:
        for step in range(4):
            optimizer.zero_grad()
            for batch in batches(count, seed=step):
                loss = loss_of(model, batch)
                watch.loss(loss)
                scaler.scale(loss / count).backward()  # type: ignore[no-untyped-call]
            gradients = copies(model, scale or 1.0)
            scaler.unscale_(optimizer)
            clip(list(model.parameters()))
            clipped = exact_norm(model.parameters())
            scaler.step(optimizer)
            scaler.update()
            check_details(watch.last, gradients)
            assert watch.last is not None
            assert watch.last.grad_norm_clipped == pytest.approx(clipped, rel=1e-9)


def test_the_parameter_that_is_not_finite_is_named_although_clipping_spread_it() -> None:
    """A clip by a norm of NaN makes all gradients NaN; the one that was is the one that is recorded."""
    model = network()
    weight = list(model.parameters())[2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False, on_explosion="skip") as watch:
        for step, batch in enumerate(batches(3)):
            if step == 2:
                weight.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    assert watch.last is not None
    assert watch.last.nonfinite_count == 8
    assert watch.last.per_parameter["nonfinite_count"].tolist() == [0, 0, 8, 0]
    assert {one.where for one in watch.findings if one.sign == "nonfinite-gradient"} == {"2.weight"}
