"""Recorded runs say what a monitor saw, and replayed ones what it would have found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything

from benchmarks.scenarios import (
    EVERYDAY,
    EVERYDAY_COUNTED,
    FALLING,
    FAMILIES,
    FRESH,
    FURTHER_KINDS,
    HELD_OUT,
    LATER,
    LATEST,
    NEWEST,
    PLANS_AND_NOISE,
    STUDIED,
    UNSEEN,
    UNTOUCHED,
    Family,
    half,
)
from benchmarks.scenarios import recording as scenario_recording
from benchmarks.scenarios.recording import fit, record, recorded
from benchmarks.scenarios.replay import replay
from lightning_gradexplode import Finding, GradientExplosionMonitor, default_detectors
from lightning_gradexplode.engine.incidents import IncidentTracker

BY_NAME = {family.name: family for family in FAMILIES}
QUICK = ["digits_rate_too_high", "convolutions_momentum", "critic_without_limit", "overflows_while_settling"]


def test_families_are_many_and_of_many_kinds() -> None:
    """Each kind has a healthy family, and all but a few one that explodes; names are unique."""
    assert len(BY_NAME) == len(FAMILIES) >= 190
    kinds = {family.kind for family in FAMILIES}
    assert len(kinds) >= 35
    for expected in ("explodes", "healthy"):
        assert len({family.kind for family in FAMILIES if family.expected == expected}) >= len(kinds) - 4


def test_fresh_families_have_names_and_kinds_of_their_own() -> None:
    """What holds on them says something about kinds that the rules were not chosen on."""
    assert len({family.name for family in FRESH}) == len(FRESH)
    assert not {family.name for family in FRESH} & set(BY_NAME)
    assert not {family.kind for family in FRESH} & {family.kind for family in FAMILIES}


def test_newest_families_are_of_kinds_that_no_other_family_has() -> None:
    """No constant can have been chosen on their kinds, and each kind has a family of both sides."""
    others = (*FAMILIES, *FRESH, *HELD_OUT)
    assert not {family.name for family in NEWEST} & {family.name for family in others}
    assert not {family.kind for family in NEWEST} & {family.kind for family in others}
    kinds = sorted(family.kind for family in NEWEST)
    for expected in ("explodes", "healthy"):
        assert sorted(family.kind for family in NEWEST if family.expected == expected) == sorted(set(kinds))


def test_later_families_are_of_kinds_that_no_other_family_has() -> None:
    """No constant can have been chosen on their kinds: sixteen runs explode, twelve are healthy."""
    others = (*FAMILIES, *FRESH, *HELD_OUT, *NEWEST, *STUDIED, *UNTOUCHED)
    assert not {family.name for family in LATER} & {family.name for family in others}
    assert not {family.kind for family in LATER} & {family.kind for family in others}
    assert [sum(family.expected == one for family in LATER) for one in ("explodes", "healthy")] == [16, 12]


def test_latest_families_are_of_kinds_that_no_other_family_has() -> None:
    """No constant can have been chosen on their kinds: six runs explode, six are healthy and noisy."""
    others = (*FAMILIES, *FRESH, *HELD_OUT, *NEWEST, *LATER, *STUDIED, *UNTOUCHED, *EVERYDAY, *EVERYDAY_COUNTED)
    assert not {family.name for family in LATEST} & {family.name for family in (*others, *FALLING)}
    assert not {family.kind for family in LATEST} & {family.kind for family in (*others, *FALLING)}
    assert [sum(family.expected == one for family in LATEST) for one in ("explodes", "healthy")] == [6, 6]


def test_plans_and_noise_have_kinds_that_no_other_family_has() -> None:
    """No constant can have been chosen on their kinds: each has one run that explodes and one that is healthy."""
    earlier = (*FAMILIES, *FRESH, *HELD_OUT, *NEWEST, *LATER, *LATEST, *STUDIED, *UNTOUCHED, *FALLING)
    others = (*earlier, *EVERYDAY, *EVERYDAY_COUNTED)
    assert not {family.name for family in PLANS_AND_NOISE} & {family.name for family in others}
    assert not {family.kind for family in PLANS_AND_NOISE} & {family.kind for family in others}
    built = sorted((family.kind, family.expected) for family in PLANS_AND_NOISE)
    assert built == [(kind, one) for kind in sorted({kind for kind, _ in built}) for one in ("explodes", "healthy")]


def test_further_kinds_are_those_that_no_other_family_has() -> None:
    """No constant can have been chosen on their kinds: twelve runs explode, sixteen are healthy, one of each kind."""
    earlier = (*FAMILIES, *FRESH, *HELD_OUT, *NEWEST, *LATER, *LATEST, *STUDIED, *UNTOUCHED, *FALLING)
    others = (*earlier, *EVERYDAY, *EVERYDAY_COUNTED, *PLANS_AND_NOISE)
    assert not {family.name for family in FURTHER_KINDS} & {family.name for family in others}
    assert not {family.kind for family in FURTHER_KINDS} & {family.kind for family in others}
    built = [{family.kind for family in FURTHER_KINDS if family.expected == one} for one in ("explodes", "healthy")]
    assert [len(kinds) for kinds in built] == [12, 16]
    assert built[0] < built[1]


def test_unseen_families_are_of_kinds_that_no_other_family_has() -> None:
    """No rule can have been chosen on their kinds: 18 families explode, 22 are healthy, and names are unique."""
    earlier = (*FAMILIES, *FRESH, *HELD_OUT, *NEWEST, *LATER, *LATEST, *STUDIED, *UNTOUCHED, *FALLING)
    others = (*earlier, *EVERYDAY, *EVERYDAY_COUNTED, *PLANS_AND_NOISE, *FURTHER_KINDS)
    assert not {family.name for family in UNSEEN} & {family.name for family in others}
    assert not {family.kind for family in UNSEEN} & {family.kind for family in others}
    built = [[family.name for family in UNSEEN if family.expected == one] for one in ("explodes", "healthy")]
    assert [len(names) for names in built] == [18, 22]
    assert len({name for names in built for name in names}) == 40


def test_falling_families_have_names_of_their_own_and_both_sides_of_each_kind() -> None:
    """Each kind has a loss with a lower bound, and one without."""
    others = (*FAMILIES, *FRESH, *HELD_OUT, *NEWEST, *LATER, *STUDIED, *UNTOUCHED, *EVERYDAY, *EVERYDAY_COUNTED)
    assert not {family.name for family in FALLING} & {family.name for family in others}
    assert not {family.kind for family in FALLING} & {family.kind for family in others}
    kinds = [{family.kind for family in FALLING if family.expected == one} for one in ("explodes", "healthy")]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.where], ids=lambda family: family.name)
def test_a_planted_module_exists(family: Family) -> None:
    """What a family says it planted its trouble in is a module that has parameters."""
    module = family.build(0).module
    assert any(name.startswith(f"{family.where}.") for name, _ in module.named_parameters())


@pytest.mark.parametrize("name", QUICK)
def test_a_replay_finds_what_the_live_monitor_found(name: str) -> None:
    """The news of a replayed run are the findings of the monitor that watched the same run, weights every 50 steps."""
    family = BY_NAME[name]
    run = record(family, 0)
    incidents = IncidentTracker()
    replayed = [finding for _, findings in replay(run, default_detectors, 50) for finding in incidents.add(findings)]
    seed_everything(0, verbose=False)
    setup = family.build(0)
    monitor = GradientExplosionMonitor(log_every_n_steps=50, report=False)
    last = 1 + max(step.before.step for step in run.steps)
    fit(setup.module, setup.batches[:last], [monitor], setup.trainer)
    assert monitor.findings
    # The order within a step may differ: with two optimizers, both step before either's weights are judged.
    assert sorted(map(_key, replayed)) == sorted(map(_key, monitor.findings))


def _key(finding: Finding) -> tuple[int, str, int, str]:
    return finding.step, finding.sign, int(finding.severity), finding.where or ""


def test_a_record_holds_the_loss_and_norm_of_a_plain_loop() -> None:
    """Loss, gradient norm and update ratio of a recorded run are those of the same run trained by hand."""
    family = BY_NAME["tiny_loss"]
    run = record(family, 3)
    seed_everything(3, verbose=False)
    setup = family.build(3)
    optimizer = setup.module.configure_optimizers()
    for step, batch in zip(run.steps[:20], setup.batches, strict=False):
        optimizer.zero_grad()
        loss = setup.module.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for p in setup.module.parameters() if p.grad is not None]
        before = [p.detach().double().clone() for p in parameters]
        norm = sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None) ** 0.5
        optimizer.step()
        change = sum(float((p.detach().double() - b).square().sum()) for p, b in zip(parameters, before, strict=True))
        size = sum(float(b.square().sum()) for b in before)
        after = step.after
        assert after is not None
        assert after.loss == pytest.approx(loss.item(), rel=1e-5)
        assert after.grad_norm == pytest.approx(norm, rel=1e-5)
        assert after.update_ratio == pytest.approx((change / size) ** 0.5, rel=1e-4)


def test_a_run_comes_back_from_the_cache_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time a run is read from its file, and says the same in every field."""
    monkeypatch.setattr(scenario_recording, "CACHE", tmp_path)
    family = BY_NAME["digits_rate_too_high"]
    first = recorded(family, 1)
    monkeypatch.setattr(scenario_recording, "record", None)  # training again would fail
    second = recorded(family, 1)
    assert second.outcome == first.outcome
    assert len(second.steps) == len(first.steps)
    for one, other in zip(first.steps, second.steps, strict=True):
        assert one.before.loss == other.before.loss
        assert one.after is not None
        assert other.after is not None
        for name, values in one.after.per_parameter.items():
            np.testing.assert_array_equal(values, other.after.per_parameter[name])


def test_the_same_seed_gives_the_same_run() -> None:
    """A run depends on its seed and on nothing else, such as what was trained before."""
    family = BY_NAME["exponential_link"]
    one = record(family, 2)
    torch.randn(7)
    other = record(family, 2)
    assert [step.before.grad_norm for step in one.steps] == pytest.approx(
        [step.before.grad_norm for step in other.steps], rel=0, nan_ok=True
    )


def test_everyday_families_are_split_by_kinds_that_no_other_family_has() -> None:
    """What holds on the counted half says something about kinds that no rule was changed for."""
    others = {family.kind for family in (*FAMILIES, *FRESH, *HELD_OUT, *LATER, *NEWEST, *STUDIED, *UNTOUCHED)}
    studied, counted = ({family.kind for family in half} for half in (EVERYDAY, EVERYDAY_COUNTED))
    assert not studied & counted
    assert not (studied | counted) & others
    assert len({family.name for family in (*EVERYDAY, *EVERYDAY_COUNTED)}) == len(EVERYDAY) + len(EVERYDAY_COUNTED)


@pytest.mark.parametrize("families", [NEWEST, LATER, LATEST], ids=["newest", "later", "latest"])
def test_the_families_of_further_kinds_are_halved_by_kind(families: Sequence[Family]) -> None:
    """Each kind is in exactly one of the halves, which have as many kinds each."""
    first, second = half(families, "A"), half(families, "B")
    assert {family.name for family in (*first, *second)} == {family.name for family in half(families, "both")}
    assert len(first) + len(second) == len(families)
    kinds = [{family.kind for family in one} for one in (first, second)]
    assert not kinds[0] & kinds[1]
    assert len(kinds[0]) == len(kinds[1])
