"""What a response is, and what it can do to the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradexplode.records import Finding


class ExplosionError(RuntimeError):
    """Training was ended because it explodes.

    Args:
        findings: The critical findings of the step, worst first.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        super().__init__("; ".join(describe(finding) for finding in findings))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.findings,)


class Run:
    """The training run as a response sees it, at one step.

    Args:
        trainer: Lightning's trainer.
        module: The LightningModule.
        before_update: Whether the optimizer has yet to step, so that the update can still be held back.
    """

    def __init__(self, trainer: Any, module: Any, before_update: bool) -> None:
        self.trainer = trainer
        self.module = module
        self.before_update = before_update
        self.update_is_held_back = False

    def hold_back_update(self) -> None:
        """Leave the weights and the optimizer's state as they are at this step, if it is not too late for that."""
        self.update_is_held_back = self.before_update

    def stop(self) -> None:
        """End the training cleanly after this batch."""
        self.trainer.should_stop = True


class Response(ABC):
    """Base class of what is done about an explosion: write `respond`.

    Example:
        >>> class Shout(Response):
        ...     def respond(self, findings, run):
        ...         print(findings[0].sign.upper(), "!")
    """

    @abstractmethod
    def respond(self, findings: Sequence[Finding], run: Run) -> None:
        """Act on the run; called at each step with a CRITICAL finding, on every process alike.

        Args:
            findings: The critical findings of this step.
            run: The run, and what can be done to it.
        """

    def state_dict(self) -> dict[str, Any]:
        """Give what has to survive a checkpoint, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most responses remember nothing)
        """Take back what `state_dict` gave."""


def describe(finding: Finding) -> str:
    """Tell what was found, where and when, in one line."""
    where = f" in {finding.where}" if finding.where else ""
    return f"{finding.sign}{where} at step {finding.step}: {finding.message}"
