"""The cases of the diagnosis benchmark hold what they say, and a diagnosis is graded by what is true of a case."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings
from benchmarks.diagnosis.grading import Grade, confidence_table, grade, is_right_place, run_case, table, totals
from benchmarks.diagnosis.halves import Half, cases
from benchmarks.diagnosis.remedies import optimizers_in, treat, treatment_for
from benchmarks.diagnosis.runs import prepare, train, train_monitored
from benchmarks.diagnosis.verify import fault_of
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records.diagnosis import CAUSE_KINDS, Cause, Diagnosis

HALVES: tuple[Half, ...] = ("tuning", "held_out")
EVERY_CASE = [
    *chain.from_iterable(
        cases(half) for half in (*HALVES, "second", "third", "fourth", "fifth", "sixth", "seventh", "left_out")
    )
]
FIRST_OF_EACH_KIND = [*{case.kinds[0]: case for case in reversed(EVERY_CASE)}.values()]


class StraightLine(Case):
    """A line with a learning rate that is too high."""

    kinds = ("learning-rate",)
    places = ("log", "slope")
    rows = (7,)
    cured_by = "halve"
    other_cures = settings(**{rf"fade at {NUMBER}": settings(lr=float)})
    good = 0.01
    steps = 60
    lr = 3.0
    cure = settings(lr=0.1)

    def build(self) -> None:
        self.slope = nn.Linear(2, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(64, 2, generator=noise(0))
        return inputs, inputs.sum(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.slope(batch[0]), batch[1])  # fault

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def diagnosis(*kinds: str, where: str | None = None, evidence: str = "", remedy: str = "") -> Diagnosis:
    causes = tuple(Cause(kind, where, (evidence,), 0.5) for kind in kinds)
    return Diagnosis(3, "It exploded.", where, None, causes, (remedy,))


@pytest.mark.parametrize("half", HALVES)
def test_each_half_has_cases_of_every_kind(half: Half) -> None:
    """There are at least 42 in each, and every kind but "unknown" is the first of at least two."""
    first = [case.kinds[0] for case in cases(half)]
    assert len(first) >= 42
    assert {kind for kind in first if first.count(kind) >= 2} == {*CAUSE_KINDS} - {"unknown"}


def test_names_of_cases_are_unique() -> None:
    """So that a line of the table stands for one case."""
    assert len({case.__name__ for case in EVERY_CASE}) == len(EVERY_CASE)


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.__name__)
def test_a_case_builds_and_its_data_have_rows(case: type[Case]) -> None:
    """As it stands and cured; its kinds exist."""
    assert {*case.kinds} <= {*CAUSE_KINDS}
    assert bool(case.cure) != case.healthy
    for changes in ({}, dict(case.cure)):
        assert next(iter(prepare(case, changes).loader())) is not None


@pytest.mark.parametrize("case", FIRST_OF_EACH_KIND, ids=lambda case: case.kinds[0])
def test_a_case_fails_as_it_stands_and_trains_when_cured(case: type[Case]) -> None:
    """One case of each kind; ``python -m benchmarks.diagnosis --verify`` checks all of them."""
    assert fault_of(case) is None


def test_a_case_that_the_cure_of_another_cause_saves_is_at_fault() -> None:
    """Its true cause is not what the case says."""

    class AlsoSavedByLess(StraightLine):
        not_cured_by = (settings(lr=2.9), settings(lr=0.2))

    assert "AlsoSavedByLess trains with {'lr': 0.2}" in str(fault_of(AlsoSavedByLess))


def test_an_unknown_setting_is_refused() -> None:
    """A cure with a slip in its name would be none."""
    with pytest.raises(AttributeError, match="StraightLine has no setting 'rate'"):
        StraightLine(rate=1)


def test_the_probe_records_what_became_of_a_run() -> None:
    """A rate above two over the curvature multiplies the loss at each step; the cured run reaches the line."""
    failing, cured = train(prepare(StraightLine, {})), train(prepare(StraightLine, {"lr": 0.1}))
    assert failing.failed(StraightLine)
    assert failing.losses[10] > 100 * failing.losses[0]
    assert not cured.failed(StraightLine)
    assert (cured.fault, len(cured.losses), len(cured.norms)) == (None, 60, 60)


@pytest.mark.parametrize(
    ("kinds", "first", "among_three"),
    [
        (("learning-rate", "depth"), "right", True),
        (("depth", "recurrence", "learning-rate"), "wrong", True),
        (("depth", "recurrence", "unknown", "learning-rate"), "wrong", False),
        (("unknown",), "unknown", False),
    ],
)
def test_the_first_cause_is_compared_with_the_true_kind(kinds: tuple[str, ...], first: str, among_three: bool) -> None:
    """A cause that comes fourth does not count, and "unknown" is not wrong."""
    one = grade(StraightLine, diagnosis(*kinds), saved=False)
    assert (one.first, one.among_three) == (first, among_three)


def test_no_diagnosis_is_neither_wrong_nor_unknown() -> None:
    """It is counted by itself."""
    one = grade(StraightLine, None, saved=False)
    assert (one.first, one.among_three, one.place, one.rows) == ("none", False, False, False)


@pytest.mark.parametrize(
    ("where", "right"),
    [
        ("log in slope (lines.py:3)", True),
        ("LogBackward0", True),
        ("slope.weight", True),
        ("logits", False),
        ("log_softmax", False),
        ("downslope", False),
        ("", False),
    ],
)
def test_a_place_is_right_by_whole_words(where: str, right: bool) -> None:
    """An operation, a module and its parameters are right; a word that only contains one of them is not."""
    assert is_right_place(StraightLine, where) is right


def test_a_place_is_right_by_the_line_at_fault() -> None:
    """The line that ends with the mark, and no other."""
    line = StraightLine.loss.__code__.co_firstlineno + 1
    assert is_right_place(StraightLine, f"pow at test_diagnosis.py:{line}")
    assert not is_right_place(StraightLine, f"pow at test_diagnosis.py:{line}0")
    assert not is_right_place(StraightLine, f"pow at test_diagnosis.py:{line - 1}")


@pytest.mark.parametrize(
    ("evidence", "right"),
    [("row 7 of [0]", True), ("rows 3, 7 and 9", True), ("rows 17 and 70", False), ("7.5", False)],
)
def test_rows_are_right_as_whole_numbers(evidence: str, right: bool) -> None:
    """A number that contains a row's digits names no row."""
    assert grade(StraightLine, diagnosis("depth", evidence=evidence), saved=None).rows is right


@pytest.mark.parametrize(
    ("remedy", "name", "value"),
    [
        ("Lower the learning rate from 3 to 0.05.", "learning_rate", 0.05),
        ("Set `lr=3e-3`, or clip with `clip=1.0`.", "learning_rate", 3e-3),
        ('Use `GradientExplosionMonitor(clip="auto")`.', "monitor", {"clip": "auto"}),
        ('Use `on_explosion=["skip", "rollback"]`.', "monitor", {"on_explosion": ["skip", "rollback"]}),
        ("Set `eps=1e-4` in Adam.", "groups", {"eps": 1e-4}),
        ("Lower the learning rate to 0.1 of what it is.", "rate_factor", 0.1),
        ("Warm up: `LinearLR(optimizer, start_factor=0.01, total_iters=50)`", "warm_up", 50),
        ("Let it fade at 0.02.", "settings", {"lr": 0.02}),
        ("Halve it.", "settings", {"lr": 0.1}),
    ],
)
def test_a_remedy_is_applied_by_its_words(remedy: str, name: str, value: object) -> None:
    """What comes first in the sentence counts, with the number that stands there."""
    treatment = treatment_for(StraightLine, remedy)
    assert treatment is not None
    assert getattr(treatment, name) == value


def test_optimizers_are_found_in_every_form_that_lightning_takes() -> None:
    """One, several, with schedulers in a second list, in dictionaries, and none."""
    first, second = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2))
    schedule = torch.optim.lr_scheduler.ExponentialLR(first, 0.9)
    assert optimizers_in(first) == [first]
    assert optimizers_in([first, second]) == optimizers_in((first, second)) == [first, second]
    assert optimizers_in(([first], [schedule])) == optimizers_in(([first], [{"scheduler": schedule}])) == [first]
    assert optimizers_in(([first, second], [])) == [first, second]
    assert optimizers_in({"optimizer": first, "lr_scheduler": {"scheduler": schedule}}) == [first]
    assert optimizers_in([{"optimizer": first}, {"optimizer": second}]) == [first, second]
    assert optimizers_in(None) == []


def test_a_remedy_of_unknown_words_is_not_applied() -> None:
    """It saves nothing."""
    assert treatment_for(StraightLine, "Think again.") is None


@pytest.mark.parametrize(
    ("remedy", "saved"),
    [("lr=0.1", True), ("lr=2.9", False), ("weight_decay=0.01", False), ("LinearLR(optimizer, total_iters=900)", True)],
)
def test_a_treated_run_is_trained_again(remedy: str, saved: bool) -> None:
    """Only a rate below two over the curvature saves the line, and a warm-up longer than the run keeps it there."""
    treatment = treatment_for(StraightLine, remedy)
    assert treatment is not None
    assert treat(StraightLine, treatment).is_good(StraightLine) is saved


def test_the_table_counts_by_kind() -> None:
    """What does not apply to a case is left out of the count and of the number it is compared with."""
    grades = [
        Grade("a", "depth", "right", True, True, None, True, True, ""),
        Grade("b", "depth", "wrong", True, None, False, None, True, ""),
        Grade("c", "recurrence", "unknown", False, False, None, False, False, ""),
    ]
    assert totals(grades) == ["3", "1", "2", "1", "1", "0", "1 of 2", "0 of 1", "1 of 2"]
    assert [row[0] for row in table(grades)] == ["kind", "depth", "recurrence", "all"]


def test_a_rate_that_is_too_high_is_named_at_the_default_interval_of_logs() -> None:
    """Updates of a calm run are measured at every 50th step only; the rate that is proposed saves the run."""
    graded = run_case(StraightLine, log_every_n_steps=50)
    assert (graded.first, graded.saved) == ("right", True)


def test_first_causes_are_counted_by_their_confidence() -> None:
    """Those of unknown causes and of runs without a diagnosis are in no line."""
    grades = [
        Grade("a", "depth", first, True, None, None, None, True, "", confidence)  # type: ignore[arg-type]
        for first, confidence in (("right", 0.9), ("wrong", 0.95), ("right", 0.7), ("unknown", 0.0), ("none", 0.0))
    ]
    assert [line[1] for line in confidence_table(grades)[1:]] == ["1 of 2", "0 of 0", "1 of 1", "0 of 0"]


def test_a_run_whose_numbers_arrive_late_is_read_after_its_updates() -> None:
    """As on an accelerator; afterwards tensors are on the host again."""
    seen = []

    class Observed(StraightLine):
        """Notes whether its numbers are read before its updates."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(reading.is_on_host(torch.zeros(1)))
            return super().training_step(batch, batch_idx)

    train_monitored(prepare(Observed, {}), reads_late=True)
    assert seen
    assert not any(seen)
    assert reading.is_on_host(torch.zeros(1))
