"""The flight recorder."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.report.recorder import Recorder

NAMES = ("layer.weight", "layer.bias")


def filled(steps: int, size: int = 512) -> Recorder:
    """Record steps whose numbers tell their step."""
    recorder = Recorder(NAMES, size)
    for step in range(steps):
        recorder.add(
            StepRecord(
                step=step,
                parameters=NAMES,
                loss=step / 2,
                grad_norm=float(step),
                clip_val=1.5,
                per_parameter={"grad_norm": np.array([step, 2.0 * step])},
            )
        )
    return recorder


@pytest.mark.parametrize("steps", [0, 1, 511, 512, 513, 1300])
def test_the_last_steps_are_kept_oldest_first(steps: int) -> None:
    """Of any number of steps the last 512 are there, in their order, with all that was recorded of each."""
    arrays = filled(steps).arrays()
    kept = np.arange(max(0, steps - 512), steps)
    np.testing.assert_array_equal(arrays["step"], kept)
    np.testing.assert_array_equal(arrays["loss"], kept / 2)
    np.testing.assert_array_equal(arrays["grad_norm"], kept)
    np.testing.assert_array_equal(arrays["clip_val"], np.full(len(kept), 1.5))
    np.testing.assert_array_equal(arrays["parameter_grad_norm"], np.stack([kept, 2 * kept], axis=1))
    assert arrays["parameter"].tolist() == list(NAMES)


@pytest.mark.parametrize(("parameters", "kept"), [(1, 512), (256, 512), (1000, 131), (100_000, 32)])
def test_many_parameters_are_remembered_for_fewer_steps(parameters: int, kept: int) -> None:
    """Memory stays within half a megabyte, but for models of which that is nothing."""
    recorder = Recorder([str(index) for index in range(parameters)])
    for step in range(600):
        recorder.add(StepRecord(step=step))
    assert len(recorder.arrays()["step"]) == kept


def test_bad_steps_are_kept_as_they_are() -> None:
    """NaN and infinity are what a report is about; what was not measured is NaN, and huge norms stay finite."""
    recorder = Recorder(NAMES)
    norms = np.array([math.nan, math.inf])
    recorder.add(StepRecord(step=0, loss=math.inf, grad_norm=math.nan, per_parameter={"grad_norm": norms}))
    recorder.add(StepRecord(step=1))
    recorder.add(StepRecord(step=2, grad_norm=1e300, per_parameter={"grad_norm": np.array([1e300, 0.0])}))
    arrays = recorder.arrays()
    assert arrays["loss"][0] == math.inf
    assert np.isnan(arrays["grad_norm"][:2]).all()
    assert arrays["grad_norm"][2] == 1e300
    np.testing.assert_array_equal(arrays["parameter_grad_norm"][:2], [norms, [math.nan, math.nan]])
    assert np.isfinite(arrays["parameter_grad_norm"][2]).all()
    assert arrays["parameter_grad_norm"][2, 0] > 1e38
