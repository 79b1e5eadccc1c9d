"""What ends a replay before it could change the run."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed import _functional_collectives
from torch.distributed.nn import functional

from lightning_gradexplode.diagnose.replay import KeptBatch
from tests.diagnose.replay.small_network import Network, replayed, square


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
