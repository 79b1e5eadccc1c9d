"""The autograd graph of a loss shows what made it non-finite; nothing is reported if autograd saves too little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_gradexplode.diagnose.faults import fault_of
from lightning_gradexplode.diagnose.graph import facts_of_loss, fault_in_graph
from lightning_gradexplode.diagnose.graph.saved_tensor_hooks import ARE_SHOWN
from lightning_gradexplode.records import Replay

NAN = float("nan")
ROWS = 6


@pytest.fixture
def net() -> nn.Sequential:
    """Return a small network with weights that are known."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def inputs(**elements: float) -> Tensor:
    """Return inputs, with elements of other values, by their row: ``row_2=nan``."""
    values = torch.linspace(-1, 1, 4 * ROWS).reshape(ROWS, 4)
    for name, value in elements.items():
        values[int(name.removeprefix("row_")), 1] = value
    return values


def replay(loss: Tensor, module: nn.Module) -> Replay:
    """Return what a graph names."""
    found = fault_in_graph(loss, module)
    assert found is not None
    assert found.replay is not None
    return found.replay


DIVIDED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, ...]]] = {
    "nothing": (lambda out: functional.mse_loss(out, torch.ones_like(out)), ()),
    "a number": (lambda out: functional.mse_loss(out, torch.ones_like(out)) / 16, (16.0,)),
    "a factor": (lambda out: 0.25 * out.square().mean(), (4.0,)),
    "rows": (lambda out: out.square().sum() / len(out), (float(ROWS),)),
    "elements": (lambda out: (out / 3).square().mean(), ()),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_what_a_loss_is_divided_by_is_read_from_its_graph(net: nn.Sequential, name: str) -> None:
    """Micro-batches whose losses nothing divides add up to a sum; outputs may be divided as they like."""
    compute, expected = DIVIDED[name]
    assert facts_of_loss(compute(net(inputs())), net).divisors == expected


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda out: out.square().sum(), ROWS),
        (lambda out: out.square().sum() / 1, ROWS),
        (lambda out: out.square().sum() / 16, None),
        (lambda out: out.square().sum(1).mean(), None),
        (lambda out: out.square().mean(), None),
    ],
    ids=["sum", "of one micro-batch", "divided", "over columns", "mean"],
)
def test_the_elements_that_a_loss_adds_up_are_counted(
    net: nn.Sequential, compute: Callable[[Tensor], Tensor], expected: int | None
) -> None:
    """Unless it is divided by something else than one, as Lightning divides by the number of micro-batches."""
    assert facts_of_loss(compute(net(inputs())), net).summed == expected


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda out: (out - 1e7 * torch.ones(ROWS, 1)).square().mean(), True),
        (lambda out: (1e7 * torch.ones(ROWS) - out.squeeze(1)).abs().mean(), True),
        (lambda out: (out / 1e-7 - torch.ones(ROWS, 1)).square().mean(), False),
        (lambda out: (out - 2 * out).square().mean(), False),
        (lambda out: (out - 1e7 * torch.ones(ROWS, 1)).exp().mean(), False),
    ],
    ids=["squared", "absolute", "divided outputs", "two outputs", "exponential"],
)
def test_a_loss_of_the_difference_of_a_layer_and_data_is_recognized(
    net: nn.Sequential, compute: Callable[[Tensor], Tensor], expected: bool
) -> None:
    """Nothing but the data can make it huge while the result of the layer is not."""
    assert facts_of_loss(compute(net(inputs())), net).compares_layer is expected


@pytest.mark.parametrize("loss", [functional.mse_loss, functional.smooth_l1_loss, functional.huber_loss])
def test_targets_may_be_the_first_argument_of_a_symmetric_loss(
    net: nn.Sequential, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """As in ``mse_loss(target, output)``: the argument without a gradient is the target."""
    out, targets = net(inputs()), torch.linspace(5, 6, ROWS)[:, None]
    usual, swapped = facts_of_loss(loss(out, targets), net), facts_of_loss(loss(targets, out), net)
    assert [one for one in swapped.fields if one.name.startswith("target of ")] == [
        one for one in usual.fields if one.name.startswith("target of ")
    ]
    assert swapped.losses[0].inputs == usual.losses[0].inputs
    assert swapped.losses[0].inputs[1].greatest == 6


def test_a_cross_entropy_has_its_labels_and_its_value_within_a_sum() -> None:
    """Labels have no gradient, and autograd saves no result that is only added to another."""
    layer, labels = nn.Linear(4, 3), torch.arange(ROWS) % 3
    loss = functional.cross_entropy(layer(inputs()), labels)
    (found,) = facts_of_loss(loss + layer.weight.abs().sum(), layer).losses
    assert found.name == "nll_loss"
    assert [one.shape for one in found.inputs] == [(ROWS, 3), (ROWS,)]
    assert (found.inputs[1].least, found.inputs[1].greatest) == (0, 2)
    assert found.value == pytest.approx(float(loss.detach()))


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda out: torch.exp(1e4 * out.abs() + 1e3).mean(),
    "log": lambda out: -(out - 5).log().mean(),
    "sqrt": lambda out: (-out.abs()).sqrt().sum(),
    "pow": lambda out: (out - 5).pow(1.5).mean(),
    "div": lambda out: (out / torch.zeros(ROWS, 1)).mean(),
    "mean": lambda out: out[torch.zeros(ROWS, dtype=torch.bool)].mean(),
    "std": lambda out: out[:1].std(),
    "nll_loss": lambda out: functional.cross_entropy(torch.cat([out, -out], 1), torch.full((ROWS,), -100)),
    "ctc_loss": lambda out: functional.ctc_loss(
        out.expand(ROWS, 3)[:, None].log_softmax(2), torch.ones(1, 9).long(), torch.tensor([ROWS]), torch.tensor([9])
    ),
    "softmax": lambda out: (
        out.expand(ROWS, 3).masked_fill(torch.arange(ROWS)[:, None] == 2, -torch.inf).softmax(1)[:, 0].sum()
    ),
    "reciprocal": lambda out: (out.detach() * (out.relu() * 0 + 0.0).reciprocal()).mean(),
    "rsqrt": lambda out: (out.half() * ((1e-6 * out.half()).square() + 1e-8).rsqrt()).mean(),
}


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operation_that_made_the_value_is_named(net: nn.Sequential, name: str) -> None:
    """Its arguments were finite, and what follows only carries the value on."""
    found = replay(OPERATIONS[name](net(inputs())), net)
    assert found.first is not None
    assert (found.first.name, found.source) == (name, None)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operation_is_named_in_a_part_of_a_loss(net: nn.Sequential, name: str) -> None:
    """Such as one that is divided by the number of micro-batches, or added to another one."""
    out = net(inputs())
    found = replay((OPERATIONS[name](out) + 0.1 * functional.mse_loss(out, torch.ones_like(out))) / 4, net)
    assert found.first is not None
    assert (found.first.name, found.source) == (name, None)


def test_a_division_by_zero_is_named_whatever_it_divides(net: nn.Sequential) -> None:
    """Of a sum over a mask autograd keeps the mask alone; its number of elements is the divisor, and zero in a row."""
    mask = torch.eye(3)[torch.zeros(ROWS, dtype=torch.long)] * torch.arange(ROWS)[:, None].clamp(max=1)
    for divisor in (mask.sum(1), mask.sum(1) * -1):
        found = replay(((net(inputs()).tanh() * mask).sum(1) / divisor).mean(), net)
        assert found.first is not None
        assert (found.first.name, found.first.inputs[-1].shape, found.source) == ("div", (ROWS,), None)
    fine = fault_in_graph(((net(inputs()) * mask).sum(1) / (mask.sum(1) + 1)).mean() * NAN, net)
    assert fine is not None
    assert fine.replay is None or fine.replay.first is None or fine.replay.first.name != "div"


def test_data_that_were_divided_as_the_network_divides_are_not_at_fault(net: nn.Sequential) -> None:
    """Means of neighbours are divided by their number in each layer, of which the graph holds all but the first."""
    links = torch.ones(ROWS, ROWS)
    links[[1, 4]] = 0
    count = links.sum(1, keepdim=True)
    found = replay((links @ net((links @ inputs()) / count) / count).mean(), net)
    assert found.first is not None
    assert (found.first.name, found.first.rows, found.source) == ("div", (1, 4), None)
    assert "divided by 0" in fault_of(found.first).sentence
    missing = replay((links @ net(inputs(row_2=NAN)) / count).mean(), net)
    assert (missing.first, missing.source_rows) == (None, (2,))


def test_rows_and_arguments_are_those_of_the_operation(net: nn.Sequential) -> None:
    """The logarithm of one row is not finite, and its argument there is known though autograd keeps none of the sum."""
    level = net(inputs())[3].item()
    found = replay((net(inputs()) - level).log().mean(), net)
    below = [row for row in range(ROWS) if net(inputs())[row].item() <= level]
    assert found.first is not None
    assert list(found.first.rows) == below
    assert found.first.inputs[0].at_fault == pytest.approx(net(inputs())[below[0]].item() - level)


def test_a_product_that_overflows_in_half_precision_only_is_finite_in_float32(net: nn.Sequential) -> None:
    """It is computed again in float32 from the arguments that autograd keeps; a product of float32 numbers is not."""
    with torch.autocast("cpu", torch.float16):
        out = net(inputs())
        found = replay(((9e3 * out) @ (9e3 * out).T).softmax(1)[:, 0].sum(), net)
    assert found.first is not None
    assert (found.first.name, found.first.finite_in_float32) == ("mm", True)
    wide = replay(((1e30 * net(inputs())) @ (1e30 * net(inputs())).T).mean(), net)
    assert wide.first is not None
    assert wide.first.finite_in_float32 is None


def test_data_that_are_not_finite_are_named_with_their_rows(net: nn.Sequential) -> None:
    """NaN in an input is the first layer's, NaN in a target the loss's; by hand the difference shows it."""
    found = replay(functional.mse_loss(net(inputs(row_2=NAN)), torch.zeros(ROWS, 1)), net)
    assert (found.source, found.source_name, found.source_rows) == ("batch", "input of layer 0", (2,))
    target = torch.zeros(ROWS, 1)
    target[4] = NAN
    found = replay(functional.mse_loss(net(inputs()), target), net)
    assert (found.source, found.source_name, found.source_rows) == ("batch", "target of mse_loss", (4,))
    found = replay((net(inputs()) - target).square().mean(), net)
    assert (found.source, found.source_name, found.source_rows) == ("batch", "target of sub", (4,))


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_numbers_that_are_not_finite_are_told_from_data(net: nn.Sequential, value: float) -> None:
    """A number that scales all elements is a factor, also a number of Python; one beside a single one may be data."""
    for factor in (value, torch.tensor(value)):
        each = functional.mse_loss(net(inputs()), torch.zeros(ROWS, 1), reduction="none")
        for loss, name in (((each * factor).mean(), "factor in mul"), (each.mean() * factor, "constant in mul")):
            found = replay(loss, net)
            assert (found.first, found.source, found.source_name) == (None, "batch", name)


@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_of_sequences_are_the_samples(batch_first: bool) -> None:
    """A recurrent layer holds the time steps of all samples together, in either layout of its input."""
    net, taken = nn.Sequential(nn.LSTM(3, 8, batch_first=batch_first)), torch.randn(16, 30, 3)
    taken[5, 2, 1] = torch.nan
    outputs, _ = net(taken if batch_first else taken.transpose(0, 1))
    found = fault_in_graph(outputs.square().mean(), net)
    assert found is not None
    assert found.replay is not None
    assert (found.replay.source, found.replay.source_name, found.replay.source_rows) == (
        "batch",
        "input of layer 0",
        (5,),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_input_its_name(net: nn.Sequential, dtype: torch.dtype) -> None:
    """It converts input and weight before the product."""
    with torch.autocast("cpu", dtype):
        loss = functional.mse_loss(net(inputs(row_2=NAN)), torch.zeros(ROWS, 1))
    found = replay(loss, net)
    assert (found.source_name, found.source_rows) == ("input of layer 0", (2,))


def test_a_parameter_that_was_not_finite_is_named(net: nn.Sequential) -> None:
    """No operation made its NaN."""
    net.get_parameter("2.weight").data[0, 3] = NAN
    found = replay(net(inputs()).square().mean(), net)
    assert (found.source, found.source_name, found.first) == ("parameter", "2.weight", None)


def test_a_sum_with_a_value_that_is_not_kept_is_not_named(net: nn.Sequential) -> None:
    """A slice is not computed again; the mean over none of it is at fault, and not the sum that takes it."""
    found = replay(net(inputs()).square().mean() + net(inputs())[:0].mean(), net)
    assert found.first is not None
    assert (found.first.name, found.first.inputs[0].shape) == ("mean", (0, 1))
    unclear = fault_in_graph(net(inputs()).mean() + NAN, net)
    assert unclear is not None
    assert unclear.replay is None or unclear.replay.first is None


def test_a_mask_of_infinities_is_no_fault(net: nn.Sequential) -> None:
    """They were put in place for the softmax; the logarithm of its zeros is what fails."""
    masked = net(inputs()).expand(ROWS, 3).masked_fill(torch.tensor([True, False, False]), -torch.inf)
    found = replay(-masked.softmax(1).log().sum(), net)
    assert found.first is not None
    assert (found.first.name, found.first.result) == ("log", "-inf")


@pytest.mark.parametrize("is_masked", [True, False])
def test_a_mask_that_is_added_to_finite_scores_leaves_the_softmax_at_fault(is_masked: bool) -> None:
    """Attention with a row that is masked in each place is named, and data that hold NaN are named before it."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2)
    mask = torch.zeros(1, ROWS, dtype=torch.bool)
    values = inputs(**({} if is_masked else {"row_2": NAN}))[:, None]
    made, _ = attention(values, values, values, key_padding_mask=mask | is_masked)
    found = replay(made.mean(), attention)
    assert (found.first is not None and found.first.name == "softmax") == is_masked
    assert (found.source == "batch") != is_masked


def test_scores_that_are_not_finite_are_no_matter_of_the_mask(net: nn.Sequential) -> None:
    """Where the scores themselves come of what is not known, the softmax is not named."""
    scores = (net(inputs()) + torch.full((ROWS, 1), NAN)).expand(ROWS, 3)
    found = fault_in_graph((scores + torch.zeros(3)).softmax(1)[:, 0].sum(), net)
    assert found is None or found.replay is None or found.replay.first is None


class Doubled(torch.autograd.Function):
    """An operation of the user's own, of a matrix and of data."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        """Return twice the product."""
        ctx.save_for_backward(weights, values)
        return 2 * values @ weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the matrix."""
        return 2 * ctx.saved_tensors[1].T @ gradients[0], None


@pytest.mark.parametrize("is_compiled", [False, True], ids=["custom", "compiled"])
def test_an_operation_that_hides_its_data_is_not_named(net: nn.Sequential, is_compiled: bool) -> None:
    """Which of the numbers that it took was not finite is not known; it may have been in the data."""
    lost = inputs(row_2=NAN)

    def custom(values: Tensor) -> Tensor:
        product: Tensor = Doubled.apply(net[0].weight.T, values)  # type: ignore[no-untyped-call]
        return product

    operation = torch.compile(net, backend="aot_eager") if is_compiled else custom
    found = fault_in_graph(operation(lost).mean(), net)
    assert found is None or found.replay is None


def test_values_behind_hooks_are_not_computed_again(net: nn.Sequential) -> None:
    """A checkpoint would run the user's forward pass; without its values nothing is named."""
    calls = []

    def block(values: Tensor) -> Tensor:
        calls.append(1)
        lost: Tensor = (net(values) - 5).log()
        return lost

    loss = checkpoint(block, inputs().requires_grad_(), use_reentrant=False).mean()
    found = fault_in_graph(loss, net, may_have_hooks=not ARE_SHOWN)
    assert found is not None
    assert (found.replay, len(calls)) == (None, 1)


def test_reading_a_graph_changes_nothing(net: nn.Sequential) -> None:
    """The gradients are those without reading, and so is the state of the random numbers."""
    expected = torch.autograd.grad(net(inputs()).exp().log().mean(), [*net.parameters()])
    before = torch.get_rng_state()
    loss = net(inputs()).exp().log().mean()
    fault_in_graph(loss, net)
    loss.backward()
    for one, other in zip(net.parameters(), expected, strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_data_of_a_finite_loss_are_described(net: nn.Sequential) -> None:
    """Inputs and targets have their range, under the name of what takes them."""
    facts = facts_of_loss(functional.mse_loss(net(inputs()), torch.ones(ROWS, 1)), net)
    fields = {one.name: one for one in facts.fields}
    assert facts.operation_names == ("t", "addmm", "tanh", "mse_loss")
    assert fields.keys() == {"input of layer 0", "target of mse_loss"}
    assert (fields["input of layer 0"].least, fields["input of layer 0"].greatest) == (-1.0, 1.0)
    assert fields["target of mse_loss"].shape == (ROWS, 1)


@pytest.mark.parametrize("row_2", [0.0, NAN])
def test_the_input_of_a_model_of_one_layer_is_called_that_of_the_model(row_2: float) -> None:
    """The layer has no name, and that of its parameter does not say what takes the input."""
    layer = nn.Linear(4, 1)
    loss = functional.mse_loss(layer(inputs(row_2=row_2)), torch.ones(ROWS, 1))
    assert {one.name for one in facts_of_loss(loss, layer).fields} == {"input of the model", "target of mse_loss"}


def test_what_logarithms_are_multiplied_by_is_a_target(net: nn.Sequential) -> None:
    """As in a cross-entropy that is written by hand; a factor of anything else is none."""
    label = torch.arange(ROWS, dtype=torch.float32)[:, None]
    chance = net(inputs()).sigmoid()
    found = facts_of_loss(-(label * chance.log() + (1 - label) * (1 - chance).log()).mean(), net)
    assert [(one.name, one.greatest) for one in found.fields] == [
        ("input of layer 0", 1.0),
        ("target of log", ROWS - 1.0),
    ]
    assert len(facts_of_loss((label * chance).mean(), net).fields) == 1


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_weights_of_classes_that_are_not_finite_are_at_fault(net: nn.Sequential, value: float) -> None:
    """One over the number of samples of a class that has none; not the labels, which are as they should be."""
    out, label = net(inputs()), torch.arange(ROWS) % 2
    weight = torch.tensor([1.0, value])
    for loss in (
        functional.cross_entropy(torch.cat([out, -out], 1), label, weight),
        functional.binary_cross_entropy_with_logits(out, label[:, None].float(), pos_weight=weight[1:]),
    ):
        found = replay(loss, net)
        assert found.first is not None
        assert fault_of(found.first).kind == "undefined"
        assert "which no operation of the step has made" in fault_of(found.first).sentence


def test_powers_that_have_a_slope_are_left_out(net: nn.Sequential) -> None:
    """A square has one at zero, and a root none."""
    for exponent, is_listed in ((2, False), (1.5, False), (0.5, True), (-1, True)):
        names = facts_of_loss(net(inputs()).abs().pow(exponent).mean(), net).operation_names
        assert ("pow" in names) == is_listed


def test_parameters_without_memory_are_not_read(net: nn.Sequential) -> None:
    """Whole parameters of which FSDP has freed the memory after the forward pass are left out, not read."""
    loss = (net(inputs()) - 5).log().mean()
    for parameter in net.parameters():
        parameter.untyped_storage().resize_(0)
    found = replay(loss, net)
    assert found.first is not None
    assert found.first.name == "log"


def test_what_the_derivative_of_a_derivative_has_saved_is_no_data(net: nn.Sequential) -> None:
    """An inner loop of gradient descent diverges; the errors in its graph are neither targets nor inputs."""
    weights: dict[str, Tensor] = dict(net.named_parameters())
    for _ in range(8):
        outputs = torch.func.functional_call(net, weights, (inputs(),))
        slopes = torch.autograd.grad(
            functional.mse_loss(outputs, torch.ones(ROWS, 1)), [*weights.values()], create_graph=True
        )
        weights = {name: one - 1e6 * slope for (name, one), slope in zip(weights.items(), slopes, strict=True)}
    loss = functional.mse_loss(torch.func.functional_call(net, weights, (inputs(),)), torch.ones(ROWS, 1))
    assert not torch.isfinite(loss)
    fault = fault_in_graph(loss, net)
    assert fault is not None
    assert fault.replay is None or fault.replay.source is None
    assert all(one.least is None or abs(one.least) < 10 for one in fault.fields)


def test_an_exponential_that_is_infinite_though_the_loss_is_finite() -> None:
    """A softmax by hand divides by infinity: the loss is finite, and its slope is not."""
    module = nn.Linear(1, 2, bias=False)
    module.weight.data = torch.tensor([[1.0], [100.0]])
    scores = module(torch.ones(4, 1))
    chances = scores.exp() / scores.exp().sum(1, keepdim=True)
    found = facts_of_loss((chances[:, 0] + 1e-9).log().mean(), module).overflow
    assert found is not None
    assert (found.name, found.result) == ("exp", "inf")
    assert facts_of_loss(scores.logsumexp(1).mean(), module).overflow is None
