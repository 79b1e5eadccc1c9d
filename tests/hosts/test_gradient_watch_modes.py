"""The monitor in loops of plain PyTorch of many kinds, against float64 and against the loop without it."""

from __future__ import annotations

import copy
import csv
import io
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lightning_gradexplode import ExplosionError, GradientWatch
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.testing import RecordingLogger
from tests.hosts.details import check_details, copies
from tests.hosts.loops import batches, exact_norm, loss_of, network, same_weights


def recorded(watch: GradientWatch) -> float:
    """Return the norm that was recorded of the last step."""
    assert not watch.failed
    assert watch.last is not None
    assert watch.last.grad_norm is not None
    return watch.last.grad_norm


def test_each_of_several_optimizers_has_its_own_norm() -> None:
    """Two networks that are trained in turn are logged by optimizer, and together, as float64 says."""
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


def explode(watch: GradientWatch, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 40) -> int:
    """Train until the watch says to stop; return the number of steps."""
    for step, batch in enumerate(batches(steps)):
        if watch.should_stop:
            return step
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return steps


def test_raise_ends_the_loop_and_leaves_nothing_behind() -> None:
    """The error comes out of the optimizer's step, the results stay, and the optimizer has no hook any more."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    watch = GradientWatch(model, optimizer, on_explosion="raise", report=False)
    with pytest.raises(ExplosionError), watch:
        explode(watch, model, optimizer, 200)
    assert watch.exploded
    assert watch.diagnosis() is not None
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_exception_of_the_loop_is_not_swallowed(tmp_path: Path) -> None:
    """What was measured until then is written, and the exception goes on."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1)

    def fails() -> None:
        with watch:
            explode(watch, model, optimizer, 3)
            raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        fails()
    assert not watch.failed
    assert (tmp_path / "gradexplode" / "steps.npz").exists()


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


def test_a_resumed_watch_decides_as_one_that_was_never_stopped() -> None:
    """After half of the steps model, optimizer and watch go through a checkpoint; thresholds and findings are equal."""

    def train(resumes: bool) -> tuple[list[float | None], list[Any], nn.Module]:
        model, thresholds, findings = nn.Linear(4, 1), [], []
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        watch = GradientWatch(model, optimizer, clip="auto", report=False)
        for step, batch in enumerate(batches(60)):
            if step == 30 and resumes:
                saved = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict(), watch.state_dict()], saved)
                watch.close()
                saved.seek(0)
                weights, state, ours = torch.load(saved, weights_only=True)
                model, findings = nn.Linear(4, 1), watch.findings
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
                model.load_state_dict(weights)
                optimizer.load_state_dict(state)
                watch = GradientWatch(model, optimizer, clip="auto", report=False)
                watch.load_state_dict(ours)
            optimizer.zero_grad()
            loss = loss_of(model, batch * (30.0 if step in (25, 45) else 1.0))
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            assert watch.last is not None
            assert watch.last.step == step
            thresholds.append(watch.last.clip_val)
        watch.close()
        return thresholds, findings or watch.findings, model

    whole, resumed = train(False), train(True)
    assert whole[0] == resumed[0]
    assert same_weights(whole[2], resumed[2])


def test_model_and_optimizer_can_be_copied_and_pickled_while_monitored() -> None:
    """Copies carry no hook of ours; the watch itself says what to save in its place."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, report=False)
    explode(watch, model, optimizer, 2)
    restored, own = pickle.loads(pickle.dumps((model, optimizer)))
    copied = copy.deepcopy(model)
    assert same_weights(restored, model)
    assert same_weights(copied, model)
    assert isinstance(own, torch.optim.Adam)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(watch)
    watch.close()


def test_two_monitors_in_a_process_do_not_affect_each_other() -> None:
    """Two models in turn, each with a watch of its own, have the norms that float64 says."""
    models = [network(0), network(1)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    watches = [GradientWatch(model, one, report=False) for model, one in zip(models, optimizers, strict=True)]
    for batch in batches(3):
        for model, optimizer, watch in zip(models, optimizers, watches, strict=True):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            truth = exact_norm(model.parameters())
            optimizer.step()
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
    for watch in watches:
        watch.close()


def test_the_cell_of_a_notebook_may_be_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The earlier watch of an optimizer, which was not closed, ends in one line; the later one alone clips and logs."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    earlier: GradientWatch | None = None
    for cell in range(3):
        watch = GradientWatch(model, optimizer, log_dir=tmp_path / str(cell), log_every_n_steps=1, clip=1e-3)
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            truth = exact_norm(model.parameters())
            optimizer.step()
            assert recorded(watch) == pytest.approx(truth, rel=1e-9)
        assert earlier is None or (earlier.last is not None and earlier.last.step == 2)
        earlier = watch
    watch.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert caplog.text.count("the earlier one") == 2
    assert "without a call of loss()" not in caplog.text
    rows = [
        (tmp_path / str(cell) / "gradexplode.csv").read_text(encoding="utf-8").count("/grad_norm,") for cell in (0, 1)
    ]
    assert rows == [3, 3]


def test_an_earlier_watch_that_goes_on_being_called_does_nothing() -> None:
    """Calls of a watch that was closed, or replaced, are no error."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first, second = (GradientWatch(model, optimizer, report=False) for _ in range(2))
    for batch in batches(3):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        for watch in (first, second):
            watch.batch(batch)
            watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        truth = exact_norm(model.parameters())
        optimizer.step()
        assert recorded(second) == pytest.approx(truth, rel=1e-9)
    assert first.last is None
    assert not first.failed
    first.close()
    second.close()


def test_a_compiled_model_keeps_its_names() -> None:
    """The wrapper of torch.compile adds no prefix to the names of parameters, and the norm is exact."""
    model = network()
    compiled: Any = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.01)
    with GradientWatch(compiled, optimizer, report=False) as watch:
        explode(watch, compiled, optimizer, 3)
        assert watch.last is not None
        assert watch.last.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
        assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)


@pytest.mark.parametrize("given", ["compiled", "original"])
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_model_that_must_compile_as_one_graph_does(given: str) -> None:
    """Nothing of the monitor is traced along with the model, also where the compiled one was not passed to it."""
    torch.compiler.reset()
    model = network()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(compiled if given == "compiled" else model, optimizer, report=False) as watch:
        explode(watch, compiled, optimizer, 3)
        assert not watch.failed
        assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)


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


@pytest.mark.parametrize("mistake", ["other optimizer", "number", "detached"])
def test_what_a_loop_forgot_is_named_once(mistake: str, caplog: pytest.LogCaptureFixture) -> None:
    """A step of an optimizer that was not given, and a loss without its history, leave one line each."""
    model = network()
    given = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01) if mistake == "other optimizer" else given
    with GradientWatch(model, given, report=False) as watch:
        for batch in batches(4):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            passed: Any = {"number": loss.item(), "detached": loss.detach()}.get(mistake, loss)
            watch.loss(passed)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    lines = {
        "other optimizer": "not by an optimizer that the monitor was given",
        "number": "got a float",
        "detached": "got a detached one",
    }
    assert caplog.text.count(lines[mistake]) == 1


@pytest.mark.filterwarnings("ignore:.*")
def test_a_compiled_step_of_the_optimizer_is_measured() -> None:
    """The hooks are not compiled along with it: the norm is exact, and the weights are those without the watch."""
    models = [network(), network()]
    for model, is_watched in zip(models, (True, False), strict=True):
        torch._dynamo.reset()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        step = torch.compile(optimizer.step, backend="eager")
        watch = GradientWatch(model, optimizer, report=False) if is_watched else None
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            if watch is not None:
                watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            truth = exact_norm(model.parameters())
            step()
            if watch is not None:
                assert recorded(watch) == pytest.approx(truth, rel=1e-9)
        if watch is not None:
            watch.close()
    assert same_weights(*models)


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


@pytest.mark.parametrize("mistake", ["no scaler", "scaled loss", None])
def test_a_scaler_that_is_not_known_is_named(mistake: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A loss that is scaled behind the watch's back, or before it is given to it, is one line; else there is none."""
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
    """Whatever a loss of several elements is added up to, nothing is said of a gradient scaler."""
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


def test_scalars_go_to_a_file_where_there_is_no_logger(tmp_path: Path) -> None:
    """The file has a row for each scalar of each logged step, and is appended to by a second run."""
    for _ in range(2):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradientWatch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1, report=False) as watch:
            explode(watch, model, optimizer, 3)
    with (tmp_path / "gradexplode.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["name"] == "gradexplode/grad_norm"] == ["0", "1", "2"] * 2
    assert all(float(row["value"]) >= 0 for row in rows)


def test_a_summary_writer_gets_scalars_and_histograms(tmp_path: Path) -> None:
    """TensorBoard shows both; the report lies in the writer's folder."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    writer = SummaryWriter(str(tmp_path))
    arguments: dict[str, Any] = {"log_every_n_steps": 1, "histogram_every_n_steps": 1, "report": "always"}
    with GradientWatch(model, optimizer, loggers=[writer], **arguments) as watch:
        explode(watch, model, optimizer, 3)
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("gradexplode/grad_norm")] == [0, 1, 2]
    assert "gradexplode/gradient/0.weight" in events.Tags()["histograms"]
    assert watch.report_folder == tmp_path / "gradexplode"


def test_an_offline_run_of_wandb_gets_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of W&B is a logger as it is; its summary has the last norm."""
    import wandb

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with wandb.init(mode="offline", dir=tmp_path) as run:
        with GradientWatch(model, optimizer, loggers=[run], log_every_n_steps=1, report=False) as watch:
            explode(watch, model, optimizer, 3)
        assert run.summary["gradexplode/grad_norm"] == pytest.approx(exact_norm(model.parameters()), rel=1e-9)


@pytest.mark.parametrize("kind", ["FullyShardedDataParallel", "DeepSpeedEngine"])
def test_wrappers_that_hide_gradients_switch_the_watch_off(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line says so and what to use, and the training goes on."""
    wrapper = type(kind, (nn.Sequential,), {})(network())
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.01)
    with GradientWatch(wrapper, optimizer, report=False) as watch:
        explode(watch, wrapper, optimizer, 2)
    assert watch.last is None
    assert watch.findings == []
    assert watch.diagnosis() is None
    assert len([one for one in caplog.messages if "is off for this run" in one]) == 1


def test_gradients_that_the_loop_assigns_itself_are_measured() -> None:
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
