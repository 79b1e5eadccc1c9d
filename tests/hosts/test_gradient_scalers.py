"""Plain loops with a gradient scaler."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records import FloatArray
from tests.hosts.loops import batches, loss_of, network
from tests.torch_versions import needs_graph_values


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_the_scaler_leaves_out_is_recorded(count: int, to_none: bool) -> None:
    """For one optimizer as for two, however gradients are cleared, an overflow is a finding at its own step."""
    models = [network(seed) for seed in range(count)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.001) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    pair = nn.ModuleList(models)
    with GradientWatch(pair, optimizers, scaler=scaler, report=False) as watch:
        for step, batch in enumerate(batches(6)):
            for index in range(count):
                optimizers[index].zero_grad(set_to_none=to_none)
                factor = float("inf") if step == 3 and index == count - 1 else 1.0
                loss = loss_of(models[index], batch) * factor
                watch.loss(loss)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizers[index])
            scaler.update()
    found = [one for one in watch.findings if one.sign == "nonfinite-gradient"]
    assert {one.step for one in found} == {3}
    assert watch.last is not None
    assert watch.last.step == 5
    assert all(bool(one.isfinite().all()) for one in pair.parameters())


def test_an_overflow_in_the_last_step_is_recorded() -> None:
    """No backward pass follows; the step is recorded when the watch is closed."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with GradientWatch(model, optimizer, scaler=scaler, report=False) as watch:
        for step, batch in enumerate(batches(3)):
            optimizer.zero_grad()
            loss = loss_of(model, batch) * (float("nan") if step == 2 else 1.0)
            watch.loss(loss)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    assert [one.step for one in watch.findings if one.sign == "nonfinite-gradient"] == [2]


@needs_graph_values
@pytest.mark.parametrize("marks_batches", [False, True])
@pytest.mark.parametrize("bad", [1, 2])
def test_the_loss_after_a_step_that_the_scaler_leaves_out_is_of_the_step_after_it(
    bad: int, marks_batches: bool
) -> None:
    """The operation that makes it non-finite is named, also if the loop announces the loss before the backward pass."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)  # overflows in the first steps
    with GradientWatch(model, optimizer, scaler=scaler, report=False) as watch:
        for step, batch in enumerate(batches(6)):
            if marks_batches:
                watch.batch(batch)
            optimizer.zero_grad()
            loss = (1e3 * loss_of(model, batch)).sin()
            if step >= bad:
                loss = loss + (loss.relu() * 0).log()
            watch.loss(loss)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert (diagnosis.step, diagnosis.causes[0].kind) == (bad, "undefined-operation")
    assert diagnosis.causes[0].where == "`log`"


@pytest.mark.parametrize("at_end", [False, True])
def test_a_loss_without_a_backward_pass_may_follow_a_step_that_the_scaler_leaves_out(at_end: bool) -> None:
    """The left-out step is recorded at its own number, and later steps at theirs."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watch = GradientWatch(model, optimizer, scaler=scaler, on_explosion="rollback", report=False)
    for step, batch in enumerate(batches(5 if at_end else 8)):
        optimizer.zero_grad()
        loss = loss_of(model, batch) * (float("inf") if step == 3 else 1.0)
        watch.loss(loss)
        if step == 4:
            continue
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
    watch.close()
    assert not watch.failed
    assert {one.step for one in watch.findings if one.sign == "nonfinite-loss"} == {3}
    assert watch.last is not None
    assert watch.last.step == (3 if at_end else 6)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("clears", ["before the loss", "after the loss", "after the step", "never"])
def test_gradients_that_are_never_cleared_are_named_where_a_scaler_leaves_all_steps_out(
    clears: str, to_none: bool
) -> None:
    """Infinite gradients stay infinite; if they are cleared, at whatever place of the loop, that is no cause."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    with GradientWatch(model, optimizer, scaler=scaler, report=False) as watch:
        for step, batch in enumerate(batches(30)):
            if clears == "before the loss":
                optimizer.zero_grad(set_to_none=to_none)
            overflows = step == 0 or clears != "never"
            loss = loss_of(model, batch) * (1e35 if overflows else 1.0)
            watch.loss(loss)
            if clears == "after the loss":
                optimizer.zero_grad(set_to_none=to_none)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            if clears == "after the step":
                optimizer.zero_grad(set_to_none=to_none)
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert ("accumulated-gradients" in {one.kind for one in diagnosis.causes}) == (clears == "never")


@pytest.mark.parametrize("mistake", ["no scaler", "scaled loss", None])
def test_a_scaler_that_is_not_known_is_named(mistake: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A loss that an unknown scaler scales, or that is scaled before `loss`, is logged in one line; else nothing is."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    given = None if mistake == "no scaler" else scaler
    with GradientWatch(model, optimizer, scaler=given, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            scaled = scaler.scale(loss)
            watch.loss(scaled if mistake == "scaled loss" else loss)
            scaled.backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    expected = {
        "no scaler": "pass it: GradientWatch(..., scaler=scaler)",
        "scaled loss": "the loss before scaler.scale()",
    }
    assert len(caplog.messages) == (0 if mistake is None else 1)
    assert mistake is None or expected[mistake] in caplog.text


def test_a_sum_of_256_losses_is_no_scaled_loss(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a loss of several elements is added up to, no line about a gradient scaler is logged."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step in range(2):
            optimizer.zero_grad()
            losses = model(torch.randn(256, 6, generator=torch.Generator().manual_seed(step))).square()
            watch.loss(losses)
            losses.sum().backward()
            optimizer.step()
    assert not caplog.messages


def test_the_check_of_a_scaler_waits_for_no_accelerator(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not there in the first backward pass is read in the second one."""

    class OnAccelerator(reading.PendingRead):
        def __init__(self, values: Sequence[Tensor]) -> None:
            super().__init__(values)
            self.is_there = False

        def values(self) -> FloatArray:
            self.is_there = True
            return super().values()

    monkeypatch.setattr("lightning_gradexplode.hosts.gradient_watch.PendingRead", OnAccelerator)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    counts = []
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            (loss * 1024.0).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            counts.append(caplog.text.count("scaler=scaler"))
    assert counts == [0, 1, 1]
