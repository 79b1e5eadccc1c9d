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
        self.trainer = loop.trainer
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

    # Optional members.

    gradients_may_differ = _guarded("gradients_may_differ")
    epoch = _guarded("epoch")
    batches_per_epoch = _guarded("batches_per_epoch")
    is_last_batch = _guarded("is_last_batch")
    settings = _guarded_call("settings")
    may_change_gradients = _guarded("may_change_gradients", True)
    removes_gradients = _guarded("removes_gradients")
    may_step_unseen = _guarded("may_step_unseen")
    overrides_clipping = _guarded("overrides_clipping", True)
    set_clip = _guarded_call("set_clip", None)
    restore_clip = _guarded_call("restore_clip")
    use_measured_norm = _guarded_call("use_measured_norm")
    first_step = _guarded("first_step")
    log_every_n_steps = _guarded("log_every_n_steps")
    loggers = _guarded("loggers")
    publish_metrics = _guarded_call("publish_metrics")
    logged_scalars = _guarded_call("logged_scalars")
    returned_loss = _guarded_call("returned_loss", None)
    report_folder = _guarded_call("report_folder", None)
    run_name = _guarded("run_name")
    run_id = _guarded("run_id")
    stop = _guarded_call("stop")
    minimum_training = _guarded("minimum_training")
    schedulers = _guarded("schedulers")
    averaged_modules = _guarded("averaged_modules")
    weight_averages = _guarded("weight_averages")
    can_save_checkpoints = _guarded("can_save_checkpoints")
    block_checkpoints = _guarded_call("block_checkpoints")
    data_loader = _guarded("data_loader")
    can_replay = _guarded("can_replay")

    _clips = _guarded_call("clips")
    _can_stop = _guarded("can_stop")

    def clips(self, optimizer: Any) -> bool:
        """Return whether the loop clips an optimizer's gradients, and takes the value to clip by."""
        return "set_clip" not in self.failed and bool(self._clips(optimizer))

    @property
    def can_stop(self) -> bool:
        """Whether `stop` ends the training."""
        return "stop" not in self.failed and bool(self._can_stop)
