"""Calls of torch's functions in Python: the operations that they compute, and the tensors that they take and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_gradexplode.diagnose.replay.observation.observer import LARGE
from lightning_gradexplode.diagnose.replay.observation.operation_calls import flat

_NAMES = {
    "true_divide": "div",
    "divide": "div",
    "truediv": "div",
    "itruediv": "div",
    "rtruediv": "reciprocal",
    "rdiv": "reciprocal",
    "multiply": "mul",
    "rmul": "mul",
    "imul": "mul",
    "subtract": "sub",
    "isub": "sub",
    "iadd": "add",
    "radd": "add",
    "power": "pow",
    "ipow": "pow",
}
"""Names of the operations that functions of Python call."""


def name_of_function(func: Callable[..., Any]) -> str:
    """Return the name of the operation that a function of torch computes, such as ``"div"`` for ``/``."""
    plain = str(getattr(func, "__name__", "")).strip("_")
    return _NAMES.get(plain, plain)


def writes(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function writes into one of its arguments."""
    name = str(getattr(func, "__name__", ""))
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__index__", "__int__", "__invert__"))
    return name.endswith("_") or kwargs.get("out") is not None


def overwritten(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int, Tensor] | None:
    """Return copies of the arguments of a function that writes into one of them, by identity; None if it does not."""
    if not writes(func, kwargs):
        return None
    kept = [one for one in flat((*args, *kwargs.values())) if not one.requires_grad and one.numel() <= LARGE]
    return {id(one): one.detach().clone() for one in kept}
