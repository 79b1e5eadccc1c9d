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


def _added(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    first, second = arguments
    return torch.add(first, second, alpha=node._saved_alpha)


def _subtracted(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    first, second = arguments
    return torch.sub(first, second, alpha=node._saved_alpha)


def _product_added(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.addmm(*arguments, beta=node._saved_beta, alpha=node._saved_alpha)


def _raised(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.pow(arguments[0], arguments[1] if len(arguments) > 1 else node._saved_exponent)


def _summed(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].sum() if _dims(node) is None else arguments[0].sum(_dims(node), node._saved_keepdim)


def _averaged(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].mean() if _dims(node) is None else arguments[0].mean(_dims(node), node._saved_keepdim)


def _summed_up(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].cumsum(_signed(node._saved_dim))


def _transposed(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].transpose(_signed(node._saved_dim0), _signed(node._saved_dim1))


def _selected(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].select(_signed(node._saved_dim), _signed(node._saved_index))


def _clamped(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return arguments[0].clamp(node._saved_min, getattr(node, "_saved_max", None))


def _convolved(node: Any, arguments: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.convolution(
        arguments[0],
        arguments[1],
        arguments[2] if len(arguments) > 2 else None,
        [*map(_signed, node._saved_stride)],
        [*map(_signed, node._saved_padding)],
        [*map(_signed, node._saved_dilation)],
        node._saved_transposed,
        [*map(_signed, node._saved_output_padding)],
        node._saved_groups,
    )


_RECIPES: Mapping[str, _Recipe] = {
    "add": _added,
    "addmm": _product_added,
    "cat": lambda node, arguments, shape: torch.cat([*arguments], _signed(node._saved_dim)),
    "clamp": _clamped,
    "convolution": _convolved,
    "cumsum": _summed_up,
    "expand": lambda node, arguments, shape: arguments[0].expand(shape),
    "mean": _averaged,
    "pow": _raised,
    "select": _selected,
    "stack": lambda node, arguments, shape: torch.stack([*arguments], _signed(node._saved_dim)),
    "sub": _subtracted,
    "sum": _summed,
    "transpose": _transposed,
}


def _dims(node: Any) -> list[int] | None:
    dims = getattr(node, "_saved_dim", None)
    return None if dims is None else [_signed(one) for one in dims]


def _signed(value: int) -> int:
    """Return a number that autograd shows as an unsigned one of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
