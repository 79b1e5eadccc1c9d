"""Timing of the monitor's hooks, of the trainer's clipping, and of other functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytorch_lightning as pl

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.measure.module_gradients import ModuleGradientProbe

HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


OPTIMIZER_HOOKS = ("before_step", "after_step")
"""Methods of the engine that are hooks of the optimizer."""


class Timings(dict[str, list[float]]):
    """Seconds per step, by name of the timed function."""

    def add(self, name: str, seconds: float) -> None:
        """Record the seconds of one step."""
        self.setdefault(name, []).append(seconds)

    def merge(self, run: Timings) -> None:
        """Add the times of one run, without those of its first steps."""
        for name, seconds in run.items():
            self.setdefault(name, []).extend(seconds[len(seconds) // 10 :])

    def time(self, name: str, work: Callable[[], Any]) -> None:
        """Call a function, and record its duration."""
        begin = time.perf_counter()
        work()
        self.add(name, time.perf_counter() - begin)


class TimedMonitor(GradientExplosionMonitor):
    """The monitor with a timer around all its hooks of a step, including those on modules.

    Args:
        timings: Where the seconds go.
        name: Under which name.
        turns: Every how many steps to note them.
        arguments: The monitor's own.
    """

    def __init__(self, timings: Timings, name: str, turns: int = 1, **arguments: Any) -> None:
        super().__init__(report=False, **arguments)
        self.timings, self.name, self.turns = timings, name, turns
        self.spent, self.step = 0.0, 0
        for hook in HOOKS:
            setattr(self, hook, self._timed(getattr(self, hook), last=hook == "on_train_batch_end"))

    @property
    def state_key(self) -> str:
        """Return a different key for each monitor of a run."""
        return self.name

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Time the hooks within the forward and the backward pass, too."""
        guarded = ModuleGradientProbe._guarded

        def clocked(probe: ModuleGradientProbe, look: Callable[..., None]) -> Callable[..., None]:
            hook = guarded(probe, look)

            def timed(*args: Any) -> None:
                begin = time.perf_counter()
                hook(*args)
                self.spent += time.perf_counter() - begin

            return timed

        self.clocks = [mock.patch.object(ModuleGradientProbe, "_guarded", clocked)]
        self.clocks += [mock.patch.object(TrainingRun, hook, self._clocked(hook)) for hook in OPTIMIZER_HOOKS]
        for clock in self.clocks:
            clock.start()
        super().setup(*args, **kwargs)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Remove the timers from these hooks."""
        super().teardown(*args, **kwargs)
        for clock in self.clocks:
            clock.stop()

    def _clocked(self, name: str) -> Callable[..., Any]:
        hook = getattr(TrainingRun, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = hook(*args, **kwargs)
            self.spent += time.perf_counter() - begin
            return result

        return timed

    def _timed(self, hook: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = hook(*args, **kwargs)
            self.spent += time.perf_counter() - begin
            if last:
                if self.step % self.turns == 0:
                    self.timings.add(self.name, self.spent)
                self.spent, self.step = 0.0, self.step + 1
            return result

        return timed


class TimedClipping(pl.Callback):
    """Times the trainer's own clipping, and adds the time of the monitor's hooks if there is one.

    Args:
        timings: Where the seconds of each step go.
        name: Under which name.
        monitor: A monitor of the same run, whose hooks count as well.
    """

    def __init__(self, timings: Timings, name: str, monitor: TimedMonitor | None = None) -> None:
        self.timings, self.name, self.monitor = timings, name, monitor
        self.spent = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time the precision plugin's clipping."""
        clip = trainer.precision_plugin.clip_gradients

        def timed(*args: Any, **kwargs: Any) -> None:
            begin = time.perf_counter()
            clip(*args, **kwargs)
            self.spent += time.perf_counter() - begin

        trainer.precision_plugin.clip_gradients = timed  # type: ignore[method-assign]

    def on_train_batch_end(self, *args: Any) -> None:
        """Record the step; this callback is called after the monitor."""
        hooks = 0.0 if self.monitor is None else self.monitor.timings[self.monitor.name][-1]
        self.timings.add(self.name, self.spent + hooks)
        self.spent = 0.0


class WholeSteps(pl.Callback):
    """Times whole steps, from the end of one to that of the next.

    Args:
        timings: Where the seconds of each step go.
        name: Under which name.
    """

    def __init__(self, timings: Timings, name: str) -> None:
        self.timings, self.name = timings, name
        self.ended: float | None = None

    def on_train_batch_end(self, *args: Any) -> None:
        """Record the step; this callback is called after all others."""
        now = time.perf_counter()
        if self.ended is not None:
            self.timings.add(self.name, now - self.ended)
        self.ended = now
