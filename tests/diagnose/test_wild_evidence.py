"""Diagnosis of evidence of any numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest import TestCase

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from lightning_gradexplode.diagnose import diagnose, diagnose_calm
from lightning_gradexplode.records import Evidence, Experiments, History
from tests.diagnose.evidence import NAN, batch, field, finding, labels, operand, operation, parameter, reproduced, run
from tests.diagnose.fault_examples import FAULTS
from tests.diagnose.growth_examples import GROWTH

NUMBER = some.floats(width=32) | some.sampled_from([NAN, float("inf"), -float("inf"), 0.0, 1e38])


NAMES = ("loss", "grad_norm", "weight_norm", "update_ratio", "learning_rate", "backward_passes", "loss_scale")


@some.composite
def wild_evidence(draw: some.DrawFn) -> Evidence:
    """Return evidence of any numbers, with parts missing."""
    steps = draw(some.integers(0, 8))
    values = {
        name: np.array(draw(some.lists(NUMBER, min_size=steps, max_size=steps)), dtype=float)
        for name in draw(some.sets(some.sampled_from(NAMES)))
    }
    template = draw(some.sampled_from([evidence for _, evidence in (*FAULTS.values(), *GROWTH.values())]))
    signs = draw(
        some.lists(some.sampled_from(["nonfinite-loss", "nonfinite-gradient", "diverging-loss", "own"]), max_size=3)
    )
    number = draw(NUMBER)
    wild: dict[str, Any] = {
        "history": (History(np.arange(steps), values),),
        "first": draw(some.sampled_from([(), (History(np.arange(steps), values),)])),
        "findings": tuple(finding(sign, draw(some.integers(0, 9)), value=number) for sign in signs),
        "batch": batch(field(least=number, greatest=number, std=number, shape=()), labels(most_common=None)),
        "experiments": Experiments(
            line_search=((0.0, number), (1.0, number)), batch_grad_norm=number, memory_grad_norm=number
        ),
        "replay": reproduced(
            operation(draw(some.sampled_from(["log", "exp", "div", "x"])), inputs=[operand(number, number)])
        ),
        "loss_divisors": tuple(draw(some.lists(NUMBER, max_size=2))),
        "later_loss_divisors": tuple(draw(some.lists(NUMBER, max_size=2))),
        "run": run(parameters=(parameter("w", (0, 3), std=number, spectral_radius=number),), sequence_length=0),
    }
    kept = draw(some.sets(some.sampled_from(sorted(wild))))
    return replace(template, **{name: wild[name] for name in kept})


@given(wild_evidence())
def test_any_evidence_is_diagnosed(evidence: Evidence) -> None:
    """NaN, infinities and missing parts make no rule fail."""
    from lightning_gradexplode.diagnose.causes import RULES

    for rule in RULES.values():
        rule(evidence)
    json.dumps(diagnose(evidence).as_dict(), allow_nan=False)
    assert diagnose(evidence).markdown()


@given(wild_evidence())
def test_any_evidence_is_diagnosed_as_that_of_a_calm_run(evidence: Evidence) -> None:
    """No rule for runs without an incident fails on NaN, infinities and missing parts."""
    with TestCase().assertNoLogs("lightning_gradexplode", "WARNING"):
        diagnosis = diagnose_calm(replace(evidence, findings=()))
    assert diagnosis is None or json.dumps(diagnosis.as_dict(), allow_nan=False)
