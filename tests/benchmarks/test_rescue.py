"""Others' clipping rules where their answer can be worked out by hand, and the table of rescued runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from benchmarks.clippers import AutoClip, Clipping, Constant, ZClip, ZClipAlone
from benchmarks.rescue import NOT_SAVABLE, Ending, Results, can_be_saved, change, rescue_rows, saved_by, train
from benchmarks.scenarios import FAMILIES
from tests.detect.steps import noise


def limits(rule: Clipping, norms: list[float]) -> list[float | None]:
    """Return a rule's limits for the steps of one optimizer."""
    return [rule.limit(norm, 0) for norm in norms]


def test_autoclip_is_the_percentile_of_all_norms() -> None:
    """The history has no bound, and one NaN in it is there for good, as published."""
    norms = noise(40)
    assert limits(AutoClip(), norms) == pytest.approx([np.percentile(norms[: n + 1], 10) for n in range(40)])
    assert all(math.isnan(one) for one in limits(AutoClip(), [1.0, math.nan, 1.0])[1:] if one is not None)


def test_zclip_clips_outliers_after_its_warm_up() -> None:
    """With mean 2 and deviation 1 after 25 steps, a norm of 7 has score 5 and is clipped to 2 + 2.5 / 2."""
    norms = [1.0, 3.0] * 12 + [2.0]
    deviation = float(np.std(norms))
    alone = limits(ZClipAlone(), [*norms, 2.0 + 5 * deviation])
    assert alone[:25] == [None] * 25
    assert alone[25] == pytest.approx(2.0 + 2.5 * deviation / 2.0, rel=1e-5)
    assert limits(ZClip(), [*norms, 7.0]) == [1.0] * 26


@pytest.mark.parametrize("rule", [Constant(), AutoClip()])
def test_rules_clip_what_the_optimizer_is_handed(rule: Clipping) -> None:
    """The norm after clipping is the rule's limit."""
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for size in (1.0, 50.0):
        weight.grad = torch.full((4,), size / 2)
        rule.on_before_optimizer_step(Trainer.__new__(Trainer), None, optimizer)  # type: ignore[arg-type]
    limit = 1.0 if isinstance(rule, Constant) else float(np.percentile([1.0, 50.0], 10))
    assert weight.grad is not None
    assert float(weight.grad.norm()) == pytest.approx(limit, rel=1e-4)


def test_what_counts_as_saved() -> None:
    """A run is saved if it kept 90 % of the improvement of the hand-tuned one; chance level is not saved."""
    tuned = Ending(2.0, 1.0)
    assert Ending(2.0, 1.05).is_saved(tuned)
    assert Ending(-1.0, -9.0).is_saved(Ending(-1.0, -9.5))
    assert not Ending(2.0, 1.2).is_saved(tuned)
    assert not Ending(2.0, math.nan).is_saved(tuned)
    assert not Ending(math.nan, 1.0).is_saved(tuned)
    assert not Ending(2.0, 1.0).is_saved(Ending(2.0, 2.5))


def test_families_that_are_left_out_exist() -> None:
    """Each is a family that is built to explode, and has a reason."""
    built = {family.name for family in FAMILIES if family.expected == "explodes"}
    assert set(NOT_SAVABLE) <= built
    assert all(NOT_SAVABLE.values())


def test_the_tables_count_what_they_say() -> None:
    """Runs saved, the median of their final losses, and the change of a healthy one, of endings made up for it."""
    family = FAMILIES[0]
    results = Results(1)
    factors = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-7)
    for place, factor in enumerate(factors):
        for seed in range(3):
            results.known[family.name, seed, "no remedy", factor] = Ending(2.0, 0.5 if place == 2 else 1.0)
    finals = {"no remedy": [1.0, 1.0, 0.6], "clip 1.0": [1.1, math.nan, 0.6]}
    for remedy, values in finals.items():
        for seed, value in enumerate(values):
            results.known[family.name, seed, remedy, 1.0] = Ending(2.0, value)
    (row,) = rescue_rows(results, [family], range(3), ["clip 1.0"])
    assert row == [family.name, "2", "3 (0.5)", "1 (0.6)"]
    assert saved_by(results, [family], range(3), "clip 1.0") == 1
    assert change(results, family, range(3), "clip 1.0") == pytest.approx(0.1)
    assert can_be_saved(results, family)


def test_a_lost_run_is_saved_for_real() -> None:
    """One family, trained: lost with no remedy, and saved by ``clip="auto"``."""
    family = next(family for family in FAMILIES if family.name == "accumulated_too_high")
    tuned = train(family, 0, "no remedy", 0.3)
    assert not train(family, 0, "no remedy").is_saved(tuned)
    assert train(family, 0, 'clip="auto"').is_saved(tuned)
