"""Error gradients of modules against those of ``torch.autograd.grad``."""

from __future__ import annotations

import copy
import gc
import logging
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradexplode.distributed.process_group import ALONE
from lightning_gradexplode.measure.module_gradients import ModuleGradientProbe
from lightning_gradexplode.records import FloatArray, ModuleGradients


def look(network: nn.Module, run: Callable[[nn.Module], Tensor], scale: float | None = None) -> ModuleGradients | None:
    """Return what the probe measures of one forward and backward pass."""
    probe = ModuleGradientProbe(network, ALONE)
    probe.attach(None if scale is None else torch.tensor(scale))
    run(network).backward()  # type: ignore[no-untyped-call]
    seen = probe.take()
    probe.detach()
    return seen


def known(seen: ModuleGradients | None) -> ModuleGradients:
    assert seen is not None
    return seen


def stack(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 7), activation(), nn.Linear(7, 2))


INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def test_norms_are_those_of_autograd() -> None:
    """Norm, gain and share of each module are those of the gradients of the values between them."""
    network = stack()
    values = [INPUTS]
    for layer in network:
        values.append(layer(values[-1]))
    (30 * values[-1].square().sum()).backward(inputs=[*network.parameters()], retain_graph=True)  # type: ignore[no-untyped-call]
    gradients = torch.autograd.grad(30 * values[-1].square().sum(), values[1:])
    norms = [float(gradient.double().norm()) for gradient in gradients]
    seen = known(look(network, lambda net: 30 * net(INPUTS).square().sum()))
    assert seen.modules == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(seen.output_norm, norms, rtol=1e-5)
    np.testing.assert_allclose(seen.input_norm, [math.nan, *norms[:-1]], rtol=1e-5)
    np.testing.assert_allclose(seen.gain[1:], np.array(norms[:-1]) / np.array(norms[1:]), rtol=1e-5)
    np.testing.assert_allclose(seen.share_above_one, [float((g.abs() >= 1).float().mean()) for g in gradients])
    assert seen.total_gain == pytest.approx(norms[0] / norms[-1], rel=1e-5)
    assert seen.total_gain == pytest.approx(float(np.prod(seen.gain[1:])), rel=1e-5)


def test_the_scale_of_amp_is_divided_out() -> None:
    """Under a scale of 1024 the same numbers come out, the share above one among them."""
    network = stack()
    plain = known(look(network, lambda net: net(INPUTS).square().sum()))
    scaled = known(look(network, lambda net: 1024 * net(INPUTS).square().sum(), scale=1024.0))
    np.testing.assert_allclose(scaled.output_norm, plain.output_norm, rtol=1e-5)
    np.testing.assert_allclose(scaled.share_above_one, plain.share_above_one)


def test_growth_per_layer_of_a_network_that_doubles() -> None:
    """Layers that multiply by two have gains of two, and gradients that double from layer to layer."""
    network = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(6)))
    for weight in network.parameters():
        nn.init.eye_(weight)
        weight.data *= 2
    seen = known(look(network, lambda net: net(INPUTS[:, :4]).sum()))
    np.testing.assert_allclose(seen.gain[1:], 2.0)
    assert seen.growth_per_layer == pytest.approx(2.0)
    assert seen.total_gain == pytest.approx(32.0)


class Unrolled(nn.Module):
    """One layer that is called many times."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.layer.weight)
        self.layer.weight.data *= factor

    def forward(self, inputs: Tensor) -> Tensor:
        """Call it twelve times."""
        for _ in range(12):
            inputs = self.layer(inputs)
        return inputs


def test_growth_per_time_step_of_a_module_called_many_times() -> None:
    """A hand-written recurrence that multiplies by 1.5 has gradients that grow by 1.5 a step."""
    seen = known(look(Unrolled(1.5), lambda net: net(torch.ones(2, 3)).sum()))
    assert seen.growth_in_time == pytest.approx([1.5])
    assert seen.gain == pytest.approx([1.5])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_growth_per_time_step_of_a_recurrent_network(batch_first: bool, factor: float) -> None:
    """With a recurrent matrix of a multiple of one, and units that stay above zero, the gradient grows by it."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(3, 3)
            self.recur = nn.RNN(3, 3, nonlinearity="relu", batch_first=batch_first)
            self.recur.load_state_dict(
                {**self.recur.state_dict(), "weight_hh_l0": factor * torch.eye(3), "weight_ih_l0": torch.eye(3)}
            )

        def forward(self, inputs: Tensor) -> Tensor:
            outputs, _ = self.recur(self.enter(inputs).abs() + 1)
            last: Tensor = outputs[:, -1] if batch_first else outputs[-1]
            return last

    seen = known(look(Embedded(), lambda net: net(torch.randn(10, 10, 3)).sum()))
    place = seen.modules.index("recur")
    assert seen.growth_in_time[place] == pytest.approx(factor, rel=1e-4)
    assert seen.singular_value[place] == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "bounds"), [(nn.RNN, [1.0]), (nn.LSTM, [4.0, 4.0, 1.0, 4.0]), (nn.GRU, [4.0, 4.0, 1.0])]
)
def test_singular_values_of_gates_are_compared_each_with_its_bound(kind: Any, bounds: list[float]) -> None:
    """The largest of all gates and layers counts, over four for sigmoid gates."""
    network = nn.ModuleDict({"recur": kind(3, 5, num_layers=2)})
    recur: Any = network["recur"]
    expected = max(
        float(np.linalg.svd(gate.detach().numpy(), compute_uv=False)[0]) / bound
        for weight in (recur.weight_hh_l0, recur.weight_hh_l1)
        for gate, bound in zip(weight.chunk(len(bounds)), bounds, strict=True)
    )
    seen = known(look(network, lambda net: recur(torch.randn(4, 2, 3))[0].sum()))
    assert seen.singular_value == pytest.approx([expected], rel=1e-5)


def test_the_singular_value_of_a_large_matrix_is_iterated() -> None:
    """With 400 units it is off by a few percent at most, and never above."""
    network = nn.ModuleDict({"recur": nn.RNN(2, 400)})
    recur: Any = network["recur"]
    state = torch.get_rng_state()
    seen = known(look(network, lambda net: recur(torch.ones(3, 1, 2))[0].sum()))
    assert torch.equal(torch.get_rng_state(), state)
    exact = float(torch.linalg.matrix_norm(recur.weight_hh_l0.detach(), 2))
    assert 0.95 * exact < seen.singular_value[0] <= exact * (1 + 1e-5)


class Branches(nn.Module):
    """Has tuples, dictionaries and keyword arguments as inputs and outputs."""

    def forward(self, pair: tuple[Tensor, Tensor], *, extra: Tensor) -> dict[str, Any]:
        """Mix."""
        return {"sum": (pair[0] + pair[1], extra * 2), "name": "mixed", "none": None}


class Nested(nn.Module):
    """Uses `Branches`, a part without gradients, and an in-place change of a module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 4)
        self.inplace = nn.ReLU(inplace=True)
        self.branches = Branches()
        self.idle = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Go through all."""
        entered = self.enter(inputs)
        entered += 1
        entered[:, 0] = 0.5
        entered = self.inplace(entered)
        with torch.no_grad():
            constant = self.idle(entered)
        mixed = self.branches((entered, constant), extra=entered)
        first, second = mixed["sum"]
        outputs: Tensor = first + second
        return outputs


def test_nested_values_and_changes_in_place() -> None:
    """Tuples, dictionaries, keywords and in-place operations are taken; what runs without gradients is left out."""
    seen = known(look(Nested(), lambda net: net(INPUTS).square().sum()))
    assert seen.modules == ("enter", "inplace", "branches")
    assert np.isfinite(seen.output_norm).all()
    assert np.isfinite(seen.gain[1:]).all()


class Checkpointed(nn.Module):
    """Runs its inner network again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.inner = stack()
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        """Run."""
        hidden: Tensor = self.first(inputs)
        for layer in self.inner:
            hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        return hidden


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "stack": stack,
    "in place": lambda: stack(lambda: nn.ReLU(inplace=True)),
    "nested": Nested,
    "checkpointed": lambda: Checkpointed(False),
    "checkpointed, reentrant": lambda: Checkpointed(True),
    "dropout in place": lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5, inplace=True), nn.Linear(8, 2)),
    "half": lambda: stack().bfloat16(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_bit_for_bit_the_same(name: str) -> None:
    """With and without the probe, the outputs, all gradients and the random numbers are the same."""

    def gradients(watched: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        torch.manual_seed(0)
        network = NETWORKS[name]()
        probe = ModuleGradientProbe(network, ALONE)
        if watched:
            probe.attach(None)
        torch.manual_seed(1)
        outputs = network(INPUTS.to(next(network.parameters()).dtype))
        outputs.square().sum().backward()
        assert (probe.take() is not None) is watched
        probe.detach()
        found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return outputs.detach(), found, torch.get_rng_state()

    plain, watched = gradients(False), gradients(True)
    assert torch.equal(plain[0], watched[0])
    assert len(plain[1]) == len(watched[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain[1], watched[1], strict=True))
    assert torch.equal(plain[2], watched[2])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_modules_are_seen_once(reentrant: bool) -> None:
    """What is computed twice is counted once, in the order and with the norms of a run without checkpoints."""
    torch.manual_seed(0)
    network = Checkpointed(reentrant)
    seen = known(look(network, lambda net: net(INPUTS).square().sum()))
    plain = copy.deepcopy(network)
    plain.forward = lambda inputs: plain.inner(plain.first(inputs))  # type: ignore[method-assign]
    expected = known(look(plain, lambda net: net(INPUTS).square().sum()))
    assert seen.modules == expected.modules
    np.testing.assert_allclose(seen.output_norm, expected.output_norm, rtol=1e-5)


def test_nothing_is_stored_on_the_modules() -> None:
    """Modules copy and pickle while they are measured, copies are not measured, and after `detach` nothing is."""
    network = stack()
    probe = ModuleGradientProbe(network, ALONE)
    probe.attach(None)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(network)))
    for module in (*network.modules(), *copied.modules()):
        assert not {**module._forward_hooks, **module._forward_pre_hooks, **module._backward_hooks}
    copied(INPUTS).sum().backward()
    assert probe.take() is None
    hidden = network[0](INPUTS)
    assert torch.equal(pickle.loads(pickle.dumps(hidden)), hidden)
    network[1:](hidden).sum().backward()
    assert known(probe.take()).modules == ("0", "1", "2", "3", "4")
    probe.detach()
    network(INPUTS).sum().backward()
    assert probe.take() is None


def test_a_probe_that_is_dropped_measures_nothing() -> None:
    """Torch's hooks for all modules are gone with the probe, also where nobody detached it."""
    network = stack()
    probe = ModuleGradientProbe(network, ALONE)
    probe.attach(None)
    alive = weakref.ref(probe)
    del probe
    gc.collect()
    assert alive() is None
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_losses_and_runs_without_gradients_have_no_nodes() -> None:
    """A module that gives a single number is no layer; a pass without gradients gives nothing."""
    network = nn.ModuleDict({"layer": nn.Linear(5, 2), "loss": nn.MSELoss()})
    seen = known(look(network, lambda net: network["loss"](network["layer"](INPUTS), torch.zeros(4, 2))))
    assert seen.modules == ("layer",)
    probe = ModuleGradientProbe(network, ALONE)
    probe.attach(None)
    with torch.no_grad():
        network["layer"](INPUTS)
    assert probe.take() is None


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_reported(value: float) -> None:
    """They are in the norms, and in no gain and no growth."""
    seen = known(look(stack(), lambda net: (net(INPUTS) * value).sum()))
    assert not np.isfinite(seen.output_norm).any()
    assert np.isnan(seen.gain).all()
    assert math.isnan(seen.growth_per_layer)


def test_compiled_modules_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The probe is switched off with one warning, and registers nothing."""
    network = nn.Sequential(nn.Linear(5, 5))
    network.append(torch.compile(nn.Linear(5, 2), backend="eager"))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        probe = ModuleGradientProbe(network, ALONE)
        for _ in range(2):
            probe.attach(None)
            assert not torch.nn.modules.module._global_forward_pre_hooks
            assert probe.take() is None
    (line,) = caplog.messages
    assert "compiled" in line


@pytest.mark.parametrize("name", ["jacrev", "vmap of grad", "batched gradients"])
def test_transforms_are_not_measured(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Ordinary calls next to them are, as without the transform, and nothing is switched off."""
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    inputs = torch.randn(4, 3)

    def with_transform(net: nn.Module) -> Tensor:
        if name == "jacrev":
            derivative: Tensor = torch.func.jacrev(net)(inputs)
        elif name == "vmap of grad":
            derivative = torch.func.vmap(torch.func.grad(lambda one: net(one).squeeze()))(inputs)
        else:
            needed = inputs.clone().requires_grad_()
            directions = torch.ones(2, 4, 1)
            (derivative,) = torch.autograd.grad(net(needed), needed, directions, is_grads_batched=True)
        values: Tensor = net(inputs)
        return derivative.detach().sum() + values.sum()

    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        seen = known(look(network, with_transform))
    expected = known(look(network, lambda net: net(inputs).sum()))
    assert not caplog.messages
    np.testing.assert_array_equal(seen.output_norm, expected.output_norm)


def test_a_failure_in_a_hook_costs_the_probe_and_not_the_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass goes on; the failure is logged once; later attachments do nothing."""

    def fail(*_: Any, **options: Any) -> FloatArray:
        raise RuntimeError("no norm today")

    monkeypatch.setattr(torch.linalg, "vector_norm", fail)
    network = stack()
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        probe = ModuleGradientProbe(network, ALONE)
        for _ in range(2):
            probe.attach(None)
            network(INPUTS).sum().backward()
            assert probe.take() is None
    assert all(parameter.grad is not None for parameter in network.parameters())
    (line,) = caplog.messages
    assert "no norm today" in line


def test_the_steepest_rise_is_at_the_layer_with_the_largest_gain() -> None:
    """One layer with weights twenty times larger is named; in a recurrence it is the module called many times."""
    network = nn.Sequential(*(nn.Linear(16, 16) for _ in range(7)))
    network[3].weight.data.mul_(20)  # type: ignore[operator]
    steepest = known(look(network, lambda net: net(torch.randn(8, 16)).sum())).steepest()
    assert steepest is not None
    assert steepest[0] == "3"
    assert steepest[1] > 3
    recurrent = nn.Sequential(nn.Linear(3, 3), Unrolled(1.5), nn.Linear(3, 3))
    steepest = known(look(recurrent, lambda net: net(torch.ones(2, 3)).sum())).steepest()
    assert steepest is not None
    assert steepest[0] == "1.layer"
    assert steepest[1] == pytest.approx(1.5**12, rel=1e-4)


class WithoutGradient(torch.autograd.Function):
    """A function whose backward pass returns no gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Double a value."""
        return value * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        """Return none."""


def test_a_function_that_returns_no_gradient_disables_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that is called with None instead of a gradient measures nothing, and other passes are measured."""
    network = stack()
    probe = ModuleGradientProbe(network, ALONE)
    probe.attach(None)
    WithoutGradient.apply(network(INPUTS)).sum().backward()  # type: ignore[no-untyped-call]
    assert probe.take() is None
    network(INPUTS).sum().backward()
    assert probe.take() is not None
    probe.detach()
    assert not caplog.messages
