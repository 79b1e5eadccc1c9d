"""Optimizers that another one wraps, whose steps are part of its own, or are its own if they are called directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.engine.step_hooks import Hook, calls_hooks
from lightning_gradexplode.measure.graph_capture import untraced


def inner_optimizers(optimizer: Any) -> list[Optimizer]:
    """Return the optimizers that one holds in its attributes, and those that these hold."""
    found: list[Optimizer] = []
    waiting = [optimizer]
    while waiting:
        for value in getattr(waiting.pop(), "__dict__", {}).values():
            if isinstance(value, Optimizer) and all(value is not one for one in (optimizer, *found)):
                found.append(value)
                waiting.append(value)
    return found


def hooks_around(
    optimizer: Optimizer, known: Sequence[Optimizer], before: Hook, after: Hook, within: Callable[[Optimizer], Any]
) -> tuple[list[Optimizer], Hook, Hook]:
    """Return the hooks around the steps of an optimizer, and the optimizers that it wraps and that get them as well.

    Args:
        optimizer: The optimizer.
        known: Optimizers of the training loop, which have hooks of their own.
        before: Called before a step, with the optimizer.
        after: Called after it.
        within: Called before a step of a wrapped optimizer within a step.
    """
    inner = [one for one in inner_optimizers(optimizer) if all(one is not other for other in known)]
    if inner:
        steps = StepsOfWrapper(optimizer, before, after, within)
        before, after = steps.begins, steps.ends
    # A compiled step has a graph break at the hooks, which are not compiled.
    return [*filter(calls_hooks, inner)], untraced(before), untraced(after)


class StepsOfWrapper:
    """The hooks of an optimizer that wraps others, each of which may also be stepped directly.

    Args:
        optimizer: The optimizer that wraps others.
        before: Called before a step, with this optimizer.
        after: Called after it.
        within: Called before a step of a wrapped optimizer within a step.

    Attributes:
        before: As given.
    """

    def __init__(self, optimizer: Optimizer, before: Hook, after: Hook, within: Callable[[Optimizer], Any]) -> None:
        self.before = before
        self._optimizer, self._after, self._within = optimizer, after, within
        self._stepping: Any = None

    def begins(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the hook before a step."""
        if self._stepping is None or self._stepping is optimizer:
            self._stepping = optimizer
            return self.before(self._optimizer, args, kwargs)
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is None:  # else the closure computes the gradients
            self._within(self._optimizer)
        return None

    def ends(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the hook after a step."""
        if self._stepping is optimizer:
            self._stepping = None
            self._after(self._optimizer, args, kwargs)
