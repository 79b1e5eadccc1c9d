"""Optimizers as plain values: class, hyperparameters and number of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import OptimizerFacts

_WRAPPED = 4
"""Number of wrappers around an optimizer that are looked through."""


def collect_optimizer(optimizer: Any) -> OptimizerFacts:
    """Return the facts of an optimizer, or of a wrapper that holds one as its attribute ``optimizer``.

    Args:
        optimizer: Any object with ``param_groups``, whether or not it has called the constructor of torch's class. A
            learning rate that is a tensor is read from its device.

    Returns:
        The facts; `kind` is ``"Lookahead(Adam)"`` for a wrapper. Hyperparameters that are no numbers, truth values or
        strings are left out.
    """
    chain = list(_unwrapped(optimizer))
    names = [type(one).__name__ for one in chain]
    groups = next((groups for one in chain if (groups := _groups(one))), [])
    states = [state for one in chain for state in _states(one)]
    steps = [found for owner in (*states, *groups) if (found := owner.get("step")) is not None]
    plain = tuple(dict(_plain(group)) for group in groups)
    return OptimizerFacts(
        kind="(".join(names) + ")" * (len(names) - 1),
        groups=plain,
        steps_taken=_largest(steps),
        has_state=bool(states),
        state_grad_norm=_grad_norm_of(states, _largest(steps), plain),
    )


def _unwrapped(optimizer: Any) -> Iterator[Any]:
    for _ in range(_WRAPPED):
        yield optimizer
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or inner is optimizer or not hasattr(inner, "param_groups"):
            return
        optimizer = inner


def _groups(optimizer: Any) -> list[Mapping[str, Any]]:
    return [group for group in getattr(optimizer, "param_groups", None) or () if isinstance(group, Mapping)]


def _states(optimizer: Any) -> list[Mapping[str, Any]]:
    """Return the state of each parameter that has any."""
    state = getattr(optimizer, "state", None)
    found: Iterable[Any] = state.values() if isinstance(state, Mapping) else ()
    return [one for one in found if isinstance(one, Mapping) and one]


def _plain(group: Mapping[str, Any]) -> Iterator[tuple[str, float | bool | str]]:
    for name, value in group.items():
        if name == "betas" and isinstance(value, (tuple, list)):
            yield from ((f"beta{place}", number) for place, one in enumerate(value, 1) for number in _numbers(one))
        elif isinstance(value, str):
            yield name, value
        elif name != "params":
            yield from ((name, number) for number in _numbers(value))


def _numbers(value: Any) -> Iterator[float | bool]:
    """Iterate over the number that a value is, or nothing."""
    if isinstance(value, (bool, int, float, np.number)):
        yield value if isinstance(value, (bool, int, float)) else value.item()
    elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        with suppress(RuntimeError, NotImplementedError):  # a tensor without storage
            yield float(value.detach())


def _grad_norm_of(
    states: list[Mapping[str, Any]], steps: int, groups: tuple[Mapping[str, float | bool | str], ...]
) -> float | None:
    """Return the gradient norm that running squares belong to (Kingma and Ba, 2015, algorithm 1), None without any."""
    numbers = {**(groups[0] if groups else {})}
    for name, decay in (("exp_avg_sq", numbers.get("beta2", 0.999)), ("square_avg", numbers.get("alpha", 0.99))):
        squares = [one[name] for one in states if name in one]
        if not squares or not steps or any(type(one) is not Tensor for one in squares):
            continue  # a sum over shards would be a collective
        share = 1 - min(float(decay), 1.0) ** steps
        with suppress(RuntimeError, NotImplementedError):  # a tensor without storage
            total = float(read([one.detach().sum(dtype=torch.float32) for one in squares]).sum())
            return math.sqrt(total / share) if total >= 0 and share > 0 else None
    return None


def _largest(steps: list[Any]) -> int:
    """Return the largest step count, with one read from the device."""
    on_device = [one.detach() for one in steps if isinstance(one, Tensor) and one.numel() == 1]
    numbers = [float(one) for one in steps if isinstance(one, (int, float))]
    with suppress(RuntimeError, NotImplementedError):
        numbers += read(on_device).tolist() if on_device else []
    return int(max((one for one in numbers if np.isfinite(one)), default=0))
