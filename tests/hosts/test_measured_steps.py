"""Which gradients and losses make a step of a plain loop, against float64."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.testing import RecordingLogger
from tests.hosts.loops import batches, exact_norm, loss_of, network, recorded


def test_each_of_several_optimizers_has_its_own_norm() -> None:
    """Two networks that are trained in turn are logged by optimizer, and together, with the exact norms."""
    models = [network(0), network(1)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    log = RecordingLogger()
    truths: list[list[float]] = [[], []]
    pair = nn.ModuleList(models)
    with GradientWatch(pair, optimizers, loggers=[log], log_every_n_steps=1, report=False) as watch:
        for batch in batches(5):
            for index in range(2):
                optimizers[index].zero_grad()
                loss = loss_of(models[index], batch)
                watch.loss(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                truths[index].append(exact_norm(models[index].parameters()))
                nn.utils.clip_grad_norm_(models[index].parameters(), 0.1)
                optimizers[index].step()
    for index in range(2):
        values = log.values(f"gradexplode/optimizer_{index}/grad_norm")
        assert [step for step, _ in values] == list(range(5))
        assert [value for _, value in values] == pytest.approx(truths[index], rel=1e-9)
    together = [value for _, value in log.values("gradexplode/grad_norm")]
    assert together == pytest.approx([(a * a + b * b) ** 0.5 for a, b in zip(*truths, strict=True)], rel=1e-9)


def test_the_first_gradients_of_a_line_search_are_the_steps() -> None:
    """LBFGS evaluates its closure several times a step; one record a step has the norm of the first evaluation."""
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step, batch in enumerate(batches(4)):
            norms: list[float] = []

            def closure(batch: Tensor = batch, norms: list[float] = norms) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                watch.loss(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                norms.append(exact_norm(model.parameters()))
                return loss

            optimizer.step(closure)  # type: ignore[no-untyped-call]
            assert len(norms) > 1
            assert recorded(watch) == pytest.approx(norms[0], rel=1e-9)
            assert watch.last is not None
            assert watch.last.step == step


def test_a_closure_without_its_loss_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As in a loop without one: the gradients are measured, and one line says that the loss is unknown."""
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):

            def closure(batch: Tensor = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)  # type: ignore[no-untyped-call]
            assert recorded(watch) > 0.0
    assert len([one for one in caplog.messages if "the loss is unknown" in one]) == 1


@pytest.mark.parametrize("marked", [False, True])
def test_losses_and_norms_of_an_accumulation_belong_to_one_step(marked: bool) -> None:
    """Micro-batches, also with marked begins, make one record with their mean loss and the norm of their sum."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step in range(4):
            optimizer.zero_grad()
            losses = []
            for batch in batches(3, seed=step):
                if marked:
                    watch.batch(batch)
                loss = loss_of(model, batch)
                watch.loss(loss)
                (loss / 3).backward()  # type: ignore[no-untyped-call]
                losses.append(float(loss.detach()))
            truth = exact_norm(model.parameters())
            optimizer.step()
            if marked:
                watch.batch(batches(1)[0])
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
            assert watch.last is not None
            assert watch.last.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
            assert watch.last.step == step


@pytest.mark.parametrize("place", ["before forward", "before backward", "after step", "to zero", "by hand"])
def test_gradients_may_be_cleared_anywhere(place: str) -> None:
    """Where a loop clears its gradients changes neither the norms nor the number of steps."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step, batch in enumerate(batches(5)):
            if place == "before forward":
                optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            if place == "before backward":
                model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            truth = exact_norm(model.parameters())
            optimizer.step()
            if place == "after step":
                optimizer.zero_grad()
            if place == "to zero":
                optimizer.zero_grad(set_to_none=False)
            if place == "by hand":
                for parameter in model.parameters():
                    parameter.grad = None
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
            assert watch.last is not None
            assert watch.last.step == step


def test_a_step_without_its_loss_is_measured_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The gradients are those that the optimizer gets; one line names what is missing."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with caplog.at_level(logging.WARNING), GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)
    assert len([one for one in caplog.messages if "without a call of loss()" in one]) == 1
    assert watch.last is not None
    assert watch.last.loss is None


@pytest.mark.parametrize("micro_batches", [1, 10])
def test_error_gradients_of_modules_do_not_need_a_call_of_batch(micro_batches: int) -> None:
    """They are measured at the first step, and are those of its last micro-batch, with and without `batch`."""

    def measured(marked: bool) -> list[FloatArray]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradientWatch(model, optimizer, report=False) as watch:
            for batch in batches(micro_batches):
                if marked:
                    watch.batch(batch)
                loss = loss_of(model, batch)
                watch.loss(loss)
                loss.backward()  # type: ignore[no-untyped-call]
            loss_of(model, batch)  # a forward pass without a backward pass
            optimizer.step()
            assert watch.last is not None
            assert watch.last.module_gradients is not None
            gradients = watch.last.module_gradients
        return [gradients.calls, gradients.output_norm, gradients.gain]

    for one, other in zip(measured(False), measured(True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_optimizers_that_step_within_the_backward_pass_are_measured(caplog: pytest.LogCaptureFixture) -> None:
    """An optimizer for each parameter steps once its gradient is there; norms and losses are those of their step."""
    model, log = network(), RecordingLogger()
    optimizers = {one: torch.optim.SGD([one], lr=0.01) for one in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    norms, losses = [], []
    with GradientWatch(model, list(optimizers.values()), loggers=[log], log_every_n_steps=1, report=False) as watch:
        for batch in batches(4):
            gradients = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
            norms.append(float(torch.cat([one.double().flatten() for one in gradients]).norm()))
            loss = loss_of(model, batch)
            losses.append(float(loss.detach()))
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            assert watch.last is not None
            assert watch.last.loss == pytest.approx(losses[-1], rel=1e-6)
    assert [value for _, value in log.values("gradexplode/grad_norm")] == pytest.approx(norms, rel=1e-9)
    assert not caplog.messages


@pytest.mark.filterwarnings("ignore:.*")
def test_a_loop_of_accelerate_is_measured_once_an_accumulation() -> None:
    """The norm is that of all micro-batches, before the clipping, though each of them calls the optimizer."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=3)
    raw = network()
    loader: Any = DataLoader(torch.cat(batches(9)), 16)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(raw, torch.optim.AdamW(raw.parameters(), lr=0.01), loader)
    norms = []
    log = RecordingLogger()
    with GradientWatch(model, optimizer, loggers=[log], log_every_n_steps=1, report=False) as watch:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch)
                watch.loss(loss)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(exact_norm(raw.parameters()))
                    accelerator.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
    assert [value for _, value in log.values("gradexplode/grad_norm")] == pytest.approx(norms, rel=1e-9)
    assert [value for _, value in log.values("gradexplode/grad_norm_clipped")] == pytest.approx([0.05] * 3, rel=1e-4)
    assert watch.last is not None
    assert watch.last.step == 2


def test_gradients_that_the_loop_assigns_itself_are_measured(caplog: pytest.LogCaptureFixture) -> None:
    """`torch.autograd.grad` leaves the gradients of the step before in place; they are not taken for this step's."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step, batch in enumerate(batches(4)):
            loss = loss_of(model, batch) * (100.0 if step == 2 else 1.0)
            watch.loss(loss)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            truth = exact_norm(model.parameters())
            optimizer.step()
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
            assert watch.last is not None
            assert watch.last.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert [record.getMessage() for record in caplog.records] == [
        "gradexplode: an optimizer steps with gradients that no backward pass of the loss has accumulated; they are "
        "measured as it gets them, after any clipping"
    ]


def test_a_backward_pass_that_anomaly_detection_ends_is_found(tmp_path: Path) -> None:
    """The loss is known before its backward pass, so that its step is found and recorded."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, log_dir=tmp_path)

    def train() -> None:
        with watch, torch.autograd.set_detect_anomaly(True):
            for step, batch in enumerate(batches(4)):
                optimizer.zero_grad()
                loss = loss_of(model, batch) * (math.nan if step == 2 else 1.0)
                watch.loss(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    with pytest.warns(UserWarning, match="Error detected"), pytest.raises(RuntimeError, match="returned nan values"):
        train()
    assert [(finding.step, finding.sign) for finding in watch.findings] == [(2, "nonfinite-loss")]
    with np.load(tmp_path / "gradexplode" / "steps.npz") as file:
        assert file["step"].tolist() == [0, 1, 2]


def test_a_backward_pass_that_fails_costs_its_own_step_only() -> None:
    """A hook of the user's raises, the loop goes on, and the next step is measured as ever."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def fails(gradient: Tensor) -> None:
        raise KeyError("theirs")

    with GradientWatch(model, optimizer, report=False) as watch:
        for step, batch in enumerate(batches(5)):
            optimizer.zero_grad()
            output = model(batch)
            loss = output.square().mean()
            watch.loss(loss)
            if step == 2:
                output.register_hook(fails)
                with pytest.raises(KeyError):
                    loss.backward()
                continue
            loss.backward()
            truth = exact_norm(model.parameters())
            optimizer.step()
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
    assert watch.last is not None
    assert watch.last.step == 3


def test_two_losses_of_one_backward_pass_are_averaged() -> None:
    """The pass counts once, with the mean of both losses."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(2):
            optimizer.zero_grad()
            losses = [loss_of(model, batch), model(batch).abs().mean()]
            for loss in losses:
                watch.loss(loss)
            (losses[0] + losses[1]).backward()
            optimizer.step()
            assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)
            assert watch.last is not None
            assert watch.last.loss == pytest.approx(sum(float(one.detach()) for one in losses) / 2, rel=1e-6)


def test_groups_that_are_added_and_sparse_gradients_are_measured() -> None:
    """Layers that are unfrozen in mid-run count from then on, with sparse gradients too."""
    model = nn.Sequential(nn.EmbeddingBag(20, 8, sparse=True), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": list(model[0].parameters())})
            optimizer.zero_grad()
            model.zero_grad()
            loss = model(torch.randint(0, 20, (6, 4))).square().mean()
            watch.loss(loss)
            loss.backward()
            owned = [one.grad for group in optimizer.param_groups for one in group["params"]]
            dense = [one.coalesce().values() if one.is_sparse else one for one in owned]
            truth = float(torch.cat([one.double().flatten() for one in dense]).norm())
            optimizer.step()
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("assigns", [False, True])
def test_a_second_step_with_the_same_gradients_is_no_step_without_a_loss(
    assigns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop has called loss() before it; new gradients of ``torch.autograd.grad`` are another case."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for batch in batches(6):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            if assigns:
                for one, gradient in zip(
                    model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
                ):
                    one.grad = gradient
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.step()
    lines = " ".join(caplog.messages)
    assert "without a call of loss()" not in lines
    assert ("steps again with the gradients of its step before" in lines) is not assigns
    assert watch.last is not None
    assert watch.last.step == (5 if assigns else 11)
