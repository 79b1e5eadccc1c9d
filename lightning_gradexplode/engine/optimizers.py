"""The optimizers of a run: found by identity, followed when the training loop replaces them, with hooks on each."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip import GuardedPolicy
from lightning_gradexplode.engine.inner_optimizers import hooks_around
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step_hooks import Hook, StepHooks, calls_hooks
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import held_by, parameters_of
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe

_optimizer = operator.attrgetter("optimizer")
_steps = operator.attrgetter("steps")


class _StepCalls(NamedTuple):
    """What is called before and after each step, and before the step of a wrapped optimizer."""

    before: Hook
    after: Hook
    within: Callable[[Optimizer], Any]


class OptimizerList:
    """The optimizers of a training loop, each with its state and hooks around its step.

    Args:
        loop: The training loop.
        arguments: The monitor's arguments.

    Attributes:
        states: One for each optimizer, in the loop's order; the list stays the same object.
    """

    def __init__(self, loop: TrainingLoop, arguments: Arguments) -> None:
        self.states: list[OptimizerState] = []
        self._loop = loop
        self._arguments = arguments
        self._list_parameters = partial(
            parameters_of,
            module=loop.module,
            include=arguments.include,
            exclude=arguments.exclude,
            world=loop.process_group,
        )
        self._hooks: dict[int, list[Any]] = {}
        self._calls: _StepCalls | None = None
        self.refresh()

    def listen(self, before_step: Hook, after_step: Hook, within_step: Callable[[Optimizer], Any]) -> None:
        """Begin to call back at the steps of all optimizers, also of those that the training loop adds later.

        Args:
            before_step: Called before each step of an optimizer.
            after_step: Called after it.
            within_step: Called before the step of an optimizer that another one wraps, within a step of this one.
        """
        self._calls = _StepCalls(before_step, after_step, within_step)
        for state in self.states:
            self._add_hooks(state, self._calls)

    @property
    def are_new(self) -> bool:
        """Whether no optimizer has stepped yet."""
        return not any(map(_steps, self.states))

    def refresh(self) -> None:
        """Follow the training loop's list of optimizers, if it has changed."""
        optimizers = self._loop.optimizers
        states = self.states
        if len(states) == len(optimizers) and all(map(operator.is_, map(_optimizer, states), optimizers)):
            return
        known = {id(state.optimizer): state for state in states}
        replaced = states[:]
        states[:] = [
            known.get(id(optimizer)) or self._new(index, optimizer, replaced)
            for index, optimizer in enumerate(optimizers)
        ]
        for index, state in enumerate(states):
            state.index = index
        kept = {id(state.optimizer) for state in states}
        for key in [key for key in self._hooks if key not in kept]:
            self._remove(key)

    def state_of(self, optimizer: Optimizer) -> OptimizerState | None:
        """Return the state of an optimizer, by identity first and unwrapped otherwise; None if it is unknown."""
        for attempt in range(2):
            candidate: Any = optimizer
            while candidate is not None:
                for state in self.states:
                    if state.optimizer is candidate:
                        return state
                candidate = getattr(candidate, "optimizer", None)
            if attempt == 0:
                self.refresh()
        return None

    def policy_of(self, optimizer: Optimizer) -> GuardedPolicy | None:
        """Return the clip policy of an optimizer that is known, None without one."""
        return next((state.policy for state in self.states if state.optimizer is optimizer), None)

    def state_dicts(self) -> list[dict[str, Any]]:
        """Return the state of each optimizer, in plain values."""
        return [state.state_dict() for state in self.states]

    def load_states(self, saved: Any) -> list[str]:
        """Restore the states that `state_dicts` returned.

        Returns:
            A line for each part whose state does not fit and is not restored.
        """
        if not isinstance(saved, (list, tuple)):
            return ["the states of all optimizers start fresh (there is none in the checkpoint)"]
        lines = []
        if len(saved) != len(self.states):
            lines.append(f"it has {len(saved)} optimizers, this run has {len(self.states)}; further ones start fresh")
        for state, one in zip(self.states, saved, strict=False):
            try:
                lines += [f"optimizer {state.index}: {line}" for line in state.load_state_dict(one)]
            except Exception as error:
                lines.append(f"optimizer {state.index} starts fresh ({describe(error)})")
        return lines

    def close(self) -> None:
        """Remove all hooks."""
        for key in list(self._hooks):
            self._remove(key)

    def _new(self, index: int, optimizer: Optimizer, replaced: list[OptimizerState]) -> OptimizerState:
        """Build the state of an optimizer; it keeps the detectors of one with the same parameters."""
        state = OptimizerState(index, optimizer, self._arguments.detectors, self._arguments.clip, self._list_parameters)
        before = replaced[index] if index < len(replaced) else None
        if before is not None and [*map(id, held_by(before.optimizer))] == [*map(id, held_by(optimizer))]:
            state.detectors, state.steps = before.detectors, before.steps
        if self._calls is not None:
            self._add_hooks(state, self._calls)
        return state

    def _add_hooks(self, state: OptimizerState, calls: _StepCalls) -> None:
        optimizer = state.optimizer
        hooks = self._hooks[id(optimizer)] = []
        inner, before, after = hooks_around(optimizer, [one.optimizer for one in self.states], *calls)
        state.wraps_others = bool(inner)
        for one in inner:
            hooks += one.register_step_pre_hook(before), one.register_step_post_hook(after)
        try:
            if not calls_hooks(optimizer):
                raise TypeError("its step calls no hooks")
            hooks.append(optimizer.register_step_pre_hook(before))
            hooks.append(optimizer.register_step_post_hook(after))
        except Exception:
            try:
                hooks.append(StepHooks(optimizer, before, after))
            except Exception as error:
                state.has_hooks = False
                logger.warning(
                    "gradexplode: %s takes no hooks around its step (%s); its gradients are measured where the "
                    "training loop announces the step, and a skipped update gets no gradients",
                    type(optimizer).__name__,
                    describe(error),
                )

    def _remove(self, key: int) -> None:
        for hook in self._hooks.pop(key, ()):
            hook.remove()
