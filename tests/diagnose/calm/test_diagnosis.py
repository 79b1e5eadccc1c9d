"""What is plainly wrong is named although nothing has exploded, and nothing is named of a run that learns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.diagnose import diagnose_calm
from lightning_gradexplode.records import (
    BatchFacts,
    Evidence,
    FieldFacts,
    History,
    LossTerm,
    ModuleFacts,
    Operand,
    OptimizerFacts,
    ParameterFacts,
    RunFacts,
)
from tests.diagnose.evidence import calm, history

LEARNING = [2.0 * 0.97**step + 0.01 for step in range(120)]
STUCK = [2.0 + 0.1 * (-1) ** step for step in range(120)]


def weight(name: str, std: float, shape: tuple[int, ...] = (64, 64), dtype: str = "float32") -> ParameterFacts:
    fan_in = shape[-1] if len(shape) > 1 else None
    return ParameterFacts(name, shape, dtype, name.rpartition(".")[0], "Linear", std, 3 * std, fan_in, optimizer=0)


def evidence(run: RunFacts, values: Mapping[str, Sequence[float]], zero: Sequence[str] = ()) -> Evidence:
    """Return the evidence of a run without findings, and with gradients of zero in some parameters."""
    kept = history({**calm(120), **values})
    names = tuple(one.name for one in run.parameters)
    norms = np.array([[0.0 if name in zero else 0.5 for name in names]] * 120, dtype=np.float32)
    kept = History(kept.step, kept.values, names, norms)
    return Evidence(120, 120, (), run, (kept,))


LAYERS = ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "net.4.weight", "net.4.bias")


def network(std: float, bias: float = 0.1, dtype: str = "float32") -> RunFacts:
    """Return the facts of three linear layers."""
    parameters = tuple(
        weight(name, bias, (64,), dtype) if name.endswith("bias") else weight(name, std, dtype=dtype) for name in LAYERS
    )
    modules = tuple(ModuleFacts(f"net.{place}", "Linear", "linear") for place in (0, 2, 4))
    return RunFacts(modules=modules, parameters=parameters, optimizers=(OptimizerFacts("Adam", ({"lr": 1e-3},)),))


PRICES = BatchFacts(
    (
        FieldFacts("[0]", (32, 8), "float32", least=-3.0, greatest=3.0, mean=0.0, std=1.0),
        FieldFacts("[1]", (32, 1), "float32", least=-1e6, greatest=1e6, mean=0.0, std=4e5, usual_std=4e5),
    )
)
CLICKS = BatchFacts(
    (
        FieldFacts("time", (32,), "float32", least=1.51e9, greatest=1.52e9, mean=1.515e9, std=1e6),
        FieldFacts("clicked", (32,), "float32", least=0.0, greatest=1.0, mean=0.5, std=0.5),
    )
)
CRITIC = replace(
    network(0.1),
    modules=(ModuleFacts("critic", "Linear", "linear"),),
    parameters=(weight("critic.weight", 0.1),),
)

WRONG = {
    "weights fifty times too large": (
        "initialization",
        evidence(network(6.0), {"loss": STUCK, "grad_norm": [20.0] * 120}),
    ),
    "weights that are all zero": ("initialization", evidence(network(0.0), {"loss": STUCK}, LAYERS[:5])),
    "units that are never active": ("initialization", evidence(network(0.1, 50.0), {"loss": STUCK}, LAYERS[:5])),
    "prices as targets": (
        "unscaled-data",
        replace(evidence(network(0.1), {"loss": STUCK, "grad_norm": [1e5] * 120}), batch=PRICES),
    ),
    "times in seconds, whose loss falls without an end": (
        "unscaled-data",
        replace(
            evidence(network(0.1), {"loss": [8e6 * 0.98**step for step in range(120)], "grad_norm": [6e8] * 120}),
            batch=CLICKS,
        ),
    ),
    "updates below the last digit": (
        "half-precision",
        evidence(network(0.1, dtype="bfloat16"), {"loss": STUCK, "update_ratio": [1e-5] * 120}),
    ),
    "gradients that are never cleared": (
        "accumulated-gradients",
        evidence(network(0.1), {"loss": LEARNING, "backward_passes": [float(one) for one in range(1, 121)]}),
    ),
    "a critic without a bound": (
        "loss-without-floor",
        evidence(
            CRITIC,
            {
                "loss": [float("nan")] * 120,
                "logged/critic_loss": [-0.1 * 1.1**step for step in range(120)],
                "weight_norm": [1.0 + 0.1 * step for step in range(120)],
            },
        ),
    ),
    "a critic whose loss is not known": (
        "loss-without-floor",
        evidence(
            CRITIC,
            {
                "loss": [float("nan")] * 120,
                "grad_norm": [1.0 + 0.2 * step for step in range(120)],
                "weight_norm": [1.0 + 0.1 * step for step in range(120)],
            },
        ),
    ),
    "a first update that ruins the weights": (
        "learning-rate",
        evidence(network(0.1), {"loss": [0.1, *[50.0] * 119], "update_ratio": [0.8, *[0.01] * 119]}),
    ),
    "an update larger than the weights": (
        "learning-rate",
        evidence(network(0.1), {"loss": [2.7, *[9.0] * 9, *[2.2] * 110], "update_ratio": [4.0, *[0.01] * 119]}),
    ),
    "an update larger than the weights at a huge rate": (
        "learning-rate",
        evidence(
            network(0.1),
            {"loss": [2.7, *[2.9] * 119], "update_ratio": [4.0, *[0.01] * 119], "learning_rate": [0.3] * 120},
        ),
    ),
    "a critic whose first update replaces its weights": (
        "learning-rate",
        evidence(
            replace(CRITIC, optimizers=(OptimizerFacts("Adam", ({"lr": 0.5},)),)),
            {
                "loss": [float("nan")] * 120,
                "grad_norm": [0.4, *[900.0 * 0.9**step for step in range(119)]],
                "update_ratio": [6.0, *[0.1] * 119],
                "learning_rate": [0.5] * 120,
            },
        ),
    ),
    "an agent of a library, whose updates replace its weights": (
        "learning-rate",
        evidence(
            network(0.1),
            {
                "loss": [float("nan")] * 120,
                "grad_norm": [0.5] * 120,
                "update_ratio": [4.0, *[0.5] * 119],
                "weight_norm": [60.0 + 5.0 * step for step in range(120)],
                "learning_rate": [1.0] * 120,
            },
        ),
    ),
    "a loss that falls ever faster": (
        "loss-without-floor",
        evidence(
            network(0.1),
            {
                "loss": [0.2 - 0.01 * step**2 for step in range(120)],
                "grad_norm": [1.0 + 0.02 * step for step in range(120)],
                "weight_norm": [12.0 + 0.1 * step for step in range(120)],
            },
        ),
    ),
    "a negative loss that falls ever faster": (
        "loss-without-floor",
        evidence(
            network(0.1),
            {
                "loss": [-3.0 - 0.07 * step**2 for step in range(120)],
                "grad_norm": [0.6 + 0.4 * step for step in range(120)],
                "weight_norm": [12.0 + 0.1 * step for step in range(120)],
            },
        ),
    ),
    "a rate of Adam at which the loss rises first": (
        "learning-rate",
        evidence(
            network(0.1),
            {
                "loss": [4.8, 6.8, 9.0, 11.5, *[2.0 + 4.0 * 0.95**step for step in range(116)]],
                "weight_norm": [12.0 + step for step in range(120)],
                "learning_rate": [0.2] * 120,
            },
        ),
    ),
    "a mask that holds more than 0 and 1": (
        "target-out-of-range",
        replace(
            evidence(network(0.1), {"loss": [0.4 - 0.01 * step for step in range(120)]}),
            batch=BatchFacts(
                (
                    FieldFacts("picture", (8, 1, 4, 4), "float32", least=-3.0, greatest=3.0, std=1.0),
                    FieldFacts("mask", (8, 1, 4, 4), "float32", least=0.0, greatest=20.0, std=5.0),
                )
            ),
        ),
    ),
    "percentages in a loop that passes the loss only": (
        "target-out-of-range",
        replace(
            evidence(network(0.1), {"loss": [2.8 - step for step in range(120)]}),
            batch=BatchFacts(
                (
                    FieldFacts(
                        "target of binary_cross_entropy_with_logits",
                        (32, 1),
                        "float32",
                        least=7.0,
                        greatest=93.0,
                        read_as="target",
                        read_by="binary_cross_entropy_with_logits",
                    ),
                )
            ),
        ),
    ),
    "weights near one that updates in bfloat16 cannot move": (
        "half-precision",
        replace(evidence(network(1.0, dtype="bfloat16"), {"loss": STUCK}, zero=["net.0.weight"]), unchanged=LAYERS[:4]),
    ),
    "losses of a few batches that are enormous": (
        "outlier-batch",
        evidence(network(0.1), {"loss": [3e8 if step in (9, 31, 77) else 2.0 for step in range(120)]}),
    ),
    "trained weights and a new optimizer": (
        "optimizer-state",
        replace(
            evidence(network(0.1), {"loss": [0.01, *[50.0] * 119], "update_ratio": [0.8, *[0.01] * 119]}),
            batch=BatchFacts((FieldFacts("x", (32, 8), "float32"), FieldFacts("y", (32,), "float32", usual_std=1.0))),
        ),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_plainly_wrong_is_named(case: str) -> None:
    """Each from evidence of its own, with a confidence of 0.7 and more, and with something to do about it."""
    kind, known = WRONG[case]
    found = diagnose_calm(known)
    assert found is not None
    assert found.causes[0].kind == kind
    assert found.causes[0].confidence >= 0.7
    assert found.remedies


@pytest.mark.parametrize("case", [name for name in WRONG if not re.search("cleared|critic|agent|cannot move", name)])
def test_nothing_is_named_of_a_run_that_learns(case: str) -> None:
    """Large weights, units that rest and raw prices are no fault where the loss comes down."""
    known = WRONG[case][1]
    values = {**known.history[0].values, "loss": np.array(LEARNING)}
    assert diagnose_calm(replace(known, history=(replace(known.history[0], values=values),))) is None


def test_nothing_is_named_of_an_empty_run() -> None:
    """Nothing is known of it."""
    assert diagnose_calm(Evidence(0, 0)) is None
    assert diagnose_calm(evidence(network(0.1), {"loss": STUCK})) is None


@pytest.mark.parametrize(
    "loss",
    [
        [3.0 - 6.0 * math.log1p(step) for step in range(120)],
        [max(0.2 - 0.5 * step, -20.0) for step in range(120)],
    ],
    ids=["of a density that narrows", "that levels off"],
)
def test_nothing_is_named_of_a_loss_that_falls_ever_slower(loss: list[float]) -> None:
    """Far below zero, although weights and gradients grow: a likelihood may be there, and a bound is near."""
    grown = {
        "grad_norm": [1.0 + 0.02 * step for step in range(120)],
        "weight_norm": [12.0 + step for step in range(120)],
    }
    assert diagnose_calm(evidence(network(0.1), {"loss": loss, **grown})) is None


@pytest.mark.parametrize(("growth", "is_named"), [(0.004, False), (0.05, True)])
def test_a_generator_makes_its_loss_fall_with_hardly_larger_weights(growth: float, is_named: bool) -> None:
    """The critic is bounded; a loss without a lower bound falls as far as the weights grow."""
    falling = {
        "loss": [-0.01 - 0.0015 * step**2 for step in range(120)],
        "grad_norm": [0.2 + 0.08 * step for step in range(120)],
        "weight_norm": [11.2 + growth * step for step in range(120)],
    }
    assert (diagnose_calm(evidence(network(0.1), falling)) is not None) is is_named


@pytest.mark.parametrize(
    ("weights", "gradient", "is_named"),
    [(10.0, 1.0, True), (10.0, 0.97, True), (2.5, 1.0, False), (10.0, 0.5, False)],
)
def test_a_loss_that_is_linear_in_the_outputs_has_no_lower_bound(
    weights: float, gradient: float, is_named: bool
) -> None:
    """As of a divergence that takes plain outputs for logarithms: its gradient stays, and the weights grow along it."""
    falling = {
        "loss": [-1.5 - 0.4 * step for step in range(120)],
        "grad_norm": np.geomspace(2.5, 2.5 * gradient, 120).tolist(),
        "weight_norm": np.linspace(12.0, 12.0 * weights, 120).tolist(),
    }
    assert (diagnose_calm(evidence(network(0.1), falling)) is not None) is is_named


@pytest.mark.parametrize(("weights", "optimizers", "is_named"), [(2.5, 1, True), (1.5, 1, False), (2.5, 2, False)])
def test_a_loss_without_a_lower_bound_may_fall_at_a_steady_pace(
    weights: float, optimizers: int, is_named: bool
) -> None:
    """A likelihood of the wrong sign falls as the weights grow by steps of Adam, which are all of the same length.

    The loss of a policy with an optimizer of its own falls like that while the policy learns.
    """
    falling = {
        "loss": [-9.0 - 8.0 * step for step in range(120)],
        "grad_norm": [4.0 * (1 + step) ** 0.5 for step in range(120)],
        "weight_norm": np.linspace(12.0, 12.0 * weights, 120).tolist(),
    }
    run = replace(network(0.1), optimizers=network(0.1).optimizers * optimizers)
    assert (diagnose_calm(evidence(run, falling)) is not None) is is_named


def test_the_weights_of_a_critic_may_grow_while_its_gradient_does_not() -> None:
    """The gradient of a classifier gets smaller as it separates its classes, without a bound of its weights."""
    grown = {"loss": [float("nan")] * 120, "weight_norm": [1.0 + 0.1 * step for step in range(120)]}
    assert diagnose_calm(evidence(CRITIC, grown)) is None


@pytest.mark.parametrize(
    ("inactive", "zero", "where"),
    [
        (("relu", "sigma.weight"), LAYERS, "`relu` after sigma"),
        (("clamp", "sigma.weight"), LAYERS, "`clamp` after sigma"),
        (("relu", ""), LAYERS, "`relu`"),
        (("relu", "sigma.weight"), LAYERS[:5], None),
        (None, LAYERS, None),
    ],
)
def test_a_rectifier_that_passes_nothing_on_is_named_if_no_weight_has_a_gradient(
    inactive: tuple[str, str] | None, zero: Sequence[str], where: str | None
) -> None:
    """Other parts of a network may learn without one that is never active."""
    found = diagnose_calm(replace(evidence(network(0.1), {"loss": STUCK}, zero), inactive=inactive))
    assert (None if found is None else (found.causes[0].kind, found.where)) == (where and ("initialization", where))


@pytest.mark.parametrize(
    ("softmax", "zero", "where"),
    [
        (("softmax", "head.weight"), LAYERS, "`softmax` after head"),
        (("log_softmax", "2.bias"), LAYERS, "`log_softmax` after layer 2"),
        (("softmax", "attention.weight"), LAYERS[:5], None),
        (None, LAYERS, None),
    ],
)
def test_a_softmax_over_one_element_is_named_if_no_weight_has_a_gradient(
    softmax: tuple[str, str] | None, zero: Sequence[str], where: str | None
) -> None:
    """The weights of an attention to a single element are one, too, and the rest of the network learns."""
    found = diagnose_calm(replace(evidence(network(0.1), {"loss": STUCK}, zero), of_one_element=softmax))
    assert (None if found is None else (found.causes[0].kind, found.where)) == (where and ("empty-reduction", where))


def test_weights_without_a_gradient_may_stay_the_same() -> None:
    """Nothing was lost of an update that there never was; a learning rate of zero moves no weight either."""
    half = network(1.0, dtype="bfloat16")
    still = replace(evidence(half, {"loss": LEARNING}, zero=LAYERS[:2]), unchanged=LAYERS[:2])
    frozen = replace(evidence(half, {"loss": LEARNING, "learning_rate": [0.0] * 120}), unchanged=LAYERS)
    assert diagnose_calm(still) is None
    assert diagnose_calm(frozen) is None
    assert diagnose_calm(replace(still, unchanged=LAYERS[:3])) is not None


def resumed(after: Sequence[float], at_once: float = 0.1, before: float = 0.002, rate: float = 0.2) -> Evidence:
    """Return the evidence of a run whose rate rises at its step 80, at a loss `at_once`, and is followed by `after`."""
    loss = [2.0 * 0.95**step + 0.1 + 0.02 * (-1) ** step for step in range(80)]
    losses = [*loss, at_once, *np.resize(after, 39)]
    rates = np.array([0.2] * 40 + [before] * 40 + [rate] * 40)
    return evidence(network(0.1), {"loss": losses, "learning_rate": rates.tolist()})


def test_a_rate_that_rose_at_once_is_named_if_the_loss_has_been_higher_since() -> None:
    """Back to the initial rate the schedule was not restored; to a higher one it was only raised too far."""
    for rate, advice in ((0.2, "scheduler.load_state_dict"), (0.5, "near 0.002")):
        diagnosis = diagnose_calm(resumed([0.6, 0.7], rate=rate))
        assert diagnosis is not None
        assert (diagnosis.causes[0].kind, diagnosis.where) == ("learning-rate-jump", "the learning rate at step 80")
        assert advice in diagnosis.remedies[0]


def test_losses_that_vary_widely_are_compared_by_their_ranks() -> None:
    """Larger losses are told from those before, although most of them are in the same range."""
    random = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(3.0, 0.5, 40), random.exponential(0.1, 50)])
    rates = [0.2] * 40 + [0.002] * 50 + [0.2] * 50
    for factor, is_named in ((2.5, True), (1.0, False)):
        whole = [*losses, *(factor * random.exponential(0.1, 50))]
        whole[90] = 0.1  # at the step of the rise itself
        kept = history({**calm(140), "loss": whole, "learning_rate": rates})
        diagnosis = diagnose_calm(Evidence(140, 140, (), network(0.1), (kept,)))
        assert (diagnosis is not None and diagnosis.causes[0].kind == "learning-rate-jump") is is_named


@pytest.mark.parametrize(
    "healthy",
    [
        resumed([0.7] * 15 + [0.12, 0.09] * 12),  # comes down again, as after a warm restart
        resumed([0.6, 0.7], at_once=0.7),  # another loss from that step on
        resumed([0.6, 0.7], before=0.1),  # twice the rate
        resumed([0.05, 0.4]),  # losses that differ more among themselves
    ],
)
def test_a_rate_that_rose_at_once_is_not_named_otherwise(healthy: Evidence) -> None:
    """Neither if the loss comes down again, nor if something else may have raised it."""
    assert diagnose_calm(healthy) is None


def test_a_rule_that_raises_is_logged_and_the_others_still_decide(caplog: pytest.LogCaptureFixture) -> None:
    """Without facts of the parameters the rules for weights fail; gradients that are never cleared are still named."""
    passes = {"loss": LEARNING, "backward_passes": [float(one) for one in range(1, 121)]}
    broken = replace(network(0.1), parameters=None)  # type: ignore[arg-type]
    found = diagnose_calm(replace(evidence(network(0.1), passes), run=broken))
    assert found is not None
    assert found.causes[0].kind == "accumulated-gradients"
    assert "has failed" in caplog.text
    assert {one.levelname for one in caplog.records} == {"WARNING"}


@pytest.mark.parametrize(
    ("std", "level", "normalizes", "is_named"),
    [(1e-3, 2.3, False, True), (0.1, 2.3, False, False), (1e-3, 0.5, False, False), (1e-3, 2.3, True, False)],
    ids=["small", "usual", "learned", "normalized"],
)
def test_layers_that_all_start_too_small_are_named_if_nothing_is_learned(
    std: float, level: float, normalizes: bool, is_named: bool
) -> None:
    """The loss of ten classes stays at that of a guess; a layer that normalizes restores the scale."""
    facts = network(std)
    if normalizes:
        facts = replace(facts, modules=(*facts.modules, ModuleFacts("norm", "LayerNorm", "normalization")))
    term = LossTerm("nll_loss", (Operand((32, 10), "float32"), Operand((32,), "int64")), value=2.3)
    stuck = evidence(facts, {"loss": [2.3, *([level] * 119)], "grad_norm": [1e-3] * 120})
    found = diagnose_calm(replace(stuck, first_losses=(term,)))
    assert (found is not None and found.causes[0].kind == "initialization") is is_named


def test_frozen_weights_have_the_scale_that_they_were_trained_to() -> None:
    """Those of a model that is fine-tuned by adapters are not drawn anew."""
    run = evidence(network(6.0), {"loss": STUCK, "grad_norm": [20.0] * 120})
    assert diagnose_calm(replace(run, frozen=LAYERS)) is None
