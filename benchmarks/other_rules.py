"""The alarm rules of other tools, with their defaults, for the same records as the monitor's detectors.

Each is implemented from the tool's documentation or source. If a rule needs a quantity that the records do not have, it
uses the most similar one, which its class documents. There is one object for each optimizer of a run.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from lightning_fabric.utilities.spike import SpikeDetection

from lightning_gradexplode import StepRecord
from lightning_gradexplode.records import FloatArray


class Rule(ABC):
    """Base class of a rule of another tool: define `name` and `alarms`."""

    name: ClassVar[str]

    @abstractmethod
    def alarms(self, record: StepRecord) -> bool:
        """Return whether the rule raises an alarm at a step."""


class NotANumber(Rule):
    """Lightning's TerminateOnNaN and Composer's NaNMonitor: the loss or a weight is NaN or infinite."""

    name = "NaN only"

    def alarms(self, record: StepRecord) -> bool:
        """Return whether a number is not finite."""
        bad_loss = record.loss is not None and not math.isfinite(record.loss)
        return bad_loss or bool(record.nonfinite_weights)


class NormAboveOne(Rule):
    """The gradient norm is above 1, a common clip value."""

    name = "norm > 1"
    limit = 1.0

    def alarms(self, record: StepRecord) -> bool:
        """Compare the norm with the limit; NaN is above it."""
        return record.grad_norm is not None and not record.grad_norm <= self.limit


class NormAboveHundred(NormAboveOne):
    """The gradient norm is above 100."""

    name = "norm > 100"
    limit = 100.0


class LightningSpike(Rule):
    """Lightning Fabric's SpikeDetection, called as by its callback: window 10, relative tolerance 2."""

    name = "Lightning SpikeDetection"

    def __init__(self) -> None:
        self._rule = SpikeDetection()
        self._steps = 0

    def alarms(self, record: StepRecord) -> bool:
        """Check the loss, and update its statistics with losses that are no spikes."""
        if record.loss is None:
            return False
        loss = torch.tensor(record.loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spike = self._steps >= self._rule.warmup and bool(self._rule._is_spike(loss))
            if not spike:
                self._rule._update_stats(loss)
        self._steps += 1
        return spike


class SixSigma(Rule):
    """OLMo-core's spike rule: the loss or norm is above the mean by six deviations of 128 steps, from 64 steps on."""

    name = "OLMo-core 6 sigma"

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []

    def alarms(self, record: StepRecord) -> bool:
        """Compare both with their histories."""
        loss = record.loss is not None and self._is_outside(self._losses, record.loss)
        norm = record.grad_norm is not None and self._is_outside(self._norms, record.grad_norm)
        return loss or norm

    @staticmethod
    def _is_outside(history: list[float], value: float) -> bool:
        last = np.array(history[-128:])
        history.append(value)
        with np.errstate(invalid="ignore", over="ignore"):
            return len(last) >= 64 and bool(value > last.mean() + 6 * last.std())


class ZClip(Rule):
    """ZClip's z-score: above 2.5, by moving averages (0.97) of mean and variance, after 25 steps of warm-up.

    As in ZClip, the averages are updated with the clipped value: mean + z * deviation / (score / z) above the limit.
    """

    name = "ZClip z > 2.5"

    def __init__(self) -> None:
        self._warmup: list[float] = []
        self._mean = 0.0
        self._variance = 0.0

    def alarms(self, record: StepRecord) -> bool:
        """Compare the norm's score with a limit."""
        norm = record.grad_norm
        if norm is None:
            return False
        if len(self._warmup) < 25:
            self._warmup.append(norm)
            with np.errstate(invalid="ignore", over="ignore"):
                self._mean, self._variance = float(np.mean(self._warmup)), float(np.var(self._warmup))
            return False
        deviation = math.sqrt(self._variance) if self._variance >= 0 else math.nan
        score = (norm - self._mean) / (deviation + 1e-6)
        taken = self._mean + 2.5 * deviation / (score / 2.5) if score > 2.5 else norm
        self._mean = 0.97 * self._mean + 0.03 * taken
        difference = taken - self._mean
        self._variance = 0.97 * self._variance + 0.03 * difference * difference
        return score > 2.5


class TenTimesLargest(Rule):
    """Megatron-LM's unexpected-result check: the norm is above ten times the largest of the first 100."""

    name = "Megatron 10 x max"

    def __init__(self) -> None:
        self._seen = 0
        self._largest = 0.0

    def alarms(self, record: StepRecord) -> bool:
        """Compare with the largest of the first steps."""
        if record.grad_norm is None:
            return False
        self._seen += 1
        if self._seen <= 100:
            self._largest = max(self._largest, record.grad_norm)
            return False
        return record.grad_norm > 10 * self._largest


class FirstOverLast(Rule):
    """AutoTrainer's exploding gradient: the first layer's gradient norm is above 70 times the last one's.

    The first and the last weight are used for the layers: parameters named ``weight``, or all if there are none.
    """

    name = "AutoTrainer ratio > 70"

    def alarms(self, record: StepRecord) -> bool:
        """Compare the first and the last layer."""
        norms = layer_norms(record)
        if len(norms) < 2:
            return False
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = norms[0] / norms[-1]
        return bool(not ratio <= 70) and bool(norms[0] != 0)


class DeepChecker(Rule):
    """TheDeepChecker: the mean absolute gradient is above 1e6, or four layer-to-layer ratios in a row are 2 or more.

    Records have norms and not means: the norm of a parameter, which is never below the mean, is used for it. Ratios are
    taken from the last layer to the first.
    """

    name = "TheDeepChecker"

    def alarms(self, record: StepRecord) -> bool:
        """Compare the norms, then the ratios."""
        norms = layer_norms(record)
        if (norms > 1e6).any():
            return True
        backwards = norms[::-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            steep = backwards[1:] / backwards[:-1] >= 2
        return any(steep[start : start + 4].all() for start in range(len(steep) - 3))


class UpdateRatio(Rule):
    """SageMaker Debugger's WeightUpdateRatio: the ratio of a weight's change to its norm is above 10 or below 1e-8."""

    name = "SageMaker update ratio"

    def alarms(self, record: StepRecord) -> bool:
        """Compare the ratios of all weights that have a gradient."""
        ratios = record.per_parameter.get("update_ratio", np.empty(0))
        used = ratios[record.per_parameter.get("grad_norm", ratios) != 0] if len(ratios) else ratios
        return bool(((used > 10) | (used < 1e-8)).any())


class Vanishing(Rule):
    """SageMaker Debugger's VanishingGradient: a tensor's mean absolute gradient is below 1e-7.

    The norm, which is never below the mean, is used for it.
    """

    name = "SageMaker vanishing"

    def alarms(self, record: StepRecord) -> bool:
        """Compare the norms with the limit."""
        norms = record.per_parameter.get("grad_norm", np.empty(0))
        return bool((norms < 1e-7).any())


def layer_norms(record: StepRecord) -> FloatArray:
    """Return the gradient norms of the layers, first to last: of parameters named ``weight`` if there are any."""
    norms = record.per_parameter.get("grad_norm", np.empty(0))
    chosen = [place for place, name in enumerate(record.parameters) if "weight" in name.rsplit(".", 1)[-1]]
    return norms[chosen] if chosen else norms


RULES: tuple[type[Rule], ...] = (
    NotANumber,
    NormAboveOne,
    NormAboveHundred,
    LightningSpike,
    SixSigma,
    ZClip,
    TenTimesLargest,
    FirstOverLast,
    DeepChecker,
    UpdateRatio,
    Vanishing,
)
