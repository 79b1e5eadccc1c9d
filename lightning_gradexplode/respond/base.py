"""The base class of responses, and what a response can do to the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import nn
from torch.optim import Optimizer

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records import Finding, StepRecord
from lightning_gradexplode.respond.action_log import ActionLog


class ExplosionError(RuntimeError):
    """Training was ended because of an explosion.

    Args:
        findings: The critical findings of the step, worst first.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        super().__init__("; ".join(str(finding) for finding in findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.findings,)


class Memory(Protocol):
    """The state of detectors and clip policies, which is restored together with the weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore what `state_dict` returned."""

    def largest_step_sizes(self) -> list[float | None]:
        """Return the largest learning rate of the last steps, of each clip policy that changes it, else None."""

    def limit_step_sizes(self, sizes: Sequence[float | None]) -> None:
        """Keep the learning rates of later steps below these, one for each optimizer."""


class ResponseContext:
    """The state of the run at one step, and the actions of a response; the argument ``run`` of `Response.respond`.

    Args:
        loop: The training loop.
        before_update: Whether the optimizer has not stepped yet, so that the update can still be held back.
        optimizer: The optimizer of the step; None where a hook is about a whole batch.
        record: The measurements of the step so far, None before the first step.
        memory: The state of detectors and clip policies, which a rollback restores.
        severity: Worst severity at this step, or in this batch, so far; 0 for none.
        last_step: The step before the fit's first one, above -1 in a resumed fit.
        log: Where actions are logged.

    Attributes:
        action_log: Where actions are logged.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        before_update: bool = False,
        optimizer: Optimizer | None = None,
        record: StepRecord | None = None,
        memory: Memory | None = None,
        severity: int = 0,
        last_step: int = -1,
        log: ActionLog | None = None,
    ) -> None:
        self.loop = loop
        self.before_update = before_update
        self.optimizer = optimizer
        self.record = record
        self.memory = memory
        self.severity = severity
        self.response = "on_explosion"
        self.findings: Sequence[Finding] = ()
        self.skipped_by: str | None = None
        self._last_step = last_step
        self.action_log = ActionLog() if log is None else log

    @property
    def trainer(self) -> Any:
        """Lightning's trainer; None in other training loops."""
        return self.loop.trainer

    @property
    def module(self) -> Any:
        """The model: the LightningModule under Lightning, else an ``nn.Module``."""
        module: nn.Module = self.loop.module
        return module

    @property
    def step(self) -> int:
        """The step that metrics are logged at; -1 before the first one."""
        return self._last_step if self.record is None else self.record.step

    @property
    def is_resumed(self) -> bool:
        """Whether there were steps before this fit."""
        return self._last_step >= 0

    @property
    def update_is_held_back(self) -> bool:
        """Whether the optimizer's update of this step will be skipped."""
        return self.skipped_by is not None

    @property
    def cause(self) -> str:
        """Sign and place of the first of the findings that are responded to."""
        return next(iter(map(_short, self.findings)), "an explosion")

    def hold_back_update(self, reason: str = "") -> None:
        """Skip the optimizer's update of this step, unless it has been applied already.

        Args:
            reason: The reason to log; by default the first finding that the response acts on.
        """
        if self.before_update and self.skipped_by is None:
            self.skipped_by = f"{self.response}: {reason or self.cause}"

    def stop(self, reason: str = "") -> None:
        """End training after this batch. Log the reason, and any minimum training length of the loop.

        Args:
            reason: The reason, in addition to the first finding that is responded to.
        """
        why = " because of " + str(self.findings[0]) if self.findings else ""
        why = f": {reason},{why}" if reason else why
        by = f" by {self.response}"
        if self.loop.can_stop:
            self.loop.stop()
        if not self.loop.can_stop:  # also if it has just failed
            self.action_log.once(self, "stop", f"this training loop cannot be stopped{by}; end it yourself{why}")
            return
        until = self.loop.minimum_training
        but = f"; it goes on until {until} is reached, and updates at critical findings are held back" if until else ""
        self.action_log.once(self, "stop", f"training is stopped{by}{why}{but}")

    def log_action(self, action: str, detail: str, once: bool = False) -> None:
        """Log what a response does, refuses or ends, with the reason.

        Args:
            action: The kind of action, such as ``"skip"`` or ``"rollback"``.
            detail: The action and its reason in one sentence.
            once: Whether this is logged once per incident and response.
        """
        if once:
            self.action_log.once(self, action, detail)
        else:
            self.action_log.add(self, action, detail)

    def log_folder(self) -> Path:
        """Return the folder of the run's logs. Call it on every process."""
        return self.loop.log_folder()

    def on_all_processes(self, *flags: bool) -> list[tuple[bool, ...]]:
        """Return flags of all processes, one tuple per process. A collective call."""
        gathered = self.loop.process_group.gather(np.array(flags, dtype=np.float64))
        return [tuple(bool(flag) for flag in row) for row in gathered]


class Response(ABC):
    """Base class of responses to explosions: implement `respond`, and the other methods as needed.

    All methods are called on every process, with the same findings and records.

    Example:
        >>> class Count(Response):
        ...     is_remedy = False
        ...     def __init__(self):
        ...         self.steps = 0
        ...     def respond(self, findings, run):
        ...         self.steps += 1
        ...         return False
    """

    only_warns: ClassVar[bool] = False
    """Whether it never changes the run, so that findings need not be known before the update."""

    always_acts: ClassVar[bool] = False
    """Whether it acts at each CRITICAL finding, so that no response after it is called."""

    is_remedy: bool = True
    """Whether it acts against an explosion. Once such a response is configured, no non-finite update reaches the
    weights: if no response acts, the update is skipped and training stops."""

    @abstractmethod
    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool | None:
        """Act on the run. Called at each step with a CRITICAL finding, before the update if it is known then.

        Args:
            findings: The critical findings of this step.
            run: The state of the run, and the actions that change it.

        Returns:
            False if this response does nothing against the explosion, or nothing more: then the next one in
            ``on_explosion`` responds at this step. True or None ends the responses of the step.
        """

    def started(self, run: ResponseContext) -> None:
        """Begin a fit. Called before its first batch, and before `load_state_dict`."""

    def gradients_ready(self, run: ResponseContext, weight: float) -> None:
        """Add to the gradients of ``run.optimizer``, once they are complete and before they are measured and clipped.

        Args:
            run: The run.
            weight: Factor for the gradient of a term of the loss: the AMP scale that the gradients in memory have,
                times the share of an accumulation window that is filled.
        """

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step, right before it."""

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what `step_begins` did. Called even if the step failed."""

    def batch_ended(self, run: ResponseContext) -> None:
        """Finish a batch in which an optimizer stepped or was held back; ``run.severity`` is the worst of the batch."""

    def ended(self) -> None:
        """End a fit, or the monitor's part in it."""

    def scalars(self) -> dict[str, float]:
        """Return scalars to log with each record, by name without ``gradexplode/``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Restore what `state_dict` returned."""


def _short(finding: Finding) -> str:
    return f"{finding.sign} in {finding.where}" if finding.where else finding.sign
