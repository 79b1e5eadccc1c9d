"""Small training steps that fail, each with the line, the operation and the rows at fault.

The line at fault ends in ``# fault``. Each step is a function of a module, a batch and a batch index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

NAN = float("nan")
INF = float("inf")


@dataclass(frozen=True)
class FailingStep:
    """A step whose fault is known.

    Args:
        step: The step.
        module: Builds the module.
        batch: Builds the batch.
        failed: What is not finite.
        operations: Names of the operation at fault; several where torch's versions differ.
        phase: Where it runs.
        result: What it makes.
        rows: The rows of the batch at fault, None where they are not checked.
        hidden: Name of the operation of the forward pass whose infinity was hidden.
        where: Name of the module.
        context: The context that the step runs in.
    """

    step: Callable[[Any, Any, int], Any]
    module: Callable[[], nn.Module]
    batch: Callable[[], Any]
    failed: Literal["loss", "gradient"]
    operations: tuple[str, ...]
    phase: str = "forward"
    result: str = "nan"
    rows: tuple[int, ...] | None = None
    hidden: str | None = None
    where: str | None = None
    context: Callable[[], Any] | None = None


STEPS: dict[str, FailingStep] = {}


def failing(
    failed: Literal["loss", "gradient"],
    *operations: str,
    module: Callable[[], nn.Module] = lambda: nn.Linear(4, 3),
    batch: Callable[[], Any] = lambda: torch.randn(6, 4),
    **expected: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a step with what is to be found."""

    def register(step: Callable[..., Any]) -> Callable[..., Any]:
        STEPS[step.__name__] = FailingStep(step, module, batch, failed, operations, **expected)
        return step

    return register


def at_row(row: int, value: float, count: int = 6) -> Tensor:
    """Return a column of ones with another value in one row."""
    column = torch.ones(count, 1)
    column[row] = value
    return column


@failing("loss", "log", rows=(2,))
def log_of_a_negative_number(model: Any, x: Tensor, _: int) -> Any:
    return torch.log(model(x).abs() * at_row(2, -1.0)).mean()  # fault


@failing("loss", "sqrt", rows=(4,))
def root_of_a_negative_number(model: Any, x: Tensor, _: int) -> Any:
    return (model(x).abs() * at_row(4, -1.0)).sqrt().mean()  # fault


@failing("gradient", "div", phase="backward", result="inf", rows=(1,))
def slope_of_the_root_of_zero(model: Any, x: Tensor, _: int) -> Any:
    scaled = model(x).abs() * at_row(1, 0.0)
    return torch.sqrt(scaled).sum()  # fault


@failing("loss", "div", rows=(3,))
def zero_over_zero(model: Any, x: Tensor, _: int) -> Any:
    y = model(x) * at_row(3, 0.0)
    return (y / y.abs().sum(1, keepdim=True)).sum()  # fault


@failing("loss", "acos")
def arc_cosine_outside_of_its_domain(model: Any, x: Tensor, _: int) -> Any:
    cosine = functional.cosine_similarity(model(x), model(x)) + 1e-3
    return cosine.acos().mean()  # fault


@failing("gradient", "rsqrt", phase="backward", result="inf")
def slope_of_the_arc_cosine_at_one(model: Any, x: Tensor, _: int) -> Any:
    ones = torch.ones_like(model(x)) + 0.0 * model(x)
    return ones.acos().sum()  # fault


@failing("gradient", "div", phase="backward", result="inf")
def slope_of_the_logarithm_near_zero(model: Any, x: Tensor, _: int) -> Any:
    y = model(x).abs() * 0.0 + 1e-45
    return (y.log() * 1e3).clamp(min=-1e6).sum()  # fault


@failing("gradient", "pow", phase="backward", result="inf")
def slope_of_a_power_at_zero(model: Any, x: Tensor, _: int) -> Any:
    zero = model(x) * 0.0
    return zero.pow(0.5).sum()  # fault


@failing("loss", "pow", result="inf")
def negative_power_of_zero(model: Any, x: Tensor, _: int) -> Any:
    return ((model(x) * 0.0) ** -1.0).sum()  # fault


@failing("loss", "rsqrt", result="inf", rows=(0,))
def reciprocal_root_of_zero(model: Any, x: Tensor, _: int) -> Any:
    variance = model(x).var(1, keepdim=True) * at_row(0, 0.0)
    return (model(x) * torch.rsqrt(variance)).mean()  # fault


@failing("gradient", "div", "mul", "linalg_vector_norm_backward", phase="backward", result="inf")
def slope_of_a_root_of_a_sum_of_squares(model: Any, x: Tensor, _: int) -> Any:
    difference = model(x) * at_row(5, 0.0)
    return difference.square().sum(1).sqrt().sum()  # fault


@failing("loss", "_softmax", rows=(2,))
def softmax_over_a_masked_row(model: Any, x: Tensor, _: int) -> Any:
    mask = (at_row(2, 0.0) == 0).expand(6, 3)
    return torch.softmax(model(x).masked_fill(mask, -INF), dim=1).square().sum()  # fault


@failing("loss", "_softmax", rows=(2,))
def softmax_over_an_additive_mask(model: Any, x: Tensor, _: int) -> Any:
    mask = torch.zeros(6, 3)
    mask[2] = -INF
    mask[:, 1] = -INF
    return torch.softmax(model(x) + mask, dim=1).square().sum()  # fault


@failing("loss", "mul", rows=None)
def mask_times_minus_infinity(model: Any, x: Tensor, _: int) -> Any:
    padding = at_row(2, 0.0) == 0
    bias = padding * -INF  # fault
    return torch.softmax(model(x) + bias, dim=1).square().sum()


@failing("loss", "mul")
def constant_that_is_not_a_number(model: Any, x: Tensor, _: int) -> Any:
    return (model(x).square() * torch.tensor([1.0, math.nan, 1.0])).sum()  # fault


@failing("loss", "exp", result="inf", rows=(1,))
def exponential_overflow(model: Any, x: Tensor, _: int) -> Any:
    growth = torch.exp(model(x) * 0.0 + 2000.0 * (at_row(1, 1.5) - 1.0))  # fault
    return torch.log(growth.sum(1)).sum()


@failing("gradient", "mul", phase="backward", hidden="exp")
def exponential_hidden_by_where(model: Any, x: Tensor, _: int) -> Any:
    y = model(x) + 1000.0 * (at_row(1, 2.0) - 1.0)
    return torch.where(y > 50, y, torch.exp(y)).sum()  # fault


@failing("gradient", "div", phase="backward", hidden="log")
def logarithm_hidden_by_where(model: Any, x: Tensor, _: int) -> Any:
    share = torch.sigmoid(model(x)) * at_row(3, 0.0)
    return torch.where(share > 0, share.log(), 0.0).sum()  # fault


@failing("gradient", "div", "mul", phase="backward", hidden="sqrt")
def root_hidden_by_an_index(model: Any, x: Tensor, _: int) -> Any:
    y = model(x).square() * at_row(0, -1.0)
    root = torch.sqrt(y)  # fault
    return torch.where(torch.isnan(root), torch.zeros(()), root).sum()


@failing("loss", "mean")
def mean_of_nothing(model: Any, x: Tensor, _: int) -> Any:
    y = model(x)
    return y[y > 1e9].mean()  # fault


@failing("loss", "std", "var")
def deviation_of_one_element(model: Any, x: Tensor, _: int) -> Any:
    return model(x)[:1].std(0).sum()  # fault


@failing("loss", "div")
def average_over_a_count_of_zero(model: Any, x: Tensor, _: int) -> Any:
    chosen = torch.zeros(6)
    per_row = model(x).square().mean(1)
    return (per_row * chosen).sum() / chosen.sum()  # fault


@failing("loss", "nll_loss_forward", batch=lambda: {"x": torch.randn(6, 4), "y": torch.full((6,), -100)})
def cross_entropy_without_labels(model: Any, batch: Any, _: int) -> Any:
    return functional.cross_entropy(model(batch["x"]), batch["y"])  # fault


@failing("loss", "_ctc_loss", result="inf")
def ctc_target_longer_than_its_input(model: Any, x: Tensor, _: int) -> Any:
    logits = model(x).log_softmax(1)[:, None]
    target = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1]])
    return functional.ctc_loss(logits, target, torch.tensor([6]), torch.tensor([8]))  # fault


@failing("loss", "mse_loss", result="inf", batch=lambda: torch.randn(6, 4) * 1e21)
def squares_beyond_the_format(model: Any, x: Tensor, _: int) -> Any:
    return functional.mse_loss(model(x), torch.zeros(6, 3))  # fault


@failing("gradient", "div", "mul", "linalg_solve_triangular", "mm", phase="backward", rows=None)
def slope_of_equal_singular_values(model: Any, x: Tensor, _: int) -> Any:
    square = torch.eye(3) + 0.0 * model(x)[:3]
    left, _values, _right = torch.linalg.svd(square)  # fault
    return left.sum()


@failing("gradient", "sgn", "mul", "div", "_cdist_backward", phase="backward", result="inf")
def slope_of_distance_zero(model: Any, x: Tensor, _: int) -> Any:
    y = model(x)
    squares = (y[:, None] - y[None]).square().sum(-1)
    return squares.sqrt().sum()  # fault


@failing("loss", "cumprod", result="inf")
def running_product_overflow(model: Any, x: Tensor, _: int) -> Any:
    factors = model(x).flatten() * 0.0 + 1e12
    return factors.cumprod(0).mean()  # fault


@failing("loss", "bmm", "mm", result="inf")
def einsum_overflow(model: Any, x: Tensor, _: int) -> Any:
    y = model(x) * 0.0 + 1e25
    return torch.einsum("bi,ci->bc", y, y).mean()  # fault


@failing("loss", "log", rows=(2,), batch=lambda: torch.rand(6, 4) + 0.5)
def gathered_probabilities(model: Any, x: Tensor, _: int) -> Any:
    probabilities = torch.softmax(model(x), 1) * at_row(2, -1.0)
    return probabilities.gather(1, torch.zeros(6, 1, dtype=torch.long)).log().mean()  # fault


class _Log(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.abs()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (value,) = ctx.saved_tensors
        return gradient * 0.0 / (value * 0.0)  # fault


@failing("gradient", "div", phase="backward")
def own_backward_pass(model: Any, x: Tensor, _: int) -> Any:
    return _Log.apply(model(x)).sum()  # type: ignore[no-untyped-call]


@failing(
    "loss",
    "log",
    where="layers.1",
    module=lambda: nn.ModuleDict({"layers": nn.Sequential(nn.Linear(4, 3), Logarithm())}),
)
def logarithm_inside_a_module(model: Any, x: Tensor, _: int) -> Any:
    return model["layers"](x).mean()


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-x.abs())  # fault


@failing("gradient", "div", phase="backward", result="inf", module=lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
def checkpointed(model: Any, x: Tensor, _: int) -> Any:
    def inner(value: Tensor) -> Any:
        return (model(value) * 0.0).sqrt()  # fault

    return checkpoint(inner, x.requires_grad_(), use_reentrant=False).sum()


@failing("loss", "div", module=lambda: parametrizations.spectral_norm(nn.Linear(4, 3)))
def spectral_norm(model: Any, x: Tensor, _: int) -> Any:
    y = model(x)
    return (y - y).sum() / (y - y).sum()  # fault


@failing("loss", "div", result="inf", module=lambda: parametrizations.weight_norm(nn.Linear(4, 3)))
def weight_norm(model: Any, x: Tensor, _: int) -> Any:
    y = model(x)
    return (y / (y - y)).sum() - (y / (y - y)).sum()  # fault


@failing("loss", "log", module=lambda: nn.LSTM(4, 3, batch_first=True), batch=lambda: torch.randn(6, 5, 4))
def lstm(model: Any, x: Tensor, _: int) -> Any:
    states = model(x)[0]
    return torch.log(states[:, -1] - 2.0).mean()  # fault


@failing("loss", "log", module=lambda: nn.GRU(4, 3, 2, dropout=0.1), batch=lambda: torch.randn(5, 6, 4))
def gru(model: Any, x: Tensor, _: int) -> Any:
    states = model(x)[0]
    return torch.log(states - 2.0).mean()  # fault


@failing(
    "loss",
    "exp",
    result="inf",
    module=lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    batch=lambda: torch.randn(6, 5, 8),
)
def transformer_layer(model: Any, x: Tensor, _: int) -> Any:
    return torch.exp(model(x) + 100.0).mean()  # fault


@failing("loss", "sub", result="nan")
def infinite_difference(model: Any, x: Tensor, _: int) -> Any:
    top = torch.full((6, 3), INF)
    return (torch.maximum(model(x), top) - top).sum()  # fault


@failing("loss", "mul", result="inf")
def inputs_too_large(model: Any, x: Tensor, _: int) -> Any:
    return (model(x * 0.0 + 3e38) * 10.0).mean()  # fault


@failing("loss", "div", "mul", batch=lambda: (torch.randn(6, 4), torch.randn(6)))
def complex_numbers(model: Any, batch: Any, _: int) -> Any:
    wave = torch.complex(model(batch[0])[:, 0], batch[1])
    zero = wave - wave
    return (zero / zero).abs().sum()  # fault


@failing("loss", "log", "xlogy")
def distribution(model: Any, x: Tensor, _: int) -> Any:
    normal: Any = torch.distributions.Normal(model(x), -model(x).abs(), validate_args=False)
    return -normal.log_prob(torch.zeros(())).mean()  # fault


@failing("loss", "log")
def in_place_logarithm(model: Any, x: Tensor, _: int) -> Any:
    y = model(x).abs().neg()
    z = y.clone()
    z.log_()  # fault
    return z.mean()


@dataclass
class Sample:
    inputs: dict[str, Any]
    weight: Tensor = field(default_factory=lambda: torch.zeros(6, 3))


@failing(
    "loss", "div", batch=lambda: Sample({"views": [torch.randn(6, 4), torch.randn(6, 4)]}), rows=(0, 1, 2, 3, 4, 5)
)
def nested_batch(model: Any, batch: Any, _: int) -> Any:
    first, second = (model(one) for one in batch.inputs["views"])
    return ((first - first) / batch.weight + second).mean()  # fault


@failing("loss", "log")
def several_losses(model: Any, x: Tensor, _: int) -> Any:
    y = model(x)
    harmless = y.square().mean()
    bad = torch.log(-y.abs()).mean()  # fault
    return {"loss": harmless + 0.0 * bad, "other": harmless}


def _half() -> nn.Module:
    return nn.Linear(4, 3).half()


@failing("loss", "_to_copy", result="inf", module=_half, batch=lambda: torch.full((6, 4), 1e6))
def cast_to_half(model: Any, x: Tensor, _: int) -> Any:
    return model(x.half()).float().mean()  # fault


@failing("loss", "mul", result="inf", context=lambda: torch.autocast("cpu", torch.float16))
def autocast_overflow(model: Any, x: Tensor, _: int) -> Any:
    y = model(x) * 0.0 + 300.0
    return (y * y).mean()  # fault


@failing("loss", "_to_copy", result="inf", module=_half)
def half_squares(model: Any, x: Tensor, _: int) -> Any:
    y = model(x.half()) * 0.0 + 300.0
    return (y.double() * 1e4).half().float().mean()  # fault


@failing("loss", "log")
def sparse(model: Any, x: Tensor, _: int) -> Any:
    matrix = torch.eye(6).to_sparse()
    product = torch.sparse.mm(matrix, model(x))
    return torch.log(-product.square() - 1.0).mean()  # fault


@failing("loss", "div", where=None)
def normalization_by_a_norm_of_zero(model: Any, x: Tensor, _: int) -> Any:
    y = model(x) * at_row(1, 0.0)
    return (y / y.norm(dim=1, keepdim=True)).square().sum()  # fault


@failing("gradient", "pow", "mul", "div", "rsqrt", phase="backward", result="inf")
def checkpointed_with_reentry(model: Any, x: Tensor, _: int) -> Any:
    def inner(value: Tensor) -> Any:
        return (model(value) * 0.0).pow(0.25)  # fault

    return checkpoint(inner, x.requires_grad_(), use_reentrant=True).sum()


@failing(
    "loss",
    "_softmax",
    where="",
    rows=None,
    module=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    batch=lambda: torch.randn(6, 5, 8),
)
def attention_over_padding_only(model: Any, x: Tensor, _: int) -> Any:
    padding = torch.zeros(6, 5, dtype=torch.bool)
    padding[3] = True
    return model(x, x, x, key_padding_mask=padding)[0].square().mean()  # fault


@failing(
    "loss",
    "_scaled_dot_product_flash_attention_for_cpu",
    "bmm",
    "matmul",
    "baddbmm",
    result="inf",
    module=lambda: nn.Linear(8, 8),
    batch=lambda: torch.randn(6, 5, 8),
)
def fused_attention_overflow(model: Any, x: Tensor, _: int) -> Any:
    heads = model(x).reshape(6, 5, 2, 4).transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, heads, heads.sign() * 3e38).mean()  # fault


@failing("gradient", "div", "mul", phase="backward", result="inf")
def gradient_penalty_at_zero(model: Any, x: Tensor, _: int) -> Any:
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad((model(x) * 0.0).sum(), x, create_graph=True)
    return (slope.norm(2, dim=1) - 1.0).square().mean() + (slope.square().sum(1).sqrt()).sum()  # fault


@failing("loss", "_log_softmax", "amax", "sub", "_to_copy", "mul", result="inf", module=_half)
def log_softmax_in_half(model: Any, x: Tensor, _: int) -> Any:
    y = model(x.half())
    logits = y * 0.0 + torch.tensor([300.0, -300.0, 0.0]).half()
    return -(logits * 300.0).log_softmax(1).float().mean()  # fault


@failing("loss", "log", module=lambda: nn.Linear(4, 3))
def vectorized(model: Any, x: Tensor, _: int) -> Any:
    return torch.vmap(lambda row: torch.log(-model(row).square()))(x).mean()  # fault


@failing(
    "loss", "native_layer_norm", module=lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3, eps=0.0)), where="1"
)
def layer_norm_without_epsilon(model: Any, x: Tensor, _: int) -> Any:
    model[0].bias.data = torch.zeros(3)
    return model(x * 0.0).sum()  # fault


@failing("loss", "log", batch=lambda: [torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 3])], rows=(5,))
def indexed_table(model: Any, batch: Any, _: int) -> Any:
    table = torch.tensor([1.0, 2.0, 3.0, 0.0])
    return (torch.log(table[batch[1]]) * model(batch[0])[:, 0]).sum()  # fault


STEPS["indexed_table"] = replace(STEPS["indexed_table"], result="-inf")


@failing("loss", "logit", "log", "div", result="inf")
def logit_of_one(model: Any, x: Tensor, _: int) -> Any:
    return torch.logit(torch.sigmoid(model(x).abs() + 100.0)).mean()  # fault


@failing("loss", "exp", result="inf")
def unbounded_scale_of_a_variational_model(model: Any, x: Tensor, _: int) -> Any:
    log_variance = model(x) * 0.0 + 100.0
    return 0.5 * (log_variance.exp() - log_variance - 1.0).sum()  # fault


@failing("loss", "linalg_inv_ex", "_linalg_solve_ex", "_linalg_det", "log", result="-inf")
def determinant_of_zero(model: Any, x: Tensor, _: int) -> Any:
    square = model(x)[:3] * 0.0
    return torch.linalg.det(square).log()  # fault


@failing("loss", "div", module=lambda: nn.Linear(4, 3))
def fault_below_a_harmless_infinity(model: Any, x: Tensor, _: int) -> Any:
    y = model(x)
    weights = torch.exp(torch.log(torch.zeros(6, 3)))  # exp(-inf) is 0: no harm
    total = (y * weights).sum()
    return y.mean() + total / weights.sum()  # fault
