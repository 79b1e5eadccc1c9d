"""What travels between the rooms of the package: plain, frozen records.

A record holds numbers and names only, never a tensor or a trainer, so that detectors, publishers and reports can be
written and tested with nothing else at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records.module_gradients import FloatArray as FloatArray
from lightning_gradexplode.records.module_gradients import ModuleGradients as ModuleGradients

IntArray = npt.NDArray[np.int64]


class Severity(IntEnum):
    """How bad a finding is; the value is what ``gradexplode/severity`` logs (0 stands for no finding)."""

    INFO = 1
    """Worth knowing."""
    WARNING = 2
    """A sign of explosion that may pass."""
    CRITICAL = 3
    """The run is exploding or lost: left alone, it will not recover."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One symptom, seen at one step.

    Args:
        step: The step that other metrics are logged at: batches that stepped, from 0.
        sign: Name of the symptom, for example ``"gradient-growth"``.
        severity: How bad it is.
        where: Name of the parameter or module it was seen in, None if it belongs to the whole run.
        value: The number that was judged.
        limit: The number it was judged against.
        message: One sentence for people.
    """

    step: int
    sign: str
    severity: Severity
    where: str | None
    value: float
    limit: float
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Give the finding as a plain dictionary, the severity by its name."""
        return {
            "step": self.step,
            "sign": self.sign,
            "severity": self.severity.name,
            "where": self.where,
            "value": self.value,
            "limit": self.limit,
            "message": self.message,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """Build the finding back from what `as_dict` gave."""
        return cls(**{**plain, "severity": Severity[plain["severity"]]})


def _bucket_edges() -> FloatArray:
    """Give the borders of all buckets: every power of two a float32 can hold, and three points between each pair."""
    bits = np.arange(4, 1021, dtype=np.uint32) << 21
    positive = bits.view(np.float32).astype(np.float64)
    positive[-1] = np.inf
    return np.concatenate([-positive[::-1], positive])


BUCKET_EDGES: FloatArray = _bucket_edges()
"""The 2034 borders of the 2033 buckets that every histogram shares, ascending, from -inf to inf.

A bucket is a quarter of an octave: the borders are 2**e times 1, 1.25, 1.5 or 1.75. The middle bucket holds zero and
the subnormal numbers of float32, the outermost ones all that is too large for float32 and still finite.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values in buckets that are the same for every tensor, step and process, so that histograms add up.

    Args:
        counts: Number of finite values per bucket, shape ``(2033,)``, between neighbours of `BUCKET_EDGES`.
            A value on a border belongs to the bucket that lies farther from zero.
        nonfinite: Number of NaN and infinite values, which are in no bucket.
    """

    counts: IntArray
    nonfinite: int = 0

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, self.nonfinite + other.nonfinite)

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """Add up any number of histograms; of none, the empty histogram."""
        counts, nonfinite = np.zeros(len(BUCKET_EDGES) - 1, dtype=np.int64), 0
        for histogram in histograms:
            counts += histogram.counts
            nonfinite += histogram.nonfinite
        return cls(counts, nonfinite)

    @property
    def finite(self) -> int:
        """Number of finite values."""
        return int(self.counts.sum())

    def negated(self) -> Histogram:
        """Give the histogram of the same values with their signs turned."""
        return Histogram(self.counts[::-1].copy(), self.nonfinite)

    def share_at_least(self, border: float) -> float:
        """Give the share of values with ``abs(value) >= border``, non-finite ones included.

        Args:
            border: A positive member of `BUCKET_EDGES`, for example 1.0; there the share is exact.

        Raises:
            ValueError: The border lies inside a bucket.
        """
        index = int(np.searchsorted(BUCKET_EDGES, border))
        if border <= 0 or index >= len(BUCKET_EDGES) or BUCKET_EDGES[index] != border:
            raise ValueError(f"border must be a positive bucket edge, such as a power of two; got {border!r}")
        above = int(self.counts[index:].sum() + self.counts[: len(self.counts) - index].sum()) + self.nonfinite
        total = self.finite + self.nonfinite
        return above / total if total else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """What was measured of one optimizer step. A field is None where it was not measured (yet).

    Args:
        step: The step that other metrics are logged at: batches that stepped, from 0.
        batch_idx: Index of the batch in its epoch; of the one with the loss that is not finite, if there is one.
        rank: The process whose loss is not finite, in a run of several; else None.
        optimizer: Index of the optimizer in ``trainer.optimizers``.
        parameters: Names of the optimizer's parameters; every array in `per_parameter` is in this order.
        loss: The training loss, unscaled, its mean over the micro-batches and processes of the step.
        grad_norm: L2 norm of all gradients that the optimizer is handed, unscaled, before any clipping.
        grad_norm_clipped: The same after clipping.
        grad_max: Largest absolute value of any gradient element.
        nonfinite_count: Number of NaN and infinite gradient elements.
        clip_val: The clip value in force at this step, None without clipping.
        clip_algorithm: ``"norm"``, ``"value"``, or ``"tensor"`` where each tensor has a threshold of its own.
        clip_rate: Share of recent steps at which clipping changed the gradients.
        weight_norm: L2 norm of the weights after the step.
        weight_norm_before: The same before the step, of a run's first step and where the change was measured.
        weight_count: Number of weights, where their norm before the step is known.
        update_ratio: L2 norm of the weights' change over the L2 norm of the weights before the step.
        nonfinite_weights: Number of parameters with NaN or infinite elements after the step.
        loss_scale: The scale of the AMP gradient scaler, None without one.
        scale_adapts: True if that scaler lowers its scale when gradients overflow, and skips the step.
        per_parameter: Arrays of shape ``(len(parameters),)`` by the name of the quantity: ``grad_norm``, ``grad_max``,
            ``nonfinite_count``, ``share_above_one``, ``grad_norm_clipped``, ``weight_norm``, ``weight_norm_before``,
            ``update_ratio``.
        histograms: By quantity (``gradient``, ``update``, ``weight``), then by parameter name.
        nodes: Error gradients of nodes, of the steps at which histograms are due, and of the first one.
        severity: Worst severity seen at this step, 0 for none.
        skipped_steps: Number of updates that were held back so far.
        responses: What else the responses to explosions log, by name.
    """

    step: int
    batch_idx: int = 0
    rank: int | None = None
    optimizer: int = 0
    parameters: tuple[str, ...] = ()
    loss: float | None = None
    grad_norm: float | None = None
    grad_norm_clipped: float | None = None
    grad_max: float | None = None
    nonfinite_count: int | None = None
    clip_val: float | None = None
    clip_algorithm: str | None = None
    clip_rate: float | None = None
    weight_norm: float | None = None
    weight_norm_before: float | None = None
    weight_count: int | None = None
    update_ratio: float | None = None
    nonfinite_weights: int | None = None
    loss_scale: float | None = None
    scale_adapts: bool = False
    per_parameter: Mapping[str, FloatArray] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[str, Histogram]] = field(default_factory=dict)
    nodes: ModuleGradients | None = None
    severity: int = 0
    skipped_steps: int = 0
    responses: Mapping[str, float] = field(default_factory=dict)

    def largest(self, quantity: str) -> str | None:
        """Name the parameter in which a quantity of `per_parameter` is largest (NaN counts as larger than all)."""
        values = self.per_parameter.get(quantity)
        if values is None or len(values) == 0:
            return None
        return self.parameters[int(np.argmax(np.where(np.isnan(values), np.inf, values)))]

    def last_nonfinite(self, quantity: str) -> str | None:
        """Name the last parameter whose value of a quantity of `per_parameter` is NaN or infinite."""
        values = self.per_parameter.get(quantity)
        if values is None or np.isfinite(values).all():
            return None
        return self.parameters[int(np.flatnonzero(~np.isfinite(values))[-1])]

    def first_nonfinite(self, quantity: str) -> str | None:
        """Name the first parameter whose value of a quantity of `per_parameter` is NaN or infinite."""
        values = self.per_parameter.get(quantity)
        if values is None or np.isfinite(values).all():
            return None
        return self.parameters[int(np.argmax(~np.isfinite(values)))]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What was written about a run that explodes, for those who show it.

    Args:
        step: The step at which it was written.
        folder: Where all its files lie.
        page: The page to be read in a browser, one file that needs no other; None if there is none.
        diagnosis: What happened, where it began, since when, why, and what to do, in markdown.
        picture: The heat map of the gradient norms, layer by step, as a PNG file; empty if there is none.
    """

    step: int
    folder: Path
    page: Path | None = None
    diagnosis: str = ""
    picture: bytes = b""
