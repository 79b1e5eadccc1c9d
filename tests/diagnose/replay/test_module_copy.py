"""What a copy shares with the run, what it does not, and what ends a replay before it could change the run."""

from __future__ import annotations

import copy
import queue
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed import _functional_collectives
from torch.distributed.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode.diagnose.replay import KeptBatch, ModuleCopy, RandomState, ReplayStep, replay_step
from lightning_gradexplode.records import Replay
from lightning_gradexplode.testing import RecordingLogger


class Network(nn.Module):
    """A small network with room for attributes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.body(x))
        return result


def square(model: Any, batch: Tensor, batch_idx: int) -> Any:
    return model(batch).square().sum()


def replayed(
    step: Callable[..., Any] = square,
    module: nn.Module | None = None,
    batch: Any = None,
    failed: Any = None,
    expected_loss: float | None = None,
    **settings: Any,
) -> Replay:
    module, batch = module or Network(), torch.randn(6, 4) if batch is None else batch
    return replay_step(ReplayStep(module, step, batch, **settings), failed=failed, expected_loss=expected_loss)


class TestSharing:
    def test_parameters_are_views_and_buffers_are_clones(self) -> None:
        """There is no second model, and running statistics are the copy's own."""
        module: Any = Network()
        made: Any = ModuleCopy(module).module

        for name, one in made.named_parameters():
            original = module.get_parameter(name)
            assert one is not original
            assert one.data_ptr() == original.data_ptr()
            assert (one.requires_grad, one.grad) == (True, None)
        for name, buffer in made.named_buffers():
            assert buffer.data_ptr() != module.get_buffer(name).data_ptr()

    def test_tied_and_frozen_parameters_stay_so(self) -> None:
        """A weight that two modules share is one in the copy, and a frozen one stays frozen."""
        module: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        module[1].weight = module[0].weight
        module[0].bias.requires_grad_(False)
        made: Any = ModuleCopy(module).module

        assert made[1].weight is made[0].weight
        assert not made[0].bias.requires_grad

    def test_views_of_one_tensor_stay_views_of_one_tensor(self) -> None:
        """What is written to a clone shows in the clone's views, as in the module."""
        table = torch.zeros(4)
        made: Any = ModuleCopy(Network(table=table, first=table[:2])).module

        made.table[0] = 5.0

        assert (made.first[0].item(), table[0].item()) == (5.0, 0.0)

    def test_tensors_beyond_the_budget_are_shared_and_protected(self) -> None:
        """A module that holds its dataset is not copied with it; a step that writes to the dataset is stopped."""
        module: Any = Network(data=torch.zeros(1 << 19), rows=torch.zeros(3))
        small = ModuleCopy(module, tensor_bytes=0)
        shared: Any = small.module.data
        assert shared.data_ptr() == module.data.data_ptr()
        assert any("data" in note and "shared" in note for note in small.notes)

        def writes(model: Any, batch: Tensor, batch_idx: int) -> Any:
            model.data[0] += 1.0
            return square(model, batch, batch_idx)

        assert replayed(writes, module).status == "finite"  # within the budget it is cloned
        assert module.data[0] == 0.0

    def test_graph_tensors_enter_detached(self) -> None:
        """`copy.deepcopy` refuses tensors of a graph, which modules keep: a hidden state, a list of losses."""
        weight = torch.randn(3, requires_grad=True)
        module: Any = Network(state=weight * 2, losses=[(weight * 3).sum()])
        with pytest.raises(RuntimeError):
            copy.deepcopy(module)

        made = ModuleCopy(module)

        assert torch.equal(made.module.state, weight * 2)  # type: ignore[arg-type]
        assert any("detached" in note for note in made.notes)

    def test_weak_dictionaries_hold_parts_of_the_copy(self) -> None:
        """Their own copies would look up modules of the copy among those of the run."""
        module: Any = Network()
        module.gains = weakref.WeakKeyDictionary({module.body: 2.0})
        module.parts = weakref.WeakValueDictionary({"body": module.body})

        made: Any = ModuleCopy(module).module

        assert made.gains[made.body] == 2.0
        assert made.parts["body"] is made.body
        assert list(module.gains) == [module.body]

    def test_kept_weights_take_the_place_of_the_modules_own(self) -> None:
        """The step is computed with the weights before an update, where those were kept."""
        module: Any = Network()
        before = {name: one.detach().clone() for name, one in module.named_parameters()}
        with torch.no_grad():
            for one in module.parameters():
                one.fill_(float("nan"))

        assert "not finite any more" in replayed(module=module).reason
        assert replayed(module=module, weights=before).status == "finite"

    @pytest.mark.parametrize(
        "old", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm]
    )
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_reparametrized_modules_are_copied(self, old: Any) -> None:
        """The loss and the gradient norm are those of the module itself."""
        module = old(nn.Linear(4, 3))
        batch = torch.randn(6, 4)
        random = RandomState.capture()
        twin_loss = module(batch).square().sum()
        twin_loss.backward()
        norm = torch.stack([one.grad.norm() for one in module.parameters()]).norm()

        replay = replayed(module=module, batch=batch, random_state=random)

        assert replay.status == "finite"
        if old is not torch.nn.utils.spectral_norm:  # its power iteration has gone on
            assert replay.loss == pytest.approx(twin_loss.item())
            assert replay.grad_norm == pytest.approx(norm.item())


class TestAttributes:
    @pytest.mark.parametrize(
        "value",
        [
            threading.Lock(),
            threading.RLock(),
            threading.Event(),
            sys.stdin,
            (one for one in range(3)),
            socket.socket,
            np.random,
        ],
        ids=lambda one: type(one).__name__,
    )
    def test_attributes_that_cannot_be_copied_are_no_obstacle(self, value: Any) -> None:
        """Locks, files, generators, classes and modules do not keep a step from being replayed."""
        assert replayed(module=Network(held=value, nested={"in": [value]})).status == "finite"

    def test_an_iterator_that_the_step_uses_ends_the_replay(self) -> None:
        """The run's own iterator must not move on."""
        module: Any = Network(numbers=iter([1.0, 2.0, 3.0]))

        def uses(model: Any, batch: Tensor, batch_idx: int) -> Any:
            return square(model, batch, batch_idx) * next(model.numbers)

        replay = replayed(uses, module)

        assert replay.status == "not-possible"
        assert "numbers" in replay.reason
        assert next(module.numbers) == 1.0

    def test_generators_and_closures_are_the_copys_own(self) -> None:
        """A generator draws the same numbers again; a closure's variables do not change."""
        seen: list[float] = []
        module: Any = Network(generator=torch.Generator().manual_seed(1))
        module.body.register_forward_hook(lambda *_: seen.append(1.0))
        state = module.generator.get_state()

        def draws(model: Any, batch: Tensor, batch_idx: int) -> Any:
            return square(model, batch + torch.rand(6, 4, generator=model.generator), batch_idx)

        first, second = replayed(draws, module, torch.zeros(6, 4)), replayed(draws, module, torch.zeros(6, 4))

        assert first.loss == second.loss
        assert not seen
        assert torch.equal(module.generator.get_state(), state)

    def test_a_dataset_is_shared(self) -> None:
        """Data sets are not copied."""
        data = TensorDataset(torch.zeros(10))
        assert ModuleCopy(Network(data=data)).module.data is data  # type: ignore[comparison-overlap]

    def test_hooks_of_this_package_are_left_out(self) -> None:
        """What measures the module does not measure its copy."""
        module: Any = Network()

        def hook(*_: Any) -> None:
            raise AssertionError("a hook of the monitor ran in the replay")

        hook.__module__ = "lightning_gradexplode.measure.module_gradients"
        module.body.register_forward_hook(hook)
        module.body.weight.register_hook(hook)

        assert replayed(module=module).status == "finite"

    def test_tensor_hooks_of_the_user_change_gradients_as_in_the_run(self) -> None:
        """A hook on a parameter that scales its gradient scales it in the replay."""
        module, batch = Network(), torch.randn(6, 4)
        plain = replayed(module=module, batch=batch).grad_norm
        for one in module.parameters():
            one.register_hook(lambda gradient: gradient * 3.0)  # type: ignore[no-untyped-call]

        assert replayed(module=module, batch=batch).grad_norm == pytest.approx(3.0 * (plain or 0.0))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_compiled_submodules_run_as_they_were_written(self) -> None:
        """No compilation happens in a replay, and modules keep their names."""
        module: Any = Network()
        module.body = torch.compile(module.body)
        module.norm.compile()

        replay = replayed(module=module)

        assert replay.status == "finite"
        assert replay.execution_order == ("", "body", "norm")


class TestStops:
    def test_a_write_to_a_weight_is_made_to_a_clone(self) -> None:
        """A step that averages or clamps weights is computed with weights of its own."""
        module: Any = Network()
        before = module.body.weight.detach().clone()

        def clamps(model: Any, batch: Tensor, batch_idx: int) -> Any:
            with torch.no_grad():
                model.body.weight.clamp_(-0.01, 0.01)
            return square(model, batch, batch_idx)

        assert replayed(clamps, module).status == "finite"
        assert torch.equal(module.body.weight, before)

    def test_a_write_to_a_weight_that_was_used_before_is_made_to_a_clone(self) -> None:
        """An average of the weights within the step, which has run with its views already, stays as it was."""
        module: Any = Network()
        module.average = copy.deepcopy(module.body).requires_grad_(False)
        before = module.average.weight.detach().clone()

        def averages(model: Any, batch: Tensor, batch_idx: int) -> Any:
            loss = (model.body(batch) - model.average(batch)).square().mean()
            with torch.no_grad():
                model.average.weight.mul_(0.5).add_(model.body.weight, alpha=0.25)
            return loss

        assert replayed(averages, module).status == "finite"
        assert torch.equal(module.average.weight, before)

    def test_tensors_that_the_step_makes_may_be_written_to(self) -> None:
        """``torch.tensor`` makes new memory; ``torch.from_numpy`` does not, and may belong to the run."""
        array = np.zeros(6, dtype=np.float32)

        def writes(model: Any, batch: Tensor, batch_idx: int) -> Any:
            made = torch.tensor([1.0, 2.0])
            made[0] = 3.0
            return square(model, batch, batch_idx) * made.sum()

        def writes_to_array(model: Any, batch: Tensor, batch_idx: int) -> Any:
            torch.from_numpy(array)[0] = 1.0
            return square(model, batch, batch_idx)

        assert replayed(writes).status == "finite"
        assert "writes to a tensor of the run" in replayed(writes_to_array).reason
        assert array[0] == 0.0

    def test_what_numpy_writes_to_is_a_copy(self) -> None:
        """A step that changes weights or its batch through their memory changes none of the run."""
        module: Any = Network()
        before, batch = module.body.weight.detach().clone(), torch.zeros(6, 4)

        def scales(model: Any, one: Tensor, batch_idx: int) -> Any:
            model.body.weight.detach().numpy()[:] *= 0.5
            np.asarray(one)[:] = 1.0
            return square(model, one, batch_idx)

        assert replayed(scales, module, batch).status == "finite"
        assert torch.equal(module.body.weight, before)
        assert torch.equal(batch, torch.zeros(6, 4))

    @pytest.mark.parametrize("kind", [queue.Queue, queue.SimpleQueue, threading.Event, ThreadPoolExecutor])
    def test_what_other_threads_work_on_is_not_used(self, kind: Any) -> None:
        """A copy of a queue would wait for ever for what the run's own one has passed on already."""
        module: Any = Network(held=kind())

        def waits(model: Any, batch: Tensor, batch_idx: int) -> Any:
            getattr(model.held, "get", None) or model.held.is_set()
            return square(model, batch, batch_idx)

        assert replayed(module=module).status == "finite"
        replay = replayed(waits, module)
        assert replay.status == "not-possible"
        assert replay.reason.startswith("the step uses held")

    def test_a_write_to_another_tensor_of_the_run_ends_the_replay(self) -> None:
        """A tensor outside of the module belongs to the run."""
        total = torch.zeros(())

        def counts(model: Any, batch: Tensor, batch_idx: int) -> Any:
            loss = square(model, batch, batch_idx)
            total.add_(loss.detach())
            return loss

        replay = replayed(counts)

        assert replay.status == "not-possible"
        assert "writes to a tensor of the run" in replay.reason
        assert total == 0.0

    def test_a_step_of_the_real_module_cannot_change_it(self) -> None:
        """A step that uses the run's module, not the copy, is stopped at its running statistics."""
        module: Any = Network()

        def wrong(model: Any, batch: Tensor, batch_idx: int) -> Any:
            return square(module, batch, batch_idx)

        assert "writes to a tensor of the run" in replayed(wrong, module).reason
        assert float(module.norm.running_mean.abs().sum()) == 0.0
        assert all(one.grad is None for one in module.parameters())

    def test_gradients_of_the_run_are_put_back(self) -> None:
        """A backward pass through the run's own weights leaves their gradients as they were."""
        module = nn.Linear(4, 3)
        module.weight.grad = kept = torch.ones(3, 4)

        replayed(lambda model, batch, _: model(batch).sum() + module(batch).sum(), module)

        assert module.weight.grad is kept
        assert torch.equal(kept, torch.ones(3, 4))
        assert module.bias.grad is None

    def test_a_batch_that_the_step_changes_in_place_voids_the_replay(self) -> None:
        """What the step was given is known no more."""
        batch = torch.randn(6, 4)
        kept = KeptBatch({"x": batch})
        batch.mul_(2.0)

        replay = replayed(lambda model, one, _: square(model, one["x"], 0), batch=kept)

        assert replay.status == "not-possible"
        assert "changes its batch" in replay.reason

    def test_entries_that_the_step_removes_are_there_again(self) -> None:
        """A kept batch is as the step was given it."""
        batch = {"x": torch.randn(6, 4), "labels": torch.randn(6, 3)}
        kept = KeptBatch(batch)

        def pops(model: Any, one: Any, _: int) -> Any:
            labels = one.pop("labels")
            return (model(one["x"]) - labels).square().mean()

        pops(Network(), batch, 0)

        assert replayed(pops, batch=kept).status == "finite"
        assert replayed(pops, batch=kept).status == "finite"

    def test_the_time_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step that takes far longer than an ordinary one is given up."""
        monkeypatch.setattr("lightning_gradexplode.diagnose.replay.replay.SECONDS", 0.2)

        def endless(model: Any, batch: Tensor, batch_idx: int) -> Any:
            while True:
                batch = batch + 1.0

        replay = replayed(endless)

        assert replay.status == "not-possible"
        assert "time" in replay.reason

    def test_an_exception_of_the_step_is_reported(self) -> None:
        """The reason holds its type and its first line."""

        def raises(model: Any, batch: Tensor, batch_idx: int) -> Any:
            raise ValueError("no such thing\nat all")

        assert replayed(raises).reason == "computing the step again raised ValueError: no such thing"

    def test_lack_of_memory_is_no_error(self) -> None:
        """Where memory ends, the step is not replayed."""

        def large(model: Any, batch: Tensor, batch_idx: int) -> Any:
            return torch.empty(1 << 50).sum()

        assert "not enough memory" in replayed(large).reason

    def test_another_loss_than_the_runs_is_not_trusted(self) -> None:
        """A loss that differs is named with that of the run."""
        replay = replayed(expected_loss=1e9)

        assert replay.status == "not-reproduced"
        assert "1e+09" in replay.reason

    def test_sharded_parameters_are_refused(self) -> None:
        """Of sharded parameters no process holds all."""

        class DTensor(nn.Parameter):
            """Stands for a sharded tensor."""

        module: Any = Network()
        module.body.weight = DTensor(module.body.weight.detach())

        assert "sharded" in replayed(module=module).reason


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
class TestSeveralProcesses:
    @pytest.mark.parametrize(
        "communicate",
        [
            lambda one: torch.distributed.all_reduce(one),
            lambda one: torch.distributed.broadcast(one, 0),
            lambda one: torch.distributed.all_gather([torch.zeros_like(one)], one),
            lambda one: torch.distributed.barrier(),
            lambda one: functional.all_reduce(one),  # type: ignore[no-untyped-call]
            lambda one: _functional_collectives.all_reduce(one, "sum", torch.distributed.group.WORLD or []),
        ],
        ids=["all_reduce", "broadcast", "all_gather", "barrier", "with gradient", "functional"],
    )
    def test_no_collective_operation_starts(self, communicate: Callable[[Tensor], Any]) -> None:
        """One process alone would wait for the others for ever."""

        def step(model: Any, batch: Tensor, batch_idx: int) -> Any:
            loss = square(model, batch, batch_idx)
            communicate(loss.detach().clone())
            return loss

        replay = replayed(step)

        assert replay.status == "not-possible"
        assert "other processes" in replay.reason

    def test_the_module_inside_of_a_distributed_wrapper_is_replayed(self) -> None:
        """The wrapper's hooks, which communicate, are not part of the copy."""
        wrapper = nn.parallel.DistributedDataParallel(Network())

        replay = replayed(module=wrapper)

        assert replay.status == "finite"
        assert replay.execution_order == ("", "body", "norm")


class Adversarial(LightningModule):
    """Two networks, each with an optimizer, in manual optimization."""

    def __init__(self, fault: str = "", stepped: dict[int, int] | None = None) -> None:
        super().__init__()
        self.stepped = stepped or {}
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)
        self.fault = fault
        self.replay: Replay | None = None
        self.norms: list[float] = []

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(one.parameters(), lr=0.1) for one in (self.generator, self.critic)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        first, second = optimizers
        self.batch, self.critic_optimizer = batch, second.optimizer
        (inputs,) = batch
        with second.toggle_model():
            loss = self.critic(self.generator(inputs).detach()).mean()
            if self.fault == "critic":
                loss = loss + torch.log(-self.critic.weight.square().sum())
            second.zero_grad()
            self.manual_backward(loss)
            self.log("critic", loss)
            self.clip_gradients(second, 1.0, "norm")
            second.step()
        self.toggle_optimizer(first)
        loss = -self.critic(self.generator(inputs)).mean() / (0.0 if self.fault == "generator" else 1.0)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        self.lr_schedulers()
        assert self.logger is not None
        self.logger.log_metrics({})

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.replay is not None or (optimizer is self.critic_optimizer) != (self.fault == "critic"):
            return
        before = [(one.detach().clone(), one.grad, one.requires_grad) for one in self.parameters()]
        step = ReplayStep(
            self, lambda copy, one, index: copy.training_step(one, index), self.batch, stepped=self.stepped
        )
        self.replay = replay_step(step, failed="loss" if self.fault else None)
        for one, (was, grad, required) in zip(self.parameters(), before, strict=True):
            assert torch.equal(one, was)
            assert (one.grad is grad, one.requires_grad) == (True, required)


def fit(module: LightningModule) -> None:
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=RecordingLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(2, 2)), 2))


class TestManualOptimization:
    def test_the_backward_pass_and_the_optimizers_are_served(self) -> None:
        """Both losses are computed, and no weight changes."""
        module = Adversarial()
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "finite"
        assert len(module.replay.backward_losses) == 2

    def test_a_fault_before_the_first_update_is_named(self) -> None:
        """The critic's loss is computed with the weights of the run."""
        module = Adversarial("critic")
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "reproduced"
        assert module.replay.first is not None
        assert module.replay.first.expression in (None, "torch.log(-self.critic.weight.square().sum())")

    def test_a_fault_after_an_update_that_was_taken_since_is_named(self) -> None:
        """The generator's loss is computed with the critic's weights after its step."""
        module = Adversarial("generator", {1: 1})
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "reproduced"
        assert module.replay.first is not None
        assert module.replay.first.name == "div"

    def test_a_fault_after_several_updates_of_an_optimizer_is_not_trusted(self) -> None:
        """The weights between its steps are not known."""
        module = Adversarial("generator", {1: 2})
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "not-reproduced"

    def test_a_fault_after_an_update_is_not_trusted(self) -> None:
        """The generator's loss was computed with weights that the replay does not have."""
        module = Adversarial("generator")
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "not-reproduced"
        assert "an optimizer steps before" in module.replay.reason
