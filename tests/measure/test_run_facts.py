"""What is recorded of a run before its first step."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrizations

from lightning_gradexplode.measure.run_facts import collect_run_facts, in_order, unchanged_weights
from lightning_gradexplode.records import ParameterFacts, RunFacts
from tests.measure.modules import CharRNN, ElmanCell, facts_of
from tests.measure.sharding import Shard, distribute_tensor, needs_sharding
from tests.measure.tensors import WILD, held, true_norm


def parameter(facts: RunFacts, name: str) -> ParameterFacts:
    """Return the facts of a parameter."""
    return next(one for one in facts.parameters if one.name == name)


def test_parameters_are_measured_where_they_are() -> None:
    """Names, owners, sizes and scales are those of the network, against plain Python."""
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    module.register_parameter("gain", nn.Parameter(torch.tensor([-3.0, 4.0])))
    optimizer = torch.optim.SGD(module[0].parameters(), lr=0.1)
    facts = facts_of(module, optimizer)
    assert {one.name for one in facts.parameters} == {name for name, _ in module.named_parameters()}
    assert (parameter(facts, "gain").module, parameter(facts, "gain").module_kind) == ("", "Sequential")
    assert parameter(facts, "gain").std == pytest.approx(math.sqrt(12.5))
    assert parameter(facts, "gain").largest == 4.0
    weight = parameter(facts, "0.weight")
    values = module.get_parameter("0.weight").flatten().tolist()
    assert weight.std == pytest.approx(math.sqrt(sum(value**2 for value in values) / 12), rel=1e-6)
    assert weight.largest == pytest.approx(max(map(abs, values)))
    assert (weight.shape, weight.dtype, weight.module, weight.module_kind) == ((3, 4), "float32", "0", "Linear")
    assert (weight.fan_in, weight.optimizer) == (4, 0)
    assert (parameter(facts, "0.bias").fan_in, parameter(facts, "gain").optimizer) == (None, None)


@pytest.mark.parametrize("kind", WILD)
def test_parameters_of_any_kind_have_their_true_scale(kind: str) -> None:
    """Root mean square and largest value of any tensor are those of a plain loop; NaN where it has no elements."""
    module, tensor = nn.Module(), WILD[kind]().detach()
    module.register_parameter("weight", nn.Parameter(tensor, requires_grad=False))
    found = facts_of(module).parameters[0]
    values = [abs(value) for value in held(tensor)]
    if not values:
        assert math.isnan(found.std)
        return
    rms = true_norm(values) / math.sqrt(len(values))
    np.testing.assert_allclose(found.std, rms, rtol=1e-6)
    np.testing.assert_allclose(found.largest, math.nan if any(map(math.isnan, values)) else max(values), rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "name", "fan_in"),
    [
        (nn.Conv2d(6, 8, 3, groups=2), "weight", 27),
        (nn.ConvTranspose2d(6, 8, 4, stride=2, groups=2), "weight", 12),
        (nn.Bilinear(3, 4, 5), "weight", 12),
        (nn.LSTM(5, 3), "weight_ih_l0", 5),
        (nn.LSTM(5, 3), "weight_hh_l0", 3),
        (nn.Embedding(10, 4), "weight", None),
        (nn.MultiheadAttention(4, 2), "in_proj_weight", 4),
        (CharRNN(), "U", 3),
        (nn.ParameterDict({"pos_embedding": torch.zeros(7, 4)}), "pos_embedding", None),
        (nn.ParameterDict({"cls": torch.zeros(1, 1, 4)}), "cls", None),
        (parametrizations.weight_norm(nn.Linear(4, 3)), "parametrizations.weight.original1", None),
    ],
)
def test_fan_in_counts_the_inputs_of_an_output(module: nn.Module, name: str, fan_in: int | None) -> None:
    """It is the number of terms of an output's sum, and nothing is made up for what is no weight."""
    assert parameter(facts_of(module), name).fan_in == fan_in


@pytest.mark.parametrize("module", [nn.RNN(3, 5), nn.LSTM(3, 5), nn.GRU(3, 5), nn.LSTMCell(3, 5)])
def test_recurrent_matrices_have_their_eigenvalues(module: nn.Module) -> None:
    """Of each gate's own matrix, against numpy; the largest of the gates counts."""
    for name, weight in module.named_parameters():
        found = parameter(facts_of(module), name)
        if not name.startswith("weight_hh"):
            assert found.spectral_radius is None
            continue
        gates = np.split(weight.detach().double().numpy(), len(weight) // 5)
        radius = max(abs(np.linalg.eigvals(gate)).max() for gate in gates)
        assert found.spectral_radius == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize(("module", "name"), [(ElmanCell(), "h2h.weight"), (CharRNN(), "W")])
def test_recurrent_matrices_of_own_cells_are_found(module: nn.Module, name: str) -> None:
    """A user's cell has them, too, and its other square matrices count as no recurrent ones."""
    facts = facts_of(module)
    assert [one.name for one in facts.parameters if one.spectral_radius is not None] == [name]
    radius = abs(np.linalg.eigvals(module.get_parameter(name).detach().double().numpy())).max()
    assert parameter(facts, name).spectral_radius == pytest.approx(radius, rel=1e-5)


def test_a_recurrent_matrix_with_nan_has_no_spectrum() -> None:
    """NaN is no eigenvalue."""
    module = nn.RNN(2, 3)
    nn.init.constant_(module.get_parameter("weight_hh_l0"), math.nan)
    found = parameter(facts_of(module), "weight_hh_l0")
    assert found.spectral_radius is None
    assert math.isnan(found.largest)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_parameters_without_numbers_are_listed_without_them() -> None:
    """Lazy, meta, integer and empty parameters are there; their scales are NaN."""
    module = nn.Module()
    module.lazy = nn.LazyLinear(3)
    module.meta = nn.LSTM(3, 4, device="meta")
    module.whole = nn.Parameter(torch.arange(6).view(2, 3), requires_grad=False)
    module.empty = nn.Parameter(torch.zeros(0, 4))
    module.float8 = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    module.plain = nn.Parameter(torch.full((2,), -2.0))
    facts = facts_of(module, torch.optim.SGD([module.plain], lr=0.1))
    for name in ("lazy.weight", "meta.weight_hh_l0", "whole", "empty"):
        assert math.isnan(parameter(facts, name).std)
        assert math.isnan(parameter(facts, name).largest)
    assert (parameter(facts, "whole").shape, parameter(facts, "whole").dtype) == ((2, 3), "int64")
    assert (parameter(facts, "plain").std, parameter(facts, "plain").largest) == (2.0, 2.0)


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    """Run in a process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@needs_sharding
def test_sharded_parameters_are_measured_by_what_this_process_holds() -> None:
    """A distributed tensor is taken as its local part, and its recurrent matrix is left out."""
    module = nn.RNN(4, 4)
    mesh = init_device_mesh("cpu", (1,))
    whole = module.get_parameter("weight_hh_l0").detach().clone()
    module.weight_hh_l0 = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
    found = parameter(facts_of(module), "weight_hh_l0")
    assert found.std == pytest.approx(float(whole.double().square().mean().sqrt()), rel=1e-6)
    assert (found.shape, found.spectral_radius) == ((4, 4), None)


def test_wrappers_do_not_show_in_names() -> None:
    """A compiled module has the names that it had before, and every name is there once."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    wrapped = nn.Sequential(cast(nn.Module, torch.compile(module, backend="eager")))
    facts = facts_of(wrapped)
    assert [one.name for one in facts.modules] == ["", "0", "0.0", "0.1"]
    assert [one.kind for one in facts.modules] == ["Sequential", "Sequential", "Linear", "ReLU"]
    assert [(one.name, one.module) for one in facts.parameters] == [("0.0.weight", "0.0"), ("0.0.bias", "0.0")]


def test_the_order_of_execution_is_that_of_modules_and_parameters() -> None:
    """Executed modules come first in their order, the others follow."""
    module = nn.Module()
    module.last, module.first, module.unused = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    facts = facts_of(module)
    assert not facts.order_is_executed
    ordered = in_order(facts, ["first", "last", "first"])
    assert [one.name for one in ordered.modules] == ["first", "last", "", "unused"]
    assert [one.name for one in ordered.parameters][:3] == ["first.weight", "first.bias", "last.weight"]
    assert ordered.order_is_executed


def test_parameters_that_only_an_optimizer_holds_are_listed() -> None:
    """They have the name that findings use for them."""
    module, stray = nn.Linear(2, 2), nn.Parameter(torch.full((2, 2), 3.0))
    facts = facts_of(module, torch.optim.SGD(module.parameters(), lr=1.0), torch.optim.SGD([stray], lr=1.0))
    found = parameter(facts, "group0.parameter0")
    assert (found.std, found.optimizer, found.module) == (3.0, 1, "")


def test_settings_of_the_training_loop_are_taken_over() -> None:
    """They are fields of the record; versions are added to those that are found."""
    facts = facts_of(nn.Linear(2, 2), precision="16-mixed", accumulate=4, versions={"lightning": "9.9"})
    assert (facts.precision, facts.accumulate, facts.versions["lightning"]) == ("16-mixed", 4, "9.9")
    assert facts.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    with pytest.raises(TypeError, match="colour"):
        facts_of(nn.Linear(2, 2), colour="blue")


def test_collecting_changes_nothing() -> None:
    """Weights, optimizer state, attributes and random numbers stay as they are, and the facts are plain values."""
    module = nn.Sequential(
        nn.LSTM(3, 4), nn.BatchNorm1d(4), ElmanCell(), parametrizations.spectral_norm(nn.Linear(4, 4))
    )
    optimizer = torch.optim.Adam(module.parameters())
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    attributes = {name: set(vars(one)) for name, one in module.named_modules()}
    random = torch.get_rng_state()
    facts = facts_of(module, optimizer)
    torch.testing.assert_close((module.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert {name: set(vars(one)) for name, one in module.named_modules()} == attributes
    assert torch.equal(torch.get_rng_state(), random)
    assert pickle.loads(pickle.dumps(asdict(facts)))["modules"] == asdict(facts)["modules"]


def test_weights_in_half_precision_that_an_update_has_not_moved_are_unchanged() -> None:
    """An update of 0.001 is lost next to one in bfloat16, and moves smaller weights and those in float32."""
    net = nn.ParameterDict({name: torch.full((8,), size) for name, size in (("one", 1.0), ("small", 0.01))})
    net = net.to(torch.bfloat16)
    net["wide"] = torch.ones(8)
    facts = collect_run_facts(net, [])
    assert unchanged_weights(net, facts, {one.name for one in facts.parameters if one.dtype == "bfloat16"}) == (
        "one",
        "small",
    )
    with torch.no_grad():
        for weight in net.values():
            weight -= 0.001
    assert unchanged_weights(net, facts, {one.name for one in facts.parameters if one.dtype == "bfloat16"}) == ("one",)
