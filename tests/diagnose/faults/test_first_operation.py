"""What an operation of a replay has done wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_gradexplode.diagnose.faults import fault_of
from lightning_gradexplode.diagnose.faults.operations import base_name, location_of
from lightning_gradexplode.records import Operand, Operation
from tests.diagnose.evidence import operand, operation

ZERO = operand(0.0, least=0.0, greatest=0.0, shape=())

FAULTS: dict[str, tuple[str, str, tuple[Any, ...], dict[str, Any]]] = {
    "log of zero": ("undefined", "log", (operand(0.0, least=0.0),), {"result": "-inf"}),
    "log of a negative number": ("undefined", "log", (operand(-0.2),), {}),
    "root of a negative number": ("undefined", "sqrt", (operand(-3.0),), {}),
    "one over zero": ("undefined", "reciprocal", (operand(0.0),), {"result": "inf"}),
    "one over what is not saved": ("undefined", "reciprocal", (Operand((4,), "float32"),), {"result": "inf"}),
    "one over a number in float16": ("overflow", "reciprocal", (Operand((4,), "float16"),), {"result": "inf"}),
    "a vector over its norm": (
        "undefined",
        "div",
        (operand(0.0), operand(0.0, least=0.0, shape=(16, 1))),
        {"code": "z = z / z.norm(dim=1, keepdim=True)"},
    ),
    "a sum over a count": ("empty", "div", (ZERO, ZERO), {"code": "loss = e.sum() / mask.sum()"}),
    "a sum over a whole number": ("empty", "div", (ZERO, operand(0.0, 0.0, 0.0, shape=(), dtype="int64")), {}),
    "a sum over a number without a gradient": ("empty", "div", (ZERO, operand(0.0, 0.0, 0.0, is_constant=True)), {}),
    "a product over an energy without a gradient": (
        "undefined",
        "div",
        (operand(0.0), operand(0.0, least=0.0, greatest=34.2, shape=(16, 1), is_constant=True)),
        {},
    ),
    "a sum over a sum of squares": (
        "undefined",
        "div",
        (ZERO, ZERO),
        {"code": "share = (found * voice).sum() / voice.square().sum()"},
    ),
    "the mean of nothing": ("empty", "mean", (Operand((0, 4), "float32"),), {}),
    "the deviation of one": ("empty", "std", (operand(None, shape=(1,)),), {}),
    "no label left": ("empty", "nll_loss_forward", (operand(None), operand(None, dtype="int64")), {}),
    "a fully masked row": ("undefined", "_softmax", (operand(None, inf_count=4),), {}),
    "a zero to a negative power": ("undefined", "pow", (operand(0.0, least=0.0),), {"result": "inf"}),
    "exp of 100": ("overflow", "exp", (operand(100.0, greatest=100.0),), {"result": "inf"}),
    "the square of 1e20": ("overflow", "pow", (operand(1e20, greatest=1e20),), {"result": "inf"}),
    "a large matrix product": ("overflow", "addmm", (operand(None, greatest=1e25),), {"result": "inf"}),
    "a factor that is NaN": ("undefined", "mul", (operand(0.5),), {"scalars": (math.nan,)}),
    "an infinite factor": ("undefined", "mul", (operand(0.5),), {"scalars": (math.inf,), "result": "inf"}),
    "a filled-in number": ("undefined", "masked_fill", (operand(0.5),), {"scalars": (-math.inf,), "result": "-inf"}),
    "a filled-in tensor": ("undefined", "fill_", (operand(0.5), operand(inf_count=1)), {"result": "-inf"}),
    "a conversion": ("overflow", "copy_", (operand(1e5, greatest=1e5),), {"result": "inf"}),
    "a tensor of NaN": ("undefined", "mul", (operand(0.5), operand(None, nan_count=1)), {}),
    "the largest element as a norm": (
        "overflow",
        "linalg_vector_norm",
        (operand(1e30, greatest=1e30),),
        {"scalars": (math.inf,), "result": "inf"},
    ),
    "a CTC loss": ("alignment", "_ctc_loss", (operand(None),), {"result": "inf"}),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_kind_of_a_fault_follows_from_the_operation_and_what_it_took(case: str) -> None:
    """Domains, empty reductions and overflows are distinguished by names, operands and the line."""
    kind, name, inputs, facts = FAULTS[case]
    found = fault_of(operation(name, inputs=inputs, **{"result": "nan", **facts}))
    assert found.kind == kind
    assert found.sentence.endswith(".")
    assert found.remedy


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_log_softmax", "log_softmax"),
        ("aten.div.Tensor", "div"),
        ("nll_loss_forward", "nll_loss"),
        ("nll_loss2d_forward", "nll_loss"),
        ("SqrtBackward0", "sqrt"),
        ("LinalgVectorNormBackward0", "linalg_vector_norm"),
    ],
)
def test_operations_have_one_plain_name(name: str, plain: str) -> None:
    """Overloads, private names and nodes of the backward pass are called as a user calls the function."""
    assert base_name(name) == plain


def test_a_slope_is_named_by_its_forward_operation() -> None:
    """The backward pass divides by zero where a root of zero was taken: the root is named."""
    found = operation("div", "inf", "backward", node="SqrtBackward0", code="d = s.sqrt()")
    assert "`sqrt`" in fault_of(found).sentence
    assert location_of(found) == "`sqrt` (backward pass) at losses.py:12 in module `head`"


def test_inputs_of_a_part_of_the_backward_pass_are_not_called_those_of_the_function() -> None:
    """The slope of ``acos`` is infinite at 1, where its backward pass takes the root of zero."""
    found = operation("rsqrt", "inf", "backward", [operand(0.0)], node="AcosBackward0")
    assert "slope of `acos`" in fault_of(found).sentence
    assert "(input of `rsqrt` in its backward pass: 0)" in fault_of(found).sentence


def test_infinity_that_was_filled_in_is_to_be_filled_in_later() -> None:
    """The divisor is at no fault, which the same operation has where it is zero."""
    found = fault_of(operation("div", "-inf", "backward", [operand(-math.inf), operand(0.2)], node="DivBackward0"))
    assert found.kind == "undefined"
    assert "after this operation" in found.remedy


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (operation("acosh", "inf", "backward", node="AcoshBackward0"), "torch.acosh(x.clamp(min=1 + 1e-6))"),
        (operation("atanh", "inf", inputs=[operand(1.0)]), "torch.atanh(x.clamp(-1 + 1e-6, 1 - 1e-6))"),
        (operation("mul", "nan", "backward", node="LinalgEighBackward0"), "torch.diag(1e-4 * torch.arange(n))"),
        (operation("linalg_cholesky_ex", "nan"), "1e-4 * scale * torch.eye(n"),
        (operation("div", "inf", inputs=[operand(1.0), operand(0.0, -2.0, 3.0)]), "x * y / (y.square() + 1e-6)"),
        (operation("div", "inf", inputs=[operand(1.0), operand(0.0, -1e-9, 3.0)]), "y.clamp(min=1e-6)"),
        (operation("acos", "nan", inputs=[operand(1.0, dtype="bfloat16")]), "clamp(-1 + 1e-2, 1 - 1e-2)"),
        (operation("sqrt", "nan", inputs=[operand(-1.0, dtype="torch.float16")]), "clamp(min=1e-4)"),
        (operation("xlogy", "-inf", code="loss = -policy.log_prob(action).mean()"), "value.clamp(1e-6, 1 - 1e-6)"),
        (operation("log", "nan", code="loss = -Normal(m, s).log_prob(y).mean()"), "F.softplus(scale)"),
    ],
)
def test_the_remedy_is_code_for_the_operation_and_its_line(found: Operation, code: str) -> None:
    """The inverse cosine's domain is not that of its hyperbolic relative, and a distribution has parameters."""
    assert code in fault_of(found).remedy


def test_an_infinity_that_where_hides_is_distinguished_from_an_overflow() -> None:
    """The branch that `torch.where` discards has no slope; a sigmoid written by hand overflows."""
    backward = operation("mul", "nan", "backward")
    taken = [operand(98.0, greatest=98.0)]
    guarded = operation("exp", "inf", inputs=taken, code="torch.where(x > 0, x, torch.exp(x))")
    by_hand = operation("exp", "inf", inputs=taken, code="y = 1 / (1 + torch.exp(-x))")
    assert fault_of(backward, guarded).kind == "undefined"
    assert fault_of(backward, by_hand).kind == "overflow"


@pytest.mark.parametrize(("needed", "bound"), [(1.0, 5), (2e4, 13), (1e30, 20)])
def test_the_bound_of_an_exponential_leaves_room_for_the_largest_target(needed: float, bound: int) -> None:
    """Ten times that target is within the bound, up to a bound whose exponential is 5e8."""
    found = operation("exp", "inf", inputs=[operand(98.0, greatest=98.0)], code="rate = torch.exp(x)")
    assert f"torch.exp({bound} * torch.tanh(x / {bound}))" in fault_of(found, needed=needed).remedy


@pytest.mark.parametrize(
    ("name", "facts", "names", "words"),
    [
        ("div", {"inputs": (operand(-1.2),), "scalars": (0.0,), "result": "-inf"}, (), "max(divisor"),
        (
            "hypot",
            {"inputs": (operand(0.0), operand(0.0)), "node": "HypotBackward0", "phase": "backward"},
            (),
            "sqrt()",
        ),
        (
            "mm",
            {"inputs": (operand(None, greatest=2e38),), "result": "inf", "code": None},
            ("exp", "mm", "log"),
            "logsumexp",
        ),
        ("mm", {"inputs": (operand(None, greatest=2e38),), "result": "inf"}, ("addmm", "mm", "log"), "scale near one"),
        (
            "mm",
            {"inputs": (operand(None, greatest=2e38),), "result": "inf", "code": "x = x @ self.steps.exp()"},
            (),
            "logsumexp",
        ),
    ],
)
def test_the_remedy_fits_the_operation_and_its_line(
    name: str, facts: dict[str, Any], names: tuple[str, ...], words: str
) -> None:
    """A divisor that is a number, a hypotenuse of zero and a product of exponentials each have their own."""
    found = fault_of(operation(name, **{"result": "nan", **facts}), names=names)
    assert words in found.remedy
