"""Steps as detectors see them, made of plain sequences of numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from lightning_gradexplode.detect import Detector
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import Finding, StepRecord

PARAMETERS = ("first", "second", "third")

RUN_STEPS = 40
"""Length of a drawn run: long enough to fill every history."""


def record(step: int, **fields: Any) -> StepRecord:
    """Build a step of a healthy run in which everything was measured, with other values of some fields."""
    healthy = StepRecord(
        step=step,
        parameters=PARAMETERS,
        loss=1.0,
        grad_norm=1.0,
        grad_max=0.1,
        nonfinite_count=0,
        weight_norm=10.0,
        update_ratio=1e-3,
        nonfinite_weights=0,
        per_parameter={"grad_norm": np.full(3, 3**-0.5), "share_above_one": np.zeros(3)},
    )
    return replace(healthy, **fields)


def series(field: str, values: Iterable[float], **fields: Any) -> list[StepRecord]:
    """Build steps in which one field takes these values in turn."""
    return [record(step, **{field: value}, **fields) for step, value in enumerate(values)]


def findings_of(detector: Detector, records: Iterable[StepRecord]) -> list[Finding]:
    """Return the findings of a detector in steps."""
    return [finding for one in records if (finding := detector.check(one)) is not None]


def begin_all(detectors: DetectorSet, records: Iterable[StepRecord]) -> list[Finding]:
    """Return the findings of a set of detectors in steps, before the updates."""
    return [finding for one in records for finding in detectors.check_before_update(one)]


def noise(size: int, scatter: float = 0.2, seed: int = 0) -> list[float]:
    """Draw stationary log-normal numbers around 1.0."""
    return [float(value) for value in np.exp(np.random.default_rng(seed).normal(0.0, scatter, size))]


def through_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """Save a state and load it with ``weights_only=True``."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def numbers_in(state: Any) -> list[float]:
    """List every number in a nested state."""
    if isinstance(state, dict):
        return [number for value in state.values() for number in numbers_in(value)]
    if isinstance(state, (list, tuple)):
        return [number for value in state for number in numbers_in(value)]
    return [float(state)] if isinstance(state, (int, float)) else []


wild_numbers = st.one_of(
    st.floats(0.01, 100.0),
    st.floats(0.0, 1e30),
    st.sampled_from([math.nan, math.inf, 0.0, 1e-300]),
)


@st.composite
def wild_runs(draw: st.DrawFn, steps: int = RUN_STEPS) -> Sequence[StepRecord]:
    """Draw a run in which anything may happen at any step."""
    norms = draw(st.lists(wild_numbers, min_size=steps, max_size=steps))
    losses = draw(st.lists(st.one_of(wild_numbers, st.floats(-10.0, 0.0)), min_size=steps, max_size=steps))
    ratios = draw(st.lists(wild_numbers, min_size=steps, max_size=steps))
    return [
        record(
            step,
            loss=loss,
            grad_norm=norm,
            nonfinite_count=0 if math.isfinite(norm) else 1,
            update_ratio=ratio,
            weight_norm=ratio,
            nonfinite_weights=0 if math.isfinite(ratio) else 1,
            per_parameter={"grad_norm": np.array([norm, ratio, 1.0]), "share_above_one": np.array([0.0, 1.0, 0.5])},
        )
        for step, (norm, loss, ratio) in enumerate(zip(norms, losses, ratios, strict=True))
    ]
