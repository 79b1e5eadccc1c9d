"""What a response is, and what it can do to the run."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch.optim import Optimizer

from lightning_gradexplode.records import Finding, StepRecord

logger = logging.getLogger("lightning_gradexplode")


class ExplosionError(RuntimeError):
    """Training was ended because it explodes.

    Args:
        findings: The critical findings of the step, worst first.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        super().__init__("; ".join(str(finding) for finding in findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.findings,)


class Stateful(Protocol):
    """Anything whose state can be taken out and put back."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state in plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Seams(Protocol):
    """What a response may want of Lightning, and what Lightning has no public way for."""

    def log_folder(self) -> Path:
        """Give the folder of the run's logs; to be asked on every process."""

    def save_nothing_now(self) -> None:
        """Keep the trainer's ``ModelCheckpoint`` callbacks from saving until the next optimizer step."""


class ResponseContext:
    """The training run as a response sees it, at one step.

    Args:
        trainer: Lightning's trainer.
        module: The LightningModule.
        before_update: Whether the optimizer has yet to step, so that the update can still be held back.
        optimizer: The optimizer whose step it is; None where a response is told of a whole batch.
        record: What was measured of the step so far, None before the first one.
        memory: The monitor's own memory of the run (detectors and clip policies), which goes back with the weights.
        severity: Worst severity seen at this step, or in this batch, so far; 0 for none.
        seams: What only those who know Lightning can do.
        last_step: The step before the fit's first one, above -1 if the fit goes on from a checkpoint.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        before_update: bool,
        optimizer: Optimizer | None = None,
        record: StepRecord | None = None,
        memory: Stateful | None = None,
        severity: int = 0,
        seams: Seams | None = None,
        last_step: int = -1,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.before_update = before_update
        self.optimizer = optimizer
        self.record = record
        self.memory = memory
        self.severity = severity
        self._seams = seams
        self._last_step = last_step
        self.update_is_held_back = False

    @property
    def step(self) -> int:
        """The step that metrics are logged at; -1 before the very first one."""
        return self._last_step if self.record is None else self.record.step

    def hold_back_update(self) -> None:
        """Leave the weights and the optimizer's state as they are at this step, if it is not too late for that."""
        self.update_is_held_back = self.before_update

    def stop(self) -> None:
        """End the training cleanly after this batch."""
        self.trainer.should_stop = True

    def log_folder(self) -> Path:
        """Give the folder of the run's logs; to be asked on every process."""
        return Path(self.trainer.default_root_dir) if self._seams is None else self._seams.log_folder()

    def save_nothing_now(self) -> None:
        """Keep the trainer's ``ModelCheckpoint`` callbacks from saving until the next optimizer step."""
        if self._seams is not None:
            self._seams.save_nothing_now()

    def tell(self, message: str) -> None:
        """Say on the main process what is being done."""
        if self.trainer.is_global_zero:
            logger.warning("gradexplode at step %d: %s", self.step, message)


class Response(ABC):
    """Base class of what is done about an explosion: write `respond`, and of the other methods what is needed.

    All methods are called on every process alike, with the same findings and records. One that acts by what is the
    same on all processes therefore acts on all of them.

    Example:
        >>> class Shout(Response):
        ...     def respond(self, findings, run):
        ...         print(findings[0].sign.upper(), "!")
        ...         return False
    """

    only_speaks: ClassVar[bool] = False
    """Whether it does nothing to the run, so that the console does not name it among what responds."""

    @abstractmethod
    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool | None:
        """Act on the run; called at each step with a CRITICAL finding, and before its update where it is seen then.

        Args:
            findings: The critical findings of this step.
            run: The run, and what can be done to it.

        Returns:
            False if this response did nothing against the explosion, or has done what it can: then the next one in
            ``on_explosion`` responds at this step. Anything else ends the step's responses.
        """

    def started(self, run: ResponseContext) -> None:
        """Begin a fit; called before its first batch, and before `load_state_dict`."""

    def gradients_ready(self, run: ResponseContext, weight: float) -> None:
        """Add to the gradients of ``run.optimizer``, once they are complete and before they are measured and clipped.

        Args:
            run: The run.
            weight: What the gradient of a term of the loss has to be multiplied by: the AMP scale that the gradients
                in memory have, and the share of an accumulation window that is filled.
        """

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step, right before it."""

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what `step_begins` did; called also if the step failed."""

    def batch_ended(self, run: ResponseContext) -> None:
        """Look back at a batch in which an optimizer stepped, or was held back; ``run.severity`` tells how it went."""

    def ended(self) -> None:
        """End a fit, or the monitor's part in it."""

    def scalars(self) -> dict[str, float]:
        """Give what is logged with each record, by name without ``gradexplode/``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Give what has to survive a checkpoint, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
