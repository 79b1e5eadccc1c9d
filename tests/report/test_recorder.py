"""Recording of steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.records import History, StepRecord
from lightning_gradexplode.report.recorder import Recorder

NAMES = ("layer.weight", "layer.bias")
MANY = tuple(f"layer{index}" for index in range(1000))


def filled(steps: int, size: int = 512) -> Recorder:
    """Record steps whose numbers follow from their step."""
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
    history = filled(steps).history()
    kept = np.arange(max(0, steps - 512), steps)
    np.testing.assert_array_equal(history.step, kept)
    np.testing.assert_array_equal(history.values["loss"], kept / 2)
    np.testing.assert_array_equal(history.values["grad_norm"], kept)
    np.testing.assert_array_equal(history.values["clip_val"], np.full(len(kept), 1.5))
    np.testing.assert_array_equal(history.parameter_grad_norm, np.stack([kept, 2 * kept], axis=1))
    assert history.parameters == NAMES


@pytest.mark.parametrize("later", [0, 31, 32, 33, 63, 64, 500])
def test_the_steps_before_an_incident_are_kept_however_many_follow(later: int) -> None:
    """At least half as many as fit into the memory, until another incident is seen."""
    recorder = filled(100, size=64)
    recorder.incident_seen()
    for step in range(100, 100 + later):
        recorder.add(StepRecord(step=step, parameters=NAMES, loss=math.nan))
    kept = recorder.until(99)
    assert kept.step[-1] == 99
    assert len(kept.step) >= 32
    np.testing.assert_array_equal(kept.values["loss"], kept.step / 2)
    assert recorder.history().step[-1] == 99 + later
    recorder.incident_seen()
    assert recorder.until(99 + later).step[-1] == 99 + later


@pytest.mark.parametrize("second", [0, 20, 40])
def test_the_beginning_of_an_incident_that_goes_on_is_kept(second: int) -> None:
    """Its steps are there at a later finding, in their order, also where later ones have taken their place."""
    recorder = Recorder(NAMES, 64)
    for step in range(150):
        recorder.add(
            StepRecord(step=step, parameters=NAMES, loss=float(step), logged={"late": 1.0} if step > 90 else {})
        )
        if step in (60, 60 + second, 140):
            recorder.incident_seen(is_new=step == 60)
    history = recorder.from_onset()
    np.testing.assert_array_equal(history.step, np.arange(history.step[0], 150))
    np.testing.assert_array_equal(history.values["loss"], history.step)
    np.testing.assert_array_equal(np.isnan(history.values["logged/late"]), history.step <= 90)
    assert history.step[0] <= 60
    assert history.parameter_grad_norm.shape == (len(history.step), 2)
    for step in range(150, 400):
        recorder.add(StepRecord(step=step, parameters=NAMES))
    np.testing.assert_array_equal(recorder.from_onset().step, np.arange(336, 400))  # no step between is known


@pytest.mark.parametrize("steps", [0, 5, 16, 17, 600])
def test_the_first_steps_of_the_run_are_kept_to_its_end(steps: int) -> None:
    """The first 16 steps are there however many follow."""
    first = filled(steps).first()
    np.testing.assert_array_equal(first.step, np.arange(min(steps, 16)))
    np.testing.assert_array_equal(first.values["loss"], np.arange(min(steps, 16)) / 2)
    assert first.parameter_grad_norm.shape == (min(steps, 16), 2)


@pytest.mark.parametrize(("parameters", "kept"), [(1, 512), (256, 512), (1000, 131), (100_000, 32)])
def test_many_parameters_are_recorded_for_fewer_steps(parameters: int, kept: int) -> None:
    """Memory stays within half a megabyte, except where 32 steps take more."""
    recorder = Recorder([str(index) for index in range(parameters)])
    for step in range(600):
        recorder.add(StepRecord(step=step))
    assert len(recorder.history().step) == kept


def test_non_finite_steps_are_kept_as_they_are() -> None:
    """NaN and infinity stay, what was not measured is NaN, and huge norms stay finite."""
    recorder = Recorder(NAMES)
    norms = np.array([math.nan, math.inf])
    recorder.add(StepRecord(0, parameters=NAMES, loss=math.inf, grad_norm=math.nan, per_parameter={"grad_norm": norms}))
    recorder.add(StepRecord(1))
    recorder.add(StepRecord(2, parameters=NAMES, grad_norm=1e300, per_parameter={"grad_norm": np.array([1e300, 0.0])}))
    history = recorder.history()
    assert history.values["loss"][0] == math.inf
    assert np.isnan(history.values["grad_norm"][:2]).all()
    assert history.values["grad_norm"][2] == 1e300
    np.testing.assert_array_equal(history.parameter_grad_norm[:2], [norms, [math.nan, math.nan]])
    assert np.isfinite(history.parameter_grad_norm[2]).all()
    assert history.parameter_grad_norm[2, 0] > 1e38


def test_everything_a_diagnosis_reads_is_in_the_history() -> None:
    """Each value of a step is found under its name; truth values are 1 and 0."""
    numbers: dict[str, Any] = {
        "loss": 0.5,
        "grad_norm": 3.0,
        "grad_norm_clipped": 1.0,
        "clip_val": 1.0,
        "learning_rate": 1e-3,
        "loss_scale": 65536.0,
        "update_taken": False,
        "batch_idx": 7,
        "epoch": 2,
        "backward_passes": 4,
        "micro_batches": 2,
        "update_ratio": 1e-4,
        "weight_norm": 12.0,
        "severity": 3,
    }
    recorder = Recorder()
    recorder.add(StepRecord(9, **numbers))
    recorder.add(StepRecord(10, update_taken=True))
    values = recorder.history().values
    assert {name: value[0] for name, value in values.items()} == numbers
    assert values["update_taken"][1] == 1.0
    assert np.isnan(values["learning_rate"][1])


def test_logged_scalars_are_kept_under_their_names() -> None:
    """A scalar that was not logged at a step is NaN there."""
    recorder = Recorder()
    for step, logged in enumerate([{"kl": 1.0}, {}, {"kl": 3.0, "reconstruction": math.inf}]):
        recorder.add(StepRecord(step, logged=logged))
    values = recorder.history().values
    np.testing.assert_array_equal(values["logged/kl"], [1.0, math.nan, 3.0])
    np.testing.assert_array_equal(values["logged/reconstruction"], [math.nan, math.nan, math.inf])


def test_names_that_differ_at_every_step_do_not_add_up() -> None:
    """Of more than 32 names, those that were logged last are kept."""
    recorder = Recorder()
    for step in range(100):
        recorder.add(StepRecord(step, logged={f"loss_of_step_{step}": 1.0, "loss": 2.0}))
    logged = [name for name in recorder.history().values if name.startswith("logged/")]
    assert len(logged) == 32
    assert {"logged/loss", "logged/loss_of_step_99", "logged/loss_of_step_69"} <= set(logged)


@given(st.lists(st.tuples(st.sampled_from([("a",), ("a", "b"), ("b", "c", "a"), MANY]), st.booleans()), max_size=40))
def test_norms_follow_their_parameters_when_these_change(steps: list[tuple[tuple[str, ...], bool]]) -> None:
    """After any changes of the parameters, the norms of each are those of its own steps, in agreement with a list."""
    names: tuple[str, ...] = ("a",)
    recorder, expected = Recorder(names), list[dict[str, float]]()
    for step, (parameters, is_measured) in enumerate(steps):
        norms = {name: float(step + place) for place, name in enumerate(parameters)} if is_measured else {}
        per_parameter = {"grad_norm": np.array(list(norms.values()))} if is_measured else {}
        # A copy of the names, as they are listed anew when a parameter group changes.
        recorder.add(StepRecord(step, parameters=(*parameters,), per_parameter=per_parameter))
        if is_measured and parameters != names:
            # What a parameter was measured at is forgotten when it leaves.
            names = parameters
            expected = [{name: row[name] for name in names if name in row} for row in expected]
        expected.append(norms)
    history: History = recorder.history()
    assert history.parameters == names
    np.testing.assert_array_equal(history.step, np.arange(len(steps)))
    truth = [[row.get(name, math.nan) for name in names] for row in expected]
    np.testing.assert_array_equal(history.parameter_grad_norm, np.reshape(truth, (len(steps), len(names))))


def test_more_parameters_shorten_the_memory() -> None:
    """The last steps are kept when a longer list of parameters leaves room for fewer."""
    recorder = Recorder(NAMES)
    for step in range(512):
        recorder.add(StepRecord(step))
    recorder.add(StepRecord(512, parameters=MANY, per_parameter={"grad_norm": np.ones(1000)}))
    np.testing.assert_array_equal(recorder.history().step, np.arange(512 - 130, 513))
