"""One optimizer of a run, under watch: its parameters, and the memory that judges its steps."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_gradexplode.clip import ClipPolicy, GuardedPolicy
from lightning_gradexplode.detect import Detector
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.distributed.process_group import ProcessGroup
from lightning_gradexplode.measure.parameters import ParameterSet, parameters_of
from lightning_gradexplode.report import Recorder

logger = logging.getLogger("lightning_gradexplode")

_REMEMBERED = 100


class OptimizerState:
    """What belongs to one optimizer: names of its parameters, detectors, clip policy and recorder.

    Args:
        index: Its place in ``trainer.optimizers``.
        optimizer: The optimizer.
        detectors: Copied.
        policy: Copied; None if the monitor does not clip.

    Attributes:
        steps: Number of its steps.
        changes_gradients: Whether it was seen to write to its gradients, so that they are not there after its step.
    """

    def __init__(
        self, index: int, optimizer: Optimizer, detectors: Sequence[Detector], policy: ClipPolicy | None
    ) -> None:
        self.index = index
        self.optimizer = optimizer
        self.bank = DetectorSet(detectors)
        self.policy = None if policy is None else GuardedPolicy(copy.deepcopy(policy))
        if self.policy is not None:
            self.policy.begin(optimizer)
        self.recorder = Recorder(())
        self.steps = 0
        self.changes_gradients = False
        self._bound: list[bool] = []
        self._parameters: ParameterSet | None = None

    def parameters(
        self, module: nn.Module, include: Sequence[str], exclude: Sequence[str], world: ProcessGroup
    ) -> ParameterSet:
        """Return the optimizer's parameters; they are listed anew when a group was added, or a parameter replaced."""
        if self._parameters is None or not self._parameters.is_current(self.optimizer):
            self._parameters = parameters_of(self.optimizer, module, include, exclude, world)
            self.recorder = Recorder(self._parameters.names)
        return self._parameters

    def clip_rate(self, threshold: float, size: float | None) -> float | None:
        """Note whether clipping changes this step's gradients, and give the share of recent steps where it did.

        Args:
            threshold: The clip value.
            size: What is compared with it: the norm, or the largest absolute value; None if it was not measured.

        Returns:
            A share of the last 100 steps; None if this step's size is not known.
        """
        if size is None:
            return None
        self._bound = [*self._bound[-_REMEMBERED + 1 :], not size <= threshold]
        return sum(self._bound) / len(self._bound)

    @property
    def bound_last(self) -> bool:
        """Whether clipping changed the gradients of the last step."""
        return bool(self._bound) and self._bound[-1]

    def state_dict(self) -> dict[str, Any]:
        """Give what later decisions depend on, in plain values."""
        return {
            "steps": self.steps,
            "bound": list(self._bound),
            "bank": self.bank.state_dict(),
            "policy": None if self.policy is None else self.policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.steps = state["steps"]
        self._bound = list(state["bound"])
        self.bank.load_state_dict(state["bank"])
        saved = state["policy"]
        if self.policy is not None and saved is not None:
            for name in self.policy.load_state_dict(saved):
                logger.warning("gradexplode: the state of %s does not fit and starts fresh", name)
