"""A training loop whose optional members are switched off if they raise."""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe


def _passed(name: str) -> Any:
    """Return a property that reads the other loop's member; exceptions are not caught."""
    return property(operator.attrgetter(f"loop.{name}"))


def _fixed(name: str) -> Any:
    """Return the same for a member that is constant during a fit, and is read once."""
    return cached_property(operator.attrgetter(f"loop.{name}"))


def _guarded(name: str, *otherwise: Any) -> Any:
    """Return a property of the other loop that is switched off if it raises.

    Args:
        name: Its name.
        *otherwise: Its value from then on; without one, that of the base class.
    """

    def value(self: GuardedLoop) -> Any:
        if name not in self.failed:
            try:
                return getattr(self.loop, name)
            except Exception as error:
                self.fail(name, error)
        return otherwise[0] if otherwise else getattr(TrainingLoop, name).__get__(self)

    return property(value)


def _guarded_call(name: str, *otherwise: Any) -> Any:
    """Return a method of the other loop that is switched off if it raises.

    Args:
        name: Its name.
        *otherwise: What it returns from then on; without one, what the base class returns.
    """

    def call(self: GuardedLoop, *arguments: Any) -> Any:
        if name not in self.failed:
            try:
                return getattr(self.loop, name)(*arguments)
            except Exception as error:
                self.fail(name, error)
        return otherwise[0] if otherwise else getattr(TrainingLoop, name)(self, *arguments)

    return call


def _guards_the_others(kind: type[GuardedLoop]) -> type[GuardedLoop]:
    """Guard the members of a training loop that a class does not list, so that a new one needs no entry there."""
    for name, member in vars(TrainingLoop).items():
        if not name.startswith("_") and name not in vars(kind):
            setattr(kind, name, _guarded(name) if isinstance(member, property) else _guarded_call(name))
    return kind


@_guards_the_others
class GuardedLoop(TrainingLoop):
    """Another training loop, whose optional members are switched off one by one if they raise.

    A member that is off is replaced by that of the base class, as in a loop without this capability, and one line is
    logged. Exceptions of required members are not caught.

    Args:
        loop: The other loop.

    Attributes:
        failed: Names of the members that are switched off.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop = loop
        self.failed: set[str] = set()

    def fail(self, name: str, error: BaseException) -> None:
        """Switch a member off, and log it."""
        self.failed.add(name)
        kind = type(self.loop).__name__
        logger.warning("gradexplode: %s.%s is not used any more in this fit: it raised %s", kind, name, describe(error))

    # Required members.

    module = _fixed("module")
    process_group = _fixed("process_group")
    is_main_process = _fixed("is_main_process")
    is_automatic = _fixed("is_automatic")
    is_compiled = _fixed("is_compiled")
    gradients_are_final = _fixed("gradients_are_final")
    counts_end_of_backward = _fixed("counts_end_of_backward")
    may_clip_by_itself = _fixed("may_clip_by_itself")
    trainer = _passed("trainer")
    optimizers = _passed("optimizers")
    loss_factor = _passed("loss_factor")
    moves_weights = _passed("moves_weights")
    step = _passed("step")
    micro_batches = _passed("micro_batches")
    completes_step = _passed("completes_step")
    filled_share = _passed("filled_share")
    loss_scale = _passed("loss_scale")
    scaler = _passed("scaler")
    clip_setting = _passed("clip_setting")

    # Members whose exceptions are handled by their callers.

    log_folder = _passed("log_folder")
    save_checkpoint = _passed("save_checkpoint")
    replay_loss = _passed("replay_loss")
    replay_context = _passed("replay_context")

    # Optional members with another replacement than that of the base class; all others are added by the decorator.

    may_change_gradients = _guarded("may_change_gradients", True)
    overrides_clipping = _guarded("overrides_clipping", True)
    set_clip = _guarded_call("set_clip", None)
    returned_loss = _guarded_call("returned_loss", None)
    report_folder = _guarded_call("report_folder", None)

    _clips = _guarded_call("clips")
    _can_stop = _guarded("can_stop")

    def clips(self, optimizer: Any) -> bool:
        """Return whether the loop clips an optimizer's gradients, and takes the value to clip by."""
        return "set_clip" not in self.failed and bool(self._clips(optimizer))

    @property
    def can_stop(self) -> bool:
        """Whether `stop` ends the training."""
        return "stop" not in self.failed and bool(self._can_stop)
