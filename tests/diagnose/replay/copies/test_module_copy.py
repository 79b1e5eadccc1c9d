"""What a copy shares with the run, and what it does not."""

from __future__ import annotations

import copy
import socket
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_gradexplode.diagnose.replay import ModuleCopy, RandomState
from tests.diagnose.replay.small_network import Network, replayed, square


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
