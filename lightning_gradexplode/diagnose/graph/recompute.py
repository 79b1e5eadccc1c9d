"""Results of operations that autograd does not keep, computed again from arguments that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_UNARY = {
    "abs", "acos", "acosh", "asin", "atan", "atanh", "cos", "cosh", "digamma", "erf", "erfinv", "exp", "exp2", "expm1",
    "lgamma", "log", "log10", "log1p", "log2", "logit", "neg", "reciprocal", "relu", "rsqrt", "sigmoid", "sin", "sinh",
    "sqrt", "t", "tan", "tanh",
}  # fmt: skip
_BINARY = {"atan2", "bmm", "div", "hypot", "maximum", "minimum", "mm", "mul", "mv"}
_RESHAPING = {"view", "unsafe_view", "reshape", "squeeze", "unsqueeze"}

_Recipe = Callable[[Any, Sequence[Tensor], tuple[int, ...]], Tensor]


def recomputed(name: str, node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """Return the result of an operation, None if it is not one of those that can be computed again.

    Args:
        name: Its plain name.
        node: Its node.
        arguments: Its arguments.
        shape: Shape of the result.
    """
    recipe = _RECIPES.get(name)
    if name in _UNARY and len(arguments) == 1:
        result: Tensor = getattr(torch, name)(arguments[0])
    elif name in _BINARY and len(arguments) == 2:
        result = getattr(torch, name)(*arguments)
    elif name in _RESHAPING and len(arguments) == 1:
        result = arguments[0].reshape(shape)
    elif recipe is not None:
        result = recipe(node, arguments, shape)
    else:
        return None
    return result if tuple(result.shape) == shape else None


def _product_added(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.addmm(*arguments, beta=node._saved_beta, alpha=node._saved_alpha)


def _raised(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.pow(arguments[0], arguments[1] if len(arguments) > 1 else node._saved_exponent)


def _reduced(reduction: Callable[..., Tensor]) -> _Recipe:
    """Return the recipe of a reduction of all elements, or of some dimensions."""

    def recipe(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        dims = getattr(node, "_saved_dim", None)
        return (
            reduction(arguments[0])
            if dims is None
            else reduction(arguments[0], [*map(signed, dims)], node._saved_keepdim)
        )

    return recipe


def _transposed(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].transpose(signed(node._saved_dim0), signed(node._saved_dim1))


def _selected(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].select(signed(node._saved_dim), signed(node._saved_index))


def _clamped(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].clamp(node._saved_min, getattr(node, "_saved_max", None))


def _convolved(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.convolution(
        arguments[0],
        arguments[1],
        arguments[2] if len(arguments) > 2 else None,
        [*map(signed, node._saved_stride)],
        [*map(signed, node._saved_padding)],
        [*map(signed, node._saved_dilation)],
        node._saved_transposed,
        [*map(signed, node._saved_output_padding)],
        node._saved_groups,
    )


def _classified(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    is_image = len(arguments[0].shape) > 2
    compute = torch.ops.aten.nll_loss2d_forward if is_image else torch.ops.aten.nll_loss_forward
    ignored = signed(node._saved_ignore_index)
    loss: Tensor = compute(arguments[0], node._saved_target, node._saved_weight, node._saved_reduction, ignored)[0]
    return loss


def _loss(name: str, *options: str) -> _Recipe:
    """Return the recipe of a loss function of predictions and targets.

    Args:
        name: Its name in ``torch.ops.aten``.
        *options: Its further arguments.
    """

    def recipe(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        saved = (getattr(node, f"_saved_{option}") for option in options)
        loss: Tensor = getattr(torch.ops.aten, name)(*arguments, *saved)
        return loss

    return recipe


_RECIPES: Mapping[str, _Recipe] = {
    "add": lambda node, arguments, shape: torch.add(*arguments, alpha=node._saved_alpha),
    "addmm": _product_added,
    "binary_cross_entropy": _loss("binary_cross_entropy", "weight", "reduction"),
    "binary_cross_entropy_with_logits": _loss("binary_cross_entropy_with_logits", "weight", "pos_weight", "reduction"),
    "cat": lambda node, arguments, shape: torch.cat([*arguments], signed(node._saved_dim)),
    "clamp": _clamped,
    "convolution": _convolved,
    "cumsum": lambda node, arguments, shape: arguments[0].cumsum(signed(node._saved_dim)),
    "expand": lambda node, arguments, shape: arguments[0].expand(shape),
    "huber_loss": _loss("huber_loss", "reduction", "delta"),
    "mean": _reduced(torch.mean),
    "mse_loss": _loss("mse_loss", "reduction"),
    "nll_loss": _classified,
    "pow": _raised,
    "select": _selected,
    "smooth_l1_loss": _loss("smooth_l1_loss", "reduction", "beta"),
    "stack": lambda node, arguments, shape: torch.stack([*arguments], signed(node._saved_dim)),
    "sub": lambda node, arguments, shape: torch.sub(*arguments, alpha=node._saved_alpha),
    "sum": _reduced(torch.sum),
    "transpose": _transposed,
}


def signed(value: int) -> int:
    """Return a number that autograd shows as an unsigned one of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
