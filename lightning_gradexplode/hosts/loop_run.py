"""The run of a monitor in a training loop of plain PyTorch: how it begins, fails and ends."""

from __future__ import annotations

import atexit
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.shard_layout import version_of
from lightning_gradexplode.engine.failure import MONITOR_FAILED, MONITOR_IS_OFF
from lightning_gradexplode.engine.inner_optimizers import StepsOfWrapper, hooks_around
from lightning_gradexplode.engine.joint_start import DifferentProcessesError
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.engine.step_hooks import Hook
from lightning_gradexplode.hosts.torch_loop import JOINS, TorchLoop
from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.respond import ExplosionError

ANOTHER_BEGINS = (
    "gradexplode: a new monitor of the optimizer begins, and the earlier one, which was not closed, ends; for example "
    "where the cell of a notebook is run again"
)
NONE_STEPPED = (
    "no optimizer that was passed has stepped, though its weights were changed; if the loop has built another one, "
    "construct the monitor with it"
)
"""What is logged at the end of a run in which nothing was measured."""


class LoopRun(ABC):
    """Begins a run, registers the hooks of the optimizers' steps, and ends the run without ending the training loop.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        state: The state of an earlier run to continue from.
        at_error: Called before an `ExplosionError` ends the loop, where the loop itself does not close the monitor.

    Attributes:
        run: The monitored run, None if it could not begin.
        is_traced: Whether ``torch.compile`` has traced a call by the host, which does nothing then.
    """

    _begun: TrainingRun
    """The same run, for what is called only once it has begun."""

    def __init__(
        self, arguments: Arguments, loop: TorchLoop, state: Mapping[str, Any], at_error: Callable[[BaseException], None]
    ) -> None:
        self.run: TrainingRun | None = None
        self._arguments = arguments
        self._loop = loop
        self._at_error = at_error
        self.is_traced = self._failed = self._is_over = False
        self._hooks: list[Any] = []
        self._warned: set[str] = set()
        self._at_exit = partial(_process_ends, weakref.ref(self))
        optimizers = loop.optimizers
        for earlier in {one for optimizer in optimizers for one in _monitors_of(optimizer)}:
            logger.warning(ANOTHER_BEGINS)
            earlier.close()
        try:  # hooks of an optimizer are called in this order: ours before its step, the engine's, ours after it
            hooked = [*self._hooked()]
            self._hooks = [one.register_step_pre_hook(before) for one, before, _ in hooked]
            loop.begin()
            self.run = self._begun = TrainingRun(arguments, loop, state)
            self._hooks += [one.register_step_post_hook(after) for one, _, after in hooked]
            self._versions = self._weight_versions()
            self._begun.batch_expected()
            atexit.register(self._at_exit)
        except DifferentProcessesError as error:
            self._failed = True
            logger.warning(MONITOR_IS_OFF, error)
            self.remove_hooks()
        except Exception:
            self._fail()
            self.remove_hooks()

    def _hooked(self) -> Iterator[tuple[Optimizer, Hook, Hook]]:
        """Iterate over the optimizers, and those that they wrap and may step by other methods, with their hooks."""
        optimizers = self._loop.optimizers
        for one in optimizers:
            inner, before, after = hooks_around(one, optimizers, self._before_step, self._after_step, lambda _: None)
            yield from ((hooked, before, after) for hooked in (one, *inner))

    def _weight_versions(self) -> list[int]:
        """Return how often each weight that holds numbers was written to."""
        weights = (weight for optimizer in self._loop.optimizers for weight in held_by(optimizer))
        return [version_of(weight) for weight in weights if not weight.is_meta]

    @abstractmethod
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Handle that an optimizer is about to step."""

    @abstractmethod
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Handle that an optimizer has stepped."""

    @abstractmethod
    def steps_are_over(self) -> None:
        """End the batch."""

    @property
    def failed(self) -> bool:
        """Whether the monitor has failed and is off."""
        return self._failed or (self.run is not None and self.run.failed)

    @property
    def is_open(self) -> bool:
        """Whether the run goes on: it has begun, and was not closed."""
        return bool(self._hooks)

    def warn_once(self, message: str) -> None:
        """Log a warning, the first time."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("gradexplode: %s", message)

    def aborted(self, error: BaseException) -> None:
        """Record what is known of a step that an exception has interrupted."""
        if self.run is not None:
            self.run.aborted(error)

    def close(self) -> None:
        """End the run, and remove all hooks; the results stay."""
        run = self.run
        if run is None or not self.is_open:
            return
        self.steps_are_over()
        run.flush()
        if run.last is None and not (self.failed or self._warned) and self._versions != self._weight_versions():
            self.warn_once(NONE_STEPPED)
        if self._arguments.report == "always" and not run.failed:
            run.report()
        self.remove_hooks()

    def remove_hooks(self) -> None:
        """Remove all hooks, and restore what was changed of the loop."""
        atexit.unregister(self._at_exit)
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        if self.run is not None:
            self.run.close()

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a function of the monitor; if it raises, the monitor is switched off, and the training loop goes on."""
        if self.run is None or self._is_left_out():
            return
        try:
            call(*arguments)
        except ExplosionError as error:
            self._at_error(error)
            raise
        except Exception:
            self._fail()

    def _hooks_are_off(self) -> bool:
        """Return whether nothing is to be done in a call from outside of the hooks, which can be removed there."""
        if not self.is_open:
            return True
        is_left_out = self._is_left_out()
        if self._is_over:
            self.remove_hooks()
        return is_left_out

    def _is_left_out(self) -> bool:
        """Return whether nothing is to be done in a call: it is only recorded, or other processes may have ended."""
        if torch.compiler.is_compiling():
            self._begun.graph_capture.note_tracing()
            return True
        if self._loop.joins and not self._is_over:
            logger.warning(MONITOR_IS_OFF, JOINS)
            self._end()
        if self._is_over or self._loop.is_replaying:
            return True
        return self._begun.graph_capture.is_possible and self._begun.graph_capture.is_running()

    def _fail(self) -> None:
        self._failed = True
        if self.run is None:
            logger.exception(MONITOR_FAILED)
        elif not self.run.failed:  # else it is off already, which has been logged
            self.run.guard.fail()
        self._end()

    def _end(self) -> None:
        """Do nothing from now on. The hooks are removed later: one of them may be the caller."""
        self._is_over = True
        self._loop.process_group.close()  # the other processes must not wait for this one


def _monitors_of(optimizer: Optimizer) -> list[LoopRun]:
    """Return the monitors that have hooks on an optimizer."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
    owners = [getattr(getattr(hook, "__wrapped__", None), "__self__", None) for hook in hooks]
    calls = [owner.before if isinstance(owner, StepsOfWrapper) else owner for owner in owners]
    owners = [getattr(call, "__self__", call) for call in calls]
    return [owner for owner in owners if isinstance(owner, LoopRun)]


def _process_ends(loop_run: weakref.ref[LoopRun]) -> None:
    """Write the recorded steps of a run that was not closed, if an exception ends the process."""
    one, error = loop_run(), getattr(sys, "last_value", None)
    if one is not None and error is not None:
        one.aborted(error)
