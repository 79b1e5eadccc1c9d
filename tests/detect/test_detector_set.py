"""All detectors together: when each is called, which parameter is named, and what is saved."""

from __future__ import annotations

import copy
import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.detect import Detector, DivergingLoss, default_detectors, known_signs
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import Finding, Severity, StepRecord
from tests.detect.steps import (
    PARAMETERS,
    RUN_STEPS,
    begin_all,
    findings_of,
    noise,
    numbers_in,
    record,
    through_checkpoint,
    wild_runs,
)

SIGNS = {
    "nonfinite-loss",
    "nonfinite-gradient",
    "nonfinite-weight",
    "unstable-loss",
    "diverging-loss",
    "stalled-loss",
    "gradient-spike",
    "gradient-growth",
    "gradient-above-one",
    "backward-gain",
    "large-update",
    "weight-growth",
    "vanishing-gradient",
    "clip-saturated",
    "zero-gradient",
}


NEW_SINCE_0_1_0 = (
    "_far_for",
    "zero-gradient",
    "clip-saturated",
    "_rises",
    "_recent",
    "_decreases",
    "_norms",
    ".weight_rate",
    "_grown_for",
    "_futile_for",
    "_largest",
    "_longest",
    "_wandering",
    "_away",
    ".excursion",
    ".update_effect",
    ".shift",
    "_calm_for",
    "_raised_for",
    ".loss_trend",
    ".joint_growth",
    "_is_self_reinforcing",
    ".gradient_growth",
    "_blocked_at",
    "_blocked_for",
    "_first_module",
)


class Counting(Detector):
    """Finds a symptom at every step, with the number of calls as its value."""

    sign = "counting"
    reads: ClassVar[tuple[str, ...]] = ("grad_norm",)

    def __init__(self) -> None:
        self._calls = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Count."""
        self._calls += 1
        return self.finding(record, Severity.INFO, self._calls, 0, "called")


class CountingUpdates(Counting):
    """The same for what is known only after the optimizer has stepped."""

    sign = "counting-updates"
    reads = ("grad_norm", "update_ratio")


class Locating(Counting):
    """The same, at the parameter that has risen most."""

    sign = "locating"
    locates_growth = True


def test_default_detectors_show_every_sign_of_the_contract() -> None:
    """There is one detector for each sign, and each reads what a record has."""
    detectors = default_detectors()
    known = {field.name for field in fields(StepRecord)}
    assert {detector.sign for detector in detectors} >= SIGNS
    assert len({detector.sign for detector in detectors}) == len(detectors)
    assert all(set(detector.reads) <= known for detector in detectors)


def test_each_detector_is_called_once_a_step_as_soon_as_its_numbers_are_known() -> None:
    """What is known before the optimizer steps is checked then, the rest when it is known, and nothing twice."""
    detectors = DetectorSet([Counting(), CountingUpdates()])
    for step in range(3):
        early = record(step, update_ratio=None)
        assert [finding.sign for finding in detectors.check_before_update(early)] == ["counting"]
        assert detectors.check_after_update(early) == []
        late = detectors.check_after_update(record(step))
        assert [(finding.sign, finding.value) for finding in late] == [("counting-updates", step + 1)]
        assert detectors.check_after_update(record(step)) == []


def test_a_detector_is_not_called_where_its_numbers_were_not_measured() -> None:
    """A step whose update was not measured is left out, and the next one is checked."""
    detectors = DetectorSet([CountingUpdates()])
    assert detectors.check_before_update(record(0, update_ratio=None)) == []
    (finding,) = detectors.check_before_update(record(1))
    assert (finding.step, finding.value) == (1, 1)


def test_each_set_has_detectors_of_its_own() -> None:
    """Optimizers do not share the state of detectors, and the user's own object does not change."""
    mine = Counting()
    sets = [DetectorSet([mine]), DetectorSet([mine])]
    for detectors in sets:
        assert [finding.value for finding in begin_all(detectors, [record(0), record(1)])] == [1, 2]
    assert mine.state_dict() == {"_calls": 0}


def test_the_parameter_that_rose_most_is_named() -> None:
    """Not the parameter with the largest gradient is named, but the one that rose most over its own usual size."""
    detectors = DetectorSet([Locating()])
    usual = np.array([1.0, 1e-4, 100.0])
    begin_all(detectors, [record(step, per_parameter={"grad_norm": usual}) for step in range(30)])
    (finding,) = detectors.check_before_update(record(30, per_parameter={"grad_norm": usual * [2.0, 50.0, 3.0]}))
    assert finding.where == PARAMETERS[1]
    (finding,) = detectors.check_before_update(record(31, per_parameter={"grad_norm": usual * [math.nan, 1.0, 3.0]}))
    assert finding.where == PARAMETERS[2]
    (finding,) = detectors.check_before_update(record(32, per_parameter={}))
    assert finding.where is None


def test_usual_norms_are_those_of_calm_steps() -> None:
    """However long an explosion lasts, the parameter that exploded stays the one that is named."""

    class Alarm(Locating):
        def check(self, record: StepRecord) -> Finding | None:
            assert record.grad_norm is not None
            return self.finding(record, Severity.WARNING, 1, 0, "large") if record.grad_norm > 10 else None

    detectors = DetectorSet([Alarm()])
    calm, exploded = np.array([1.0, 1.0, 1.0]), np.array([1.0, 100.0, 1.0])
    begin_all(detectors, [record(step, grad_norm=1.0, per_parameter={"grad_norm": calm}) for step in range(30)])
    begin_all(
        detectors, [record(step, grad_norm=100.0, per_parameter={"grad_norm": exploded}) for step in range(30, 500)]
    )
    (finding,) = detectors.check_before_update(
        record(500, grad_norm=100.0, per_parameter={"grad_norm": exploded * [3.0, 1.0, 1.0]})
    )
    assert finding.where == PARAMETERS[1]


def test_a_growth_beyond_the_largest_number_leaves_a_finite_state() -> None:
    """Gradients that begin at next to nothing and become huge leave a finite state, which can be loaded."""
    detectors = DetectorSet(default_detectors())
    begin_all(detectors, [record(step, grad_norm=1e-300 if step < 30 else 1e9) for step in range(40)])
    state = detectors.state_dict()
    assert math.inf not in numbers_in(state)
    assert DetectorSet(default_detectors()).load_state_dict(through_checkpoint(state)) == []


def test_growth_of_one_layer_names_it() -> None:
    """With the detectors that users get, exponential growth of one parameter names that parameter."""
    detectors = DetectorSet(default_detectors())
    findings = []
    for step in range(80):
        norms = np.array([5.0, 0.1 * 2.0 ** max(0, step - 50), 1.0]) * noise(1, 0.05, step)[0]
        total = float(np.linalg.norm(norms))
        findings += detectors.check_before_update(record(step, grad_norm=total, per_parameter={"grad_norm": norms}))
    critical = [finding for finding in findings if finding.severity is Severity.CRITICAL]
    assert critical
    assert {finding.where for finding in critical} == {PARAMETERS[1]}


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.floats(-6.0, 6.0))
def test_a_stationary_run_is_never_critical(seed: int, gradient: float, loss: float, size: float) -> None:
    """Log-normal noise around a constant level, of whatever size, is no explosion."""
    losses, norms, ratios = noise(150, loss, seed), noise(150, gradient, seed + 1), noise(150, gradient, seed + 2)
    steps = enumerate(zip(losses, norms, ratios, strict=True))
    records = [
        record(step, loss=10**size * loss, grad_norm=10**size * norm, update_ratio=1e-3 * ratio)
        for step, (loss, norm, ratio) in steps
    ]
    severities = [finding.severity for finding in begin_all(DetectorSet(default_detectors()), records)]
    assert Severity.CRITICAL not in severities


@given(wild_runs())
def test_no_nonfinite_number_is_saved(run: Sequence[StepRecord]) -> None:
    """Whatever the numbers of a run are, no state has a NaN or infinity in it."""
    detectors = DetectorSet(default_detectors())
    begin_all(detectors, run)
    plain = detectors.state_dict()
    levels = [level for level in numbers_in(plain.pop("_grad_norms")) if not math.isnan(level)]  # NaN: not known yet
    assert all(map(math.isfinite, [*numbers_in(plain), *levels]))


def test_growth_is_found_after_nonfinite_steps_as_without_them() -> None:
    """A few NaN steps that pass do not make the detectors blind to what comes after them."""
    norms = [*noise(50), *[math.nan, math.inf] * 3, *noise(20, seed=1), *[2.0**step for step in range(30)]]
    records = [record(step, grad_norm=norm, loss=norm) for step, norm in enumerate(norms)]
    found = {finding.sign for finding in begin_all(DetectorSet(default_detectors()), records) if finding.step >= 76}
    assert {"gradient-growth", "diverging-loss"} <= found


@given(wild_runs(), st.integers(0, RUN_STEPS))
def test_a_detector_set_goes_through_a_checkpoint(run: Sequence[StepRecord], cut: int) -> None:
    """A run that was saved and resumed at any step finds what the uninterrupted one finds."""
    detectors = DetectorSet(default_detectors())
    begin_all(detectors, run[:cut])
    resumed = DetectorSet(default_detectors())
    resumed.load_state_dict(through_checkpoint(detectors.state_dict()))
    assert repr(begin_all(resumed, run[cut:])) == repr(begin_all(detectors, run[cut:]))


def test_a_state_is_not_changed_by_later_steps() -> None:
    """What was saved stays what it was while the run goes on."""
    detectors = DetectorSet(default_detectors())
    begin_all(detectors, [record(step) for step in range(30)])
    state = detectors.state_dict()
    before = repr(state)
    begin_all(detectors, [record(step, grad_norm=5.0, loss=7.0) for step in range(30, 60)])
    assert repr(state) == before


def test_a_detector_that_is_not_in_a_checkpoint_starts_fresh() -> None:
    """Detectors may be added, left out and put in another order between two runs."""
    old = DetectorSet([Counting(), CountingUpdates()])
    begin_all(old, [record(0), record(1)])
    new = DetectorSet([Locating(), CountingUpdates(), Counting()])
    new.load_state_dict(through_checkpoint(old.state_dict()))
    assert {finding.sign: finding.value for finding in new.check_before_update(record(2))} == {
        "locating": 1,
        "counting-updates": 3,
        "counting": 3,
    }


def test_lists_and_dictionaries_of_a_custom_detector_are_saved() -> None:
    """All that the base class promises to save is saved, and stays as it was when it was saved."""

    class Collecting(Counting):
        def __init__(self) -> None:
            super().__init__()
            self._list: list[float] = []
            self._dictionary: dict[str, int] = {}

        def check(self, record: StepRecord) -> Finding | None:
            self._list.append(record.step)
            self._dictionary[str(record.step)] = record.step
            return super().check(record)

    detector, other = Collecting(), Collecting()
    findings_of(detector, [record(0)])
    state = detector.state_dict()
    findings_of(detector, [record(1)])
    assert state == {"_calls": 1, "_list": [0], "_dictionary": {"0": 0}}
    other.load_state_dict(through_checkpoint(state))
    findings_of(other, [record(1)])
    assert other.state_dict() == detector.state_dict()


class Raising(Counting):
    """Fails at its second step."""

    sign = "raising"

    def check(self, record: StepRecord) -> Finding | None:
        """Raise at the second call."""
        super().check(record)
        if self._calls == 2:
            raise ZeroDivisionError("no steps")
        return None


class Returning(Counting):
    """Returns what is no finding."""

    sign = "returning"

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def check(self, record: StepRecord) -> Finding | None:
        """Return it."""
        result: Finding | None = self.result
        return result


@pytest.mark.parametrize(
    "detector",
    [
        Raising(),
        Returning("a finding"),
        Returning(True),
        Returning(Finding(0, "sign", 3, None, 1.0, 0.0, "")),  # type: ignore[arg-type]
        Returning(Finding(math.nan, "sign", Severity.INFO, None, 1.0, 0.0, "")),  # type: ignore[arg-type]
    ],
    ids=["raises", "string", "bool", "no severity", "no step"],
)
def test_a_detector_that_fails_is_switched_off(detector: Detector) -> None:
    """Its failure is recorded once, and the detectors after it are called at every step."""
    detectors = DetectorSet([detector, Counting()])
    findings = begin_all(detectors, [record(step) for step in range(4)])
    assert [finding.value for finding in findings] == [1, 2, 3, 4]
    ((sign, error),) = detectors.failures
    assert sign == detector.sign
    assert "Error: " in error


def test_a_detector_that_cannot_be_saved_does_not_break_the_checkpoint() -> None:
    """Its state is left out and named; that of the others is saved, a deque as a list."""

    class Locked(Counting):
        sign = "locked"

        def __init__(self) -> None:
            super().__init__()
            self._scale = float

    class Recent(Counting):
        sign = "recent"

        def __init__(self) -> None:
            super().__init__()
            self._steps: deque[int] = deque(maxlen=2)

        def check(self, record: StepRecord) -> Finding | None:
            self._steps.append(record.step)
            return None

    detectors, other = DetectorSet([Locked(), Recent()]), DetectorSet([Locked(), Recent()])
    begin_all(detectors, [record(step) for step in range(4)])
    state = through_checkpoint(detectors.state_dict())
    assert [name for name, _ in detectors.failures] == ["locked"]
    assert other.load_state_dict(state) == ["locked"]
    recent = other.detectors[1]
    assert isinstance(recent, Recent)
    assert recent._steps == deque([2, 3], maxlen=2)


def corrupted(state: Any) -> Iterator[tuple[list[Any], Any]]:
    """Yield every place in a nested state, with the state in which that place holds a string."""
    for key in state if isinstance(state, dict) else range(min(len(state), 3)) if isinstance(state, list) else ():
        changed = copy.copy(state)
        changed[key] = "corrupt"
        yield [key], changed
        for place, inner in corrupted(state[key]):
            changed = copy.copy(state)
            changed[key] = inner
            yield [key, *place], changed


def test_no_corrupt_state_stops_the_detectors() -> None:
    """Whichever value of a checkpoint is corrupt, loading it and going on raises nothing, and growth is found."""
    detectors = DetectorSet(default_detectors())
    begin_all(detectors, [record(step, grad_norm=norm) for step, norm in enumerate(noise(12))])
    records = [record(step, grad_norm=norm, loss=1.0) for step, norm in enumerate([*noise(30), *[1e3] * 5], 12)]
    for place, state in corrupted(detectors.state_dict()):
        resumed = DetectorSet(default_detectors())
        resumed.load_state_dict(state)
        found = {
            finding.sign
            for one in records
            for finding in resumed.check_before_update(one) + resumed.check_after_update(one)
        }
        assert "gradient-growth" in found or "gradient-growth" in [sign for sign, _ in resumed.failures], place


def test_a_state_of_0_1_0_is_loaded() -> None:
    """The baselines of one of its detectors become those that all share, and only what is new starts fresh."""
    state = json.loads((Path(__file__).parent / "state_0_1_0.json").read_text())
    detectors = DetectorSet(default_detectors())
    fresh = detectors.load_state_dict(state)
    assert all(name.endswith(NEW_SINCE_0_1_0) for name in fresh), fresh
    assert not detectors.needs_start
    (diverging,) = [detector for detector in detectors.detectors if isinstance(detector, DivergingLoss)]
    assert diverging.shared is not None
    assert diverging.shared.loss.start == 1.01
    assert diverging.shared.weights.growth == pytest.approx(2.1)


def test_a_detector_of_ones_own_replaces_the_default_of_its_sign() -> None:
    """One with another sign is added; all signs are known, also those of given detectors."""
    mine, other = DivergingLoss(limit=99.0), Counting()
    detectors = default_detectors(mine, other)
    assert [detector.sign for detector in detectors] == [*(one.sign for one in default_detectors()), "counting"]
    assert mine in detectors
    assert known_signs() >= SIGNS
    assert known_signs([other]) - known_signs() == {"counting"}


def test_a_loss_that_was_exactly_zero_until_it_rose_leaves_the_baselines_intact() -> None:
    """As with a rare reward: no norm of before the rise is known, and the detectors go on with what they know."""
    detectors = DetectorSet(default_detectors())
    for step in range(200):
        is_rare = step % 90 == 89
        one = record(step, loss=float(is_rare), grad_norm=2.0 * is_rare, grad_max=float(is_rare))
        findings = [*detectors.check_before_update(one), *detectors.check_after_update(one)]
        assert not [found for found in findings if found.severity > Severity.INFO and found.sign != "zero-gradient"]
    assert not detectors.failures
