"""The state of one optimizer of a run: its parameters, detectors, clip policy and the history of its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.clip import ClipPolicy, GuardedPolicy
from lightning_gradexplode.detect import Detector
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.engine.state import load_parts, save_parts
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.state import copied
from lightning_gradexplode.report import Recorder

CLIP_RATE_STEPS = 100
"""Number of steps that ``clip_rate`` is a share of."""


class OptimizerState:
    """One optimizer, with the state of its detectors, its clip policy and its history.

    Args:
        index: Its index in the training loop's list of optimizers.
        optimizer: The optimizer.
        detectors: The detectors; they are copied.
        policy: The clip policy; it is copied. None if the monitor does not clip.
        list_parameters: Lists the parameters of the optimizer.

    Attributes:
        steps: Number of its steps.
        evaluations: Number of times that gradients were computed within its last step.
        uncleared_evaluations: Largest number of evaluations of its closure within a step without clearing gradients.
        wraps_others: Whether it has another optimizer, which may make the update for it.
        changes_gradients: Whether the optimizer writes to its gradients, so that they are lost after its step.
        has_hooks: Whether the monitor is called before and after each step of the optimizer.
        is_on_host: Whether all its parameters, when last listed, are in host memory.
    """

    def __init__(
        self,
        index: int,
        optimizer: Optimizer,
        detectors: Sequence[Detector],
        policy: ClipPolicy | None,
        list_parameters: Callable[[Optimizer], ParameterSet],
    ) -> None:
        self.index = index
        self.optimizer = optimizer
        self.detectors = DetectorSet(detectors)
        self.policy = None if policy is None else GuardedPolicy(copied(policy))
        if self.policy is not None:
            self.policy.begin(optimizer)
        self.recorder = Recorder(())
        self.steps = 0
        self.evaluations = 1
        self.uncleared_evaluations = 0
        self.wraps_others = False
        self.changes_gradients = False
        self.has_hooks = True
        self.is_on_host = False
        self._clipped: deque[bool] = deque(maxlen=CLIP_RATE_STEPS)
        self._list_parameters = list_parameters
        self._parameters: ParameterSet | None = None

    def parameters(self) -> ParameterSet:
        """Return the optimizer's parameters, listed again after a group was added or a parameter was replaced."""
        if self._parameters is None or not self._parameters.is_current(self.optimizer):
            parameters = self._list_parameters(self.optimizer)
            if self._parameters is None:  # later lists are followed by the recorder itself, which keeps its steps
                self.recorder = Recorder(parameters.names)
            self._parameters, self.is_on_host = parameters, parameters.on_host
        return self._parameters

    @property
    def learning_rate(self) -> float | None:
        """The largest learning rate of the groups that can be read without waiting for a device; None without one."""
        largest: float | None = None
        for group in self.optimizer.param_groups:
            rate: Any = group.get("lr")
            if isinstance(rate, (int, float)) or _is_on_host(rate):
                largest = float(rate) if largest is None else max(largest, float(rate))
        return largest

    def clip_rate(self, threshold: float, size: float | None) -> float | None:
        """Record whether clipping changes this step's gradients, and return the share of recent steps where it did.

        Args:
            threshold: The clip value.
            size: The norm or the largest absolute value, depending on the algorithm; None if it was not measured.

        Returns:
            A share of the last `CLIP_RATE_STEPS` steps; None if this step's size is not known.
        """
        if size is None:
            return None
        self._clipped.append(not size <= threshold)
        return sum(self._clipped) / len(self._clipped)

    @property
    def was_clipped(self) -> bool:
        """Whether clipping changed the gradients of the last step."""
        return bool(self._clipped) and self._clipped[-1]

    def log_failures(self) -> None:
        """Log each detector that was switched off, or whose state could not be saved, since the last call."""
        while self.detectors.failures:
            sign, failure = self.detectors.failures.pop()
            logger.warning("gradexplode: the detector of %s %s", sign, failure)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later decisions depend on, in plain values."""
        parts = {"detectors": self.detectors} | ({} if self.policy is None else {"policy": self.policy})
        saved = save_parts(parts)
        self.log_failures()
        return {"steps": self.steps, "clipped": list(self._clipped), **saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the state that `state_dict` returned.

        Returns:
            A line for each part whose state does not fit and is not restored.
        """
        self.steps = int(state.get("steps", 0))
        self._clipped = deque((bool(one) for one in state.get("clipped", ())), maxlen=CLIP_RATE_STEPS)
        parts = {"detectors": self.detectors} | ({} if self.policy is None else {"policy": self.policy})
        return load_parts(parts, state)


def _is_on_host(rate: Any) -> bool:
    return isinstance(rate, Tensor) and rate.is_cpu and rate.numel() == 1
