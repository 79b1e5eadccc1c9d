"""The alarm rules of other tools, with their own defaults, over the same records as ours; here of loss and total norm.

Each is written from the tool's documentation or source, at what it would have seen; where a rule reads something that
our records do not hold, the nearest quantity stands for it, and the class says so. A rule is asked at each step and
answers whether it would raise an alarm; one object serves one optimizer of one run.
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


class Peer(ABC):
    """A rule of another tool: set `name` and write `alarms`."""

    name: ClassVar[str]

    @abstractmethod
    def alarms(self, record: StepRecord) -> bool:
        """Return whether the rule raises an alarm at a step."""


class NotANumber(Peer):
    """Lightning's TerminateOnNaN and Composer's NaNMonitor: the loss or a weight is NaN or infinite."""

    name = "NaN only"

    def alarms(self, record: StepRecord) -> bool:
        """Look for non-finite numbers."""
        bad_loss = record.loss is not None and not math.isfinite(record.loss)
        return bad_loss or bool(record.nonfinite_weights)


class NormAboveOne(Peer):
    """The gradient norm is above 1: the clip value of most recipes, read as an alarm."""

    name = "norm > 1"
    limit = 1.0

    def alarms(self, record: StepRecord) -> bool:
        """Compare the norm, a NaN being above all limits."""
        return record.grad_norm is not None and not record.grad_norm <= self.limit


class NormAboveHundred(NormAboveOne):
    """The gradient norm is above 100."""

    name = "norm > 100"
    limit = 100.0


class LightningSpike(Peer):
    """Lightning Fabric's own SpikeDetection, asked as its callback asks it: window 10, relative tolerance 2."""

    name = "Lightning SpikeDetection"

    def __init__(self) -> None:
        self._rule = SpikeDetection()
        self._asked = 0

    def alarms(self, record: StepRecord) -> bool:
        """Ask about the loss, and let it remember losses that are no spikes."""
        if record.loss is None:
            return False
        loss = torch.tensor(record.loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spike = self._asked >= self._rule.warmup and bool(self._rule._is_spike(loss))
            if not spike:
                self._rule._update_stats(loss)
        self._asked += 1
        return spike


class SixSigma(Peer):
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


class ZClip(Peer):
    """ZClip's z-score: above 2.5, by moving averages (0.97) of mean and variance, after 25 steps of warm-up.

    As in ZClip, a value above the limit enters the averages clipped, to mean + z * deviation / (score / z).
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


class TenTimesLargest(Peer):
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


PEERS: tuple[type[Peer], ...] = (
    NotANumber,
    NormAboveOne,
    NormAboveHundred,
    LightningSpike,
    SixSigma,
    ZClip,
    TenTimesLargest,
)
