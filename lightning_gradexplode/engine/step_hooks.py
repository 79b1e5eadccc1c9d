"""Hooks around the step of an optimizer that has no hooks of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def calls_hooks(optimizer: Any) -> bool:
    """Return whether an optimizer calls its hooks with itself in each step.

    Not where it has the hooks of an optimizer that it wraps, and not where its ``step`` is none that the constructor of
    ``torch.optim.Optimizer`` has prepared for hooks.
    """
    own, of_class = vars(optimizer), type(optimizer).step
    step = own.get("step", of_class)
    if hasattr(step, "_wrapped_by_lr_sched"):  # in older versions of torch it lacks the attribute
        step = of_class
    return "_optimizer_step_pre_hooks" in own and hasattr(step, "hooked")


class StepHooks:
    """Replaces an optimizer's ``step`` until it is removed, and calls a hook before and after it.

    The hooks are called as those of ``torch.optim.Optimizer`` are. In a copy of the optimizer, and in a pickle of it,
    there is the optimizer's own method.

    Args:
        optimizer: The optimizer.
        before: Called before a step.
        after: Called after it.

    Raises:
        TypeError: The optimizer has no attributes of its own.
    """

    def __init__(self, optimizer: Any, before: Hook, after: Hook) -> None:
        self._optimizer, self._before, self._after = optimizer, before, after
        self._own = optimizer.step
        self._is_shadowed = "step" in vars(optimizer)  # as by a learning rate scheduler
        self._is_removed = False
        vars(optimizer)["step"] = self  # not by assignment, which a wrapper may pass on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Step."""
        if self._is_removed:
            return self._own(*args, **kwargs)
        changed = self._before(self._optimizer, (self._optimizer, *args), kwargs)
        if changed is not None:
            (_, *rest), kwargs = changed
            args = tuple(rest)
        result = self._own(*args, **kwargs)
        self._after(self._optimizer, (self._optimizer, *args), kwargs)
        return result

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the method, such as those that a learning rate scheduler looks for."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._own, name)

    @property
    def __func__(self) -> Callable[..., Any]:
        """A function of the optimizer, for a learning rate scheduler that wraps it."""
        return lambda optimizer, *args, **kwargs: self(*args, **kwargs)

    @property
    def __self__(self) -> Any:
        """The optimizer."""
        return self._optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchanged, (self._own,)

    def remove(self) -> None:
        """Disable the hooks, and restore the method unless it has been replaced again."""
        self._is_removed = True
        if vars(self._optimizer).get("step") is self:
            if self._is_shadowed:
                vars(self._optimizer)["step"] = self._own
            else:
                del vars(self._optimizer)["step"]


def _unchanged(value: Any) -> Any:
    return value
