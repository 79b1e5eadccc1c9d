"""Whether a run has learned, or recovered from what it warned of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.layers import untrained_loss
from lightning_gradexplode.diagnose.learning import has_learned, has_recovered
from lightning_gradexplode.records import BatchFacts, Evidence, LossTerm, OptimizerFacts, Replay, Severity
from tests.diagnose.evidence import batch, calm, diverged, field, finding, history, labels, operand, parameter, run


def spiked(later: float, severity: Severity = Severity.WARNING) -> Evidence:
    """Return the evidence of a loss that falls below zero, spikes at step 99, and is known to be somewhere later."""
    values = calm(100)
    values["loss"] = [1 - 0.016 * step + 0.1 * (-1) ** step for step in range(100)]
    values["loss"][99], values["grad_norm"][99] = 4.0, 500.0
    findings = (finding("gradient-spike", 99, severity),)
    return Evidence(99, 99, findings, run(), (history(values),), later_loss=later)


@pytest.mark.parametrize(("later", "recovered"), [(-0.4, True), (3.0, False), (-5.0, False)])
def test_a_loss_at_the_level_of_before_has_recovered(later: float, recovered: bool) -> None:
    """One that stays up has not, nor one that falls for ever."""
    assert has_recovered(spiked(later)) == recovered


@pytest.mark.parametrize(("sign", "harmless"), [("backward-gain", True), ("large-update", False)])
def test_a_gain_of_the_gradient_with_which_a_run_learns_is_harmless(sign: str, harmless: bool) -> None:
    """A loss of three quarters of a guess shows it; other warnings need a loss that has come down far."""
    warned = (finding(sign, 0, Severity.WARNING),)
    known = Evidence(0, 0, warned, run(), (history(calm(40)),), batch=BatchFacts((field(), labels())), later_loss=0.52)
    assert has_learned(known) is harmless


def test_a_level_above_most_of_the_losses_before_is_no_recovery() -> None:
    """Single losses of batches vary, while the median of the later ones is near that of an untrained network."""
    noisy = [2.5 - 0.02 * min(step, 15) + 0.3 * (-1) ** step for step in range(100)]
    known = replace(spiked(2.2), history=(history({**calm(100), "loss": noisy}),))
    assert has_recovered(known)
    assert not has_recovered(replace(known, later_loss=2.51))


def test_gradients_that_stay_zero_are_no_recovery() -> None:
    """The loss stays where it was because nothing is learned."""
    known = spiked(-0.4)
    assert not has_recovered(replace(known, findings=(finding("zero-gradient", 99, Severity.WARNING),)))


def test_a_level_above_the_first_losses_is_none_to_come_back_to() -> None:
    """The loss of a likelihood falls, rises above its start, and is as high twenty steps later."""
    risen = [1 - 0.016 * step if step < 60 else 2.0 + 0.05 * (-1) ** step for step in range(100)]
    assert not has_recovered(replace(spiked(2.0), history=(history({**calm(100), "loss": risen}),)))


def test_what_makes_a_run_fail_is_not_named_of_one_that_has_recovered() -> None:
    """A density above one has a negative logarithm, and a spike that passed is no proof of more."""
    assert diagnose(spiked(-0.4)).causes[0].kind == "unknown"
    assert diagnose(spiked(-60.0, Severity.CRITICAL)).causes[0].kind == "loss-without-floor"


@pytest.mark.parametrize(("total", "usual"), [(9.4, math.log(10)), (math.exp(9.4), None)], ids=["itself", "a function"])
def test_a_guess_is_no_measure_of_a_function_of_the_loss(total: float, usual: float | None) -> None:
    """An exponential or a multiple of a cross-entropy has another value for a guess among the classes."""
    term = LossTerm("nll_loss_forward", (operand(shape=(16, 10)), operand(shape=(16,))), 9.4)
    assert untrained_loss(diverged(replay=Replay("finite", losses=(term,), loss=total))) == usual


@pytest.mark.parametrize(("classes", "known"), [(16, False), (10, True)], ids=["rows of the batch", "classes"])
def test_a_guess_is_no_measure_of_a_contrast_of_the_rows_of_a_batch(classes: int, known: bool) -> None:
    """Pairs that are alike have alike outputs in a network that has learned nothing."""
    term = LossTerm("nll_loss_forward", (operand(shape=(16, classes)), operand(shape=(16,))), 0.2)
    pairs = batch(field("[0]"), field("[1]"))
    found = untrained_loss(diverged(replay=Replay("finite", losses=(term,), loss=0.2), batch=pairs))
    assert (found is not None) is known


@pytest.mark.parametrize(("std", "usual"), [(0.14, 0.29), (0.5, math.log(2)), (None, math.log(2))])
def test_a_guess_of_a_rare_class_is_measured_by_the_entropy_of_the_labels(std: float | None, usual: float) -> None:
    """A network whose bias begins at the share of a class of two percent has a loss of 0.1 without any learning."""
    term = LossTerm("nll_loss_forward", (operand(shape=(16, 2)), operand(None, 0.0, 1.0, shape=(16,))), 0.1)
    rare = batch(field("[0]"), labels("[1]", shape=(16,), least=0.0, greatest=1.0, std=std))
    found = untrained_loss(diverged(replay=Replay("finite", losses=(term,), loss=0.1), batch=rare))
    assert found == pytest.approx(usual, abs=0.02)


@pytest.mark.parametrize(("level", "kind"), [(2.4, "learning-rate"), (0.4, "unknown")], ids=["far up", "low"])
def test_a_run_that_is_back_at_a_level_may_have_been_lost_before(level: float, kind: str) -> None:
    """The loss came down while the rate rose, and has stood far above that since, before and after a spike."""
    loss = [3.2 - 0.07 * step if step < 40 else level + 0.1 * (-1) ** step for step in range(200)]
    values = {
        **calm(200),
        "loss": loss,
        "grad_norm": [1.0] * 199 + [100.0],
        "learning_rate": [0.1 * min(step + 1, 120) / 120 for step in range(200)],
        "weight_norm": [10.0 + 0.1 * min(step, 120) for step in range(200)],
    }
    facts = run(
        optimizers=(OptimizerFacts("AdamW", ({"lr": 1e-3},)),), parameters=(parameter("body.weight", (64, 64)),)
    )
    warned = (finding("gradient-spike", 199, Severity.WARNING),)
    recorded = replace(history(values), parameters=("body.weight",), parameter_grad_norm=np.ones((200, 1), np.float32))
    found = diagnose(Evidence(199, 199, warned, facts, (recorded,), later_loss=level))
    assert found.causes[0].kind == kind
