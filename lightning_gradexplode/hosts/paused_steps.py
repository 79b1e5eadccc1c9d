"""Optimizers whose steps change nothing, while a user's function computes a step again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

STEPS_SCHEDULE = (
    "the function that is passed as step= sets the learning rate or other settings of an optimizer; they are restored "
    "after a replay, but a scheduler has counted the steps of the replay too: call it outside of the function"
)
"""What is logged once where the function that computes a step again changes settings of an optimizer."""


@contextmanager
def without_steps(optimizers: Sequence[Optimizer], changed: Callable[[], None]) -> Iterator[None]:
    """Replace the steps of optimizers by ones that change nothing and call no hooks, for a user's function in a replay.

    Args:
        optimizers: The optimizers.
        changed: Called if the function has changed their settings, such as the learning rate, which are restored.
    """

    def step(closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()

    own = [vars(one).get("step") for one in optimizers]  # a scheduler assigns one, or the user
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    settings = [{name: one for name, one in group.items() if isinstance(one, (int, float))} for group in groups]
    for optimizer in optimizers:
        vars(optimizer)["step"] = step
    try:
        yield
    finally:
        for optimizer, before in zip(optimizers, own, strict=True):
            if before is None:
                del vars(optimizer)["step"]
            else:
                vars(optimizer)["step"] = before
        if any(
            group[name] != one for group, known in zip(groups, settings, strict=True) for name, one in known.items()
        ):
            for group, known in zip(groups, settings, strict=True):
                group.update(known)
            changed()
