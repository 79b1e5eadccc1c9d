"""What is kept of the beginning of a step, so that it can be computed again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay import AttributeState, KeptBatch, RandomState, keep_weights
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.hosts.base import TrainingLoop


class StepInputs(NamedTuple):
    """What a step needs to be computed again.

    Args:
        batch: Its last micro-batch.
        batch_idx: Index of that in the epoch.
        is_last: Whether that is the last batch of the epoch.
        random_state: The state of the random number generators before it.
        attributes: Numbers and generators of the module before it.
        weights: Copies of the weights before it, None where none were kept.
    """

    batch: KeptBatch
    batch_idx: int
    is_last: bool
    random_state: RandomState | None = None
    attributes: AttributeState | None = None
    weights: Mapping[str, Tensor] | None = None


class StepInputKeeper:
    """Keeps the inputs of each step before it begins.

    Args:
        loop: The training loop.
        states: The optimizers.

    Attributes:
        current: The inputs of the current step, None between two steps.
        step_seconds: The time that a step takes.
    """

    def __init__(self, loop: TrainingLoop, states: Sequence[OptimizerState]) -> None:
        self.current: StepInputs | None = None
        self.step_seconds = 0.0
        self._failed: StepInputs | None = None
        self._loop = loop
        self._states = states
        self._devices: tuple[torch.device, ...] | None = None
        self._batch_began: float | None = None
        self._steps_before: list[int] = []

    def keep(self, batch: Any, batch_idx: int, *, for_replay: bool, after_warning: bool, with_weights: bool) -> None:
        """Keep the inputs of the coming step.

        Args:
            batch: Its batch.
            batch_idx: Index of the batch in the epoch.
            for_replay: Whether it may be computed again; else only the batch is kept.
            after_warning: Whether there were findings in this run; then the states of all generators are kept.
            with_weights: Whether the weights are kept, within a budget, so that a fault that is found after the update
                can be replayed.
        """
        now = time.perf_counter()
        if self._batch_began is not None:
            # The shortest recent time is used, so that waiting times of the loop are excluded.
            self.step_seconds = min(now - self._batch_began, 1.1 * self.step_seconds or 1e9)
        self._batch_began = now
        if not self._loop.is_automatic:
            self._steps_before = self._steps()
        is_last = self._loop.is_last_batch
        if not for_replay:
            self.current = StepInputs(KeptBatch(batch), batch_idx, is_last)
            return
        module = self._loop.module
        if self._devices is None:
            devices = {parameter.device for parameter in module.parameters()}
            self._devices = tuple(device for device in devices if device.type != "cpu")
        random_state = RandomState.capture(self._devices, everything=after_warning)
        attributes = AttributeState(module, everything=after_warning)
        weights = collect_or_log("the weights", lambda: keep_weights(module)) if with_weights else None
        self.current = StepInputs(KeptBatch(batch), batch_idx, is_last, random_state, attributes, weights)

    def micro_batch_ended(self, loss: float | None) -> None:
        """Keep the first micro-batch of a step whose loss is not finite.

        Args:
            loss: Its loss; None if it is not known, or on an accelerator, for which the host would wait.
        """
        if self._failed is None and loss is not None and not math.isfinite(loss):
            self._failed = self.current

    def take_of_step(self) -> StepInputs | None:
        """Return the inputs to compute the ending step again: those of a failed micro-batch, else of the last one."""
        failed, self._failed = self._failed, None
        return failed or self.current

    def stepped(self) -> dict[int, int]:
        """Return how often the optimizer at each place has stepped since the batch began, in manual optimization."""
        pairs = zip(self._steps(), self._steps_before, strict=False)
        return {place: now - before for place, (now, before) in enumerate(pairs)}

    def _steps(self) -> list[int]:
        """Return the number of steps of each optimizer."""
        return [state.steps for state in self._states]
