"""From evidence to a ranked diagnosis."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import lightning_gradexplode
from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.records import (
    CAUSE_KINDS,
    Activation,
    Attempt,
    Diagnosis,
    Evidence,
    Experiments,
    History,
    LossTerm,
    ModuleFacts,
    OptimizerFacts,
    Replay,
    Severity,
)
from tests.diagnose.evidence import (
    NAN,
    batch,
    calm,
    diverged,
    failed,
    field,
    finding,
    growing,
    history,
    labels,
    operand,
    operation,
    parameter,
    reproduced,
    run,
)

OVERSHOOT = Experiments(line_search=((0.0, 2.0), (0.01, 1.9), (0.1, 1.5), (0.3, 4.0), (1.0, 90.0)))
NO_OVERSHOOT = Experiments(line_search=((0.0, 2.0), (0.01, 1.99), (0.1, 1.9), (0.3, 1.7), (1.0, 1.1)))
FALLING = {**growing(), "loss": [0.2, *(-(2.0**step) for step in range(1, 12))]}
WHERE = "y = torch.where(x > 0, x, torch.exp(x))"
LOOPED = Activation("body", "Linear", 1e3, 1e5, calls=60, first_rms=0.1)
SAMPLES = tuple(range(300, 316))
PRICE = field("[1]", least=1e5, greatest=6e5, mean=3e5, std=1e5, usual_least=1e5, usual_greatest=6e5)
NOTHING = operand(0.0, least=0.0, greatest=0.0, shape=())
HALF = run(precision="16-true", parameters=(parameter("body.weight", (32, 8), dtype="float16"),))
DEEP = tuple(parameter(f"layers.{place}.weight", (24, 24), gain=1.2) for place in range(20))
DEEP_HISTORY = History(
    np.arange(2),
    {"loss": np.array([5e4, NAN]), "grad_norm": np.array([3e5, NAN])},
    tuple(one.name for one in DEEP),
    np.array([[1e6 * 0.5**place for place in range(20)], [NAN] * 20], dtype=np.float32),
)
RNN = run(
    modules=(ModuleFacts("rnn", "RNN", "recurrent"), ModuleFacts("head", "Linear", "linear")),
    parameters=(
        parameter("rnn.weight_hh_l0", (48, 48), module_kind="RNN", spectral_radius=1.1, spectral_norm=1.1),
        parameter("head.weight", (1, 48)),
    ),
    sequence_length=90,
)

CASES: dict[str, tuple[str, Evidence]] = {
    "a row of NaN": (
        "nonfinite-input",
        failed(
            25, batch=batch(field(nan_count=3, nonfinite_rows=(5,)), labels(), sample_indices=tuple(range(300, 316)))
        ),
    ),
    "a row of NaN, with the operation that met it": (
        "nonfinite-input",
        failed(
            25,
            batch=batch(field(nan_count=3, nonfinite_rows=(5,)), labels()),
            replay=Replay("reproduced"),
            experiments=Experiments(rows_removed=(5,), finite_without_rows=True),
        ),
    ),
    "a NaN target": (
        "nonfinite-target",
        failed(9, batch=batch(field(), field("[1]", nan_count=1, nonfinite_rows=(2,)))),
    ),
    "percent for a probability": (
        "target-out-of-range",
        diverged(
            history=(history(FALLING),),
            batch=batch(field("image"), field("cover", least=0.0, greatest=97.0)),
            replay=Replay(
                "finite",
                losses=(
                    LossTerm(
                        "binary_cross_entropy_with_logits",
                        (operand(), operand(least=0.0, greatest=97.0)),
                    ),
                ),
            ),
        ),
    ),
    "a CTC target that is too long": (
        "target-out-of-range",
        failed(4, replay=reproduced(operation("_ctc_loss", "inf", rows=(3,)))),
    ),
    "the logarithm of a negative target": (
        "target-out-of-range",
        failed(
            4,
            batch=batch(field(), field("[1]", least=-2.0, greatest=5.0)),
            replay=reproduced(operation("log", inputs=[operand(-2.0, least=-2.0, greatest=5.0)], rows=(3,))),
        ),
    ),
    "all labels ignored": (
        "empty-reduction",
        failed(
            4,
            update_is_harmless=True,
            batch=batch(field(), labels(least=-100.0, greatest=-100.0, most_common=-100.0, most_common_share=1.0)),
        ),
    ),
    "the loss over no label": ("empty-reduction", failed(4, replay=reproduced(operation("nll_loss_forward")))),
    "the deviation of one element": (
        "empty-reduction",
        failed(
            4,
            batch=batch(field(shape=(1, 8)), size=1, is_last=True),
            replay=reproduced(operation("std", inputs=[operand(0.3, shape=(1,))])),
        ),
    ),
    "a masked mean over nothing": (
        "empty-reduction",
        failed(
            4,
            replay=reproduced(
                operation(
                    "div", inputs=[operand(0.0, shape=()), operand(0.0, shape=())], code="loss = e.sum() / mask.sum()"
                )
            ),
        ),
    ),
    "prices": (
        "unscaled-data",
        diverged(
            batch=batch(
                field(), field("[1]", least=1e5, greatest=6e5, mean=3e5, std=1e5, usual_least=1e5, usual_greatest=6e5)
            ),
            experiments=OVERSHOOT,
        ),
    ),
    "a glitch of a sensor": (
        "outlier-batch",
        diverged(
            findings=(finding("gradient-spike", 20, Severity.WARNING), finding("diverging-loss", 21)),
            history=(
                history(
                    {
                        "loss": [*calm(20)["loss"], 3e6, 1e9],
                        "grad_norm": [*calm(20)["grad_norm"], 4e5, 1e9],
                        "weight_norm": [*calm(20)["weight_norm"], 2e4, 1e9],
                    }
                ),
            ),
            batch=batch(field(least=-9e4, greatest=1e5, outlier_rows=(5,))),
        ),
    ),
    "the logarithm of zero": (
        "undefined-operation",
        failed(9, replay=reproduced(operation("log", "-inf", inputs=[operand(0.0, least=0.0)]))),
    ),
    "a fully masked row": (
        "undefined-operation",
        failed(9, replay=reproduced(operation("_softmax", inputs=[operand(None, inf_count=8)]))),
    ),
    "the slope of a root at zero": (
        "undefined-operation",
        failed(
            9, "nonfinite-gradient", replay=reproduced(operation("div", "inf", "backward", code="d = torch.sqrt(s)"))
        ),
    ),
    "a branch hidden by where": (
        "undefined-operation",
        failed(
            9,
            "nonfinite-gradient",
            replay=reproduced(
                operation("mul", "nan", "backward"), hidden=operation("exp", "inf", inputs=[operand(97.9)], code=WHERE)
            ),
        ),
    ),
    "exp of 187": (
        "forward-overflow",
        failed(9, replay=reproduced(operation("exp", "inf", inputs=[operand(187.0, greatest=187.0)]))),
    ),
    "Adam's epsilon in half precision": (
        "half-precision",
        failed(
            3,
            "nonfinite-weight",
            run=replace(HALF, optimizers=(OptimizerFacts("Adam", ({"lr": 1e-3, "eps": 1e-8},)),)),
        ),
    ),
    "an overflow that float32 does not have": (
        "half-precision",
        failed(
            9,
            run=HALF,
            replay=reproduced(operation("pow", "inf", inputs=[operand(400.0, greatest=400.0, dtype="float16")])),
            experiments=Experiments(finite_in_float32=True, float32_loss=0.7),
        ),
    ),
    "a static scale": ("half-precision", failed(9, "nonfinite-gradient", run=HALF)),
    "a rate that overshoots": ("learning-rate", diverged(experiments=OVERSHOOT)),
    "growth from the first step on, of data on a proper scale": (
        "learning-rate",
        diverged(batch=batch(field(), labels())),
    ),
    "growth from the first step on, and nothing else": ("unknown", diverged()),
    "a restart of the schedule": (
        "learning-rate-jump",
        Evidence(
            52,
            56,
            (finding("gradient-spike", 52, Severity.WARNING), finding("diverging-loss", 53)),
            run(schedulers=("LambdaLR",)),
            (
                history(
                    {
                        "loss": [*calm(51)["loss"], 9.0, 90.0, 9e2, 9e3, 9e4],
                        "grad_norm": [*calm(51)["grad_norm"], 9.0, 90.0, 9e2, 9e3, 9e4],
                        "learning_rate": [0.01] * 50 + [0.36] * 6,
                    }
                ),
            ),
            experiments=OVERSHOOT,
        ),
    ),
    "a resumed run without the state of Adam": (
        "optimizer-state",
        Evidence(
            1000,
            1006,
            (finding("diverging-loss", 1003),),
            run(first_step=1000, is_resumed=True, optimizers=(OptimizerFacts("Adam", ({"lr": 1e-3},)),)),
            (history({name: one[:7] for name, one in growing().items()}, first_step=1000),),
        ),
    ),
    "an epsilon of zero": (
        "optimizer-state",
        failed(3, "nonfinite-weight", run=run(optimizers=(OptimizerFacts("Adam", ({"lr": 0.02, "eps": 0.0},)),))),
    ),
    "gradients that are never cleared": (
        "accumulated-gradients",
        diverged(
            history=(history({**growing(), "backward_passes": [float(step) for step in range(1, 13)]}),),
            experiments=OVERSHOOT,
        ),
    ),
    "weights of unit scale": (
        "initialization",
        diverged(
            run=run(
                parameters=(parameter("body.weight", (256, 256), gain=16.0), parameter("head.weight", (1, 256), 16.0))
            ),
            experiments=OVERSHOOT,
        ),
    ),
    "twenty plain layers": (
        "depth",
        Evidence(
            0,
            1,
            (finding("backward-gain", 0, Severity.WARNING), finding("nonfinite-loss", 1)),
            run(
                parameters=DEEP,
                modules=tuple(ModuleFacts(f"layers.{place}", "Linear", "linear") for place in range(20)),
            ),
            (DEEP_HISTORY,),
        ),
    ),
    "a recurrent matrix above one": ("recurrence", diverged(run=RNN, experiments=OVERSHOOT)),
    "a loop of the user's own": (
        "recurrence",
        diverged(replay=Replay("finite", activations=(LOOPED,))),
    ),
    "an update that raises a recurrent matrix above one": (
        "recurrence",
        diverged(
            run=replace(
                RNN,
                parameters=(
                    parameter("rnn.weight_hh_l0", (48, 48), module_kind="RNN", spectral_radius=0.9),
                    parameter("head.weight", (1, 48)),
                ),
            )
        ),
    ),
    "a square matrix of the user's own over a long sequence": (
        "recurrence",
        diverged(
            run=run(
                modules=(ModuleFacts("", "Cell", "other"),),
                parameters=(
                    parameter("transition", (32, 32), gain=1.5, module_kind="Cell"),
                    parameter("drive", (32, 2), module_kind="Cell"),
                ),
            ),
            batch=batch(field(shape=(16, 50, 2)), field("[1]", shape=(16, 1))),
            history=(history({**growing(), "grad_norm": [1e5 * 3.0**step for step in range(12)]}),),
        ),
    ),
    "a rate that rises step by step": (
        "learning-rate-jump",
        diverged(
            findings=(finding("diverging-loss", 30),),
            history=(
                history(
                    {
                        **growing(34),
                        "loss": [*(2.0 - 0.06 * step for step in range(25)), *(2.0 * 4.0**step for step in range(9))],
                        "weight_norm": [8.0 + 0.5 * step for step in range(34)],
                        "update_ratio": [0.01 * 1.1**step for step in range(34)],
                        "learning_rate": [0.01 * 1.2**step for step in range(34)],
                    }
                ),
            ),
            experiments=NO_OVERSHOOT,
            step=30,
            now=33,
        ),
    ),
    "a division by zero of a target": (
        "undefined-operation",
        failed(
            4,
            batch=batch(field(), field("[1]", least=-2.0, greatest=5.0)),
            replay=reproduced(
                operation("div", inputs=[operand(0.0, least=-2.0, greatest=5.0), operand(0.0, least=0.0, greatest=2.0)])
            ),
        ),
    ),
    "a critic without a bound": (
        "loss-without-floor",
        diverged(
            history=(history(FALLING),),
            run=run(modules=(ModuleFacts("critic", "Sequential"), ModuleFacts("critic.0", "Linear", "linear"))),
        ),
    ),
    "a maximizing optimizer": (
        "loss-without-floor",
        diverged(run=run(optimizers=(OptimizerFacts("SGD", ({"lr": 0.1, "maximize": True},)),)), experiments=OVERSHOOT),
    ),
    "bootstrapped values": (
        "moving-target",
        diverged(
            batch=batch(field("state"), field("next_state"), field("reward", shape=(16,))),
            run=run(
                parameters=(
                    parameter("value.0.weight", (8, 4)),
                    parameter("value.1.weight", (1, 8)),
                    parameter("target_value.0.weight", (8, 4), optimizer=None),
                    parameter("target_value.1.weight", (1, 8), optimizer=None),
                )
            ),
            experiments=NO_OVERSHOOT,
        ),
    ),
    "nothing but a NaN": ("unknown", failed(9)),
    "nothing at all": ("unknown", Evidence(0, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_named(case: str) -> None:
    """Each kind is told from evidence of its own."""
    kind, evidence = CASES[case]
    diagnosis = diagnose(evidence)
    assert diagnosis.causes[0].kind == kind, diagnosis


@pytest.mark.parametrize("case", CASES)
def test_remedies_are_code_that_can_be_run(case: str) -> None:
    """Code between backticks parses, and every name of the package in it exists."""
    for remedy in (one for cause in diagnose(CASES[case][1]).causes for one in cause.remedies):
        for code in re.findall(r"`([^`]+)`", remedy):
            ast.parse(code)
            for name in re.findall(r"\b(Gradient\w+|Recurrent\w+|WeightPenalty|AutoPolicy)\(", code):
                assert name in lightning_gradexplode.__all__


@pytest.mark.parametrize("case", CASES)
def test_a_diagnosis_is_strict_json(case: str) -> None:
    """What is written to a file has a version, and no value that JSON does not know."""
    plain = json.loads(json.dumps(diagnose(CASES[case][1]).as_dict(), allow_nan=False))
    assert plain["version"] == 1
    assert all(one["kind"] in CAUSE_KINDS and 0 <= one["confidence"] <= 1 for one in plain["causes"])


@pytest.mark.parametrize(
    "case", [name for name, (kind, _) in CASES.items() if kind not in ("learning-rate", "unknown")]
)
def test_overshoot_beside_a_cause_is_not_attributed_to_the_rate(case: str) -> None:
    """A step that overshoots is no evidence for the rate where something else makes updates large."""
    kind, evidence = CASES[case]
    if evidence.experiments is not None:
        return
    assert diagnose(replace(evidence, experiments=OVERSHOOT)).causes[0].kind == kind


def test_no_overshoot_rules_the_rate_out() -> None:
    """If the update lowers the loss of its own batch, the rate is not named."""
    assert "learning-rate" not in kinds(diagnose(diverged(experiments=NO_OVERSHOOT)))


def test_lower_rates_that_ended_the_same_way_rule_the_rate_out() -> None:
    """Rollbacks at ever lower rates that did not help disprove the rate."""
    tried = tuple(Attempt(step, "rollback", helped=False) for step in range(10))
    assert "learning-rate" not in kinds(diagnose(diverged(experiments=OVERSHOOT, attempts=tried)))


def test_weights_that_keep_their_size_are_no_overshoot() -> None:
    """A loss that rises while weights and updates stay small is not blamed on the rate."""
    flat = {**growing(), "weight_norm": [8.0 - 0.1 * step for step in range(12)], "update_ratio": [0.001] * 12}
    assert "learning-rate" not in kinds(diagnose(diverged(history=(history(flat),))))


def test_an_earlier_harmless_warning_does_not_change_the_cause() -> None:
    """A large first update, long before a row of NaN, is no part of the explanation."""
    nan_row = failed(12, batch=batch(field(nan_count=1, nonfinite_rows=(3,))))
    warned = replace(nan_row, findings=(finding("large-update", 1, Severity.WARNING), *nan_row.findings), step=1)
    assert diagnose(warned).causes == diagnose(nan_row).causes
    assert diagnose(warned).since is None


def test_what_only_warned_in_a_run_that_has_learned_is_no_cause() -> None:
    """Prices as targets explain nothing where the loss has come down far below their variance after a warning."""
    kind, evidence = "unscaled-data", diverged(batch=batch(field(), replace(PRICE, usual_std=1e5)))
    warned = replace(evidence, findings=(finding("backward-gain", 1, Severity.WARNING),))
    assert diagnose(warned).causes[0].kind == kind
    assert diagnose(replace(warned, later_loss=9e9)).causes[0].kind == kind
    assert diagnose(replace(warned, later_loss=1e6)).causes[0].kind == "unknown"
    assert diagnose(replace(evidence, later_loss=1e6)).causes[0].kind == kind


def test_an_infinite_loss_is_no_mean_over_nothing() -> None:
    """A loss that is NaN and has no gradient may be one, with little confidence; an infinite one is none."""
    harmless = failed(9, update_is_harmless=True)
    (cause, *_) = diagnose(harmless).causes
    assert (cause.kind, cause.confidence) == ("empty-reduction", 0.5)
    infinite = replace(harmless, findings=(finding("nonfinite-loss", 9, value=float("inf")),))
    assert diagnose(infinite).causes[0].kind == "unknown"


def test_nothing_is_looked_for_in_anomaly_mode_where_all_was_finite() -> None:
    """Without a value that is not finite there is no operation to find, and no batch to leave out."""
    found = diagnose(Evidence(3, 3, (finding("backward-gain", 3, Severity.WARNING),)))
    assert found.causes[0].kind == "unknown"
    assert not found.remedies


def test_clipping_is_no_remedy_for_nan_data() -> None:
    """No gradient of a NaN can be clipped to anything; skipping the update helps."""
    said = " ".join(diagnose(CASES["a row of NaN"][1]).remedies)
    assert "clip" not in said
    assert 'on_explosion="skip"' in said
    assert "row 5" in said


def test_rows_and_samples_are_named() -> None:
    """The rows of the batch, and the indices of the dataset where they are known."""
    cause = diagnose(CASES["a row of NaN"][1]).causes[0]
    assert cause.where == "batch[0], row 5"
    assert "305" in " ".join(cause.evidence)


def test_a_response_that_is_set_is_not_proposed_again() -> None:
    """A run that skips already is not told to skip."""
    evidence = replace(CASES["a row of NaN"][1], run=run(on_explosion=("skip",)))
    assert "skip" not in " ".join(diagnose(evidence).remedies)


def test_a_harmless_incident_is_called_harmless() -> None:
    """A NaN loss with gradients of zero is said to leave the weights alone."""
    assert "no weight" in diagnose(CASES["all labels ignored"][1]).what


def test_gated_cells_are_not_proposed_for_gated_cells() -> None:
    """An LSTM is not told to become an LSTM."""
    lstm = replace(
        RNN,
        modules=(ModuleFacts("rnn", "LSTM", "recurrent"),),
        parameters=(parameter("rnn.weight_hh_l0", (48, 48), module_kind="LSTM", spectral_radius=3.0),),
    )
    growth = replace(
        finding("backward-gain", 1, Severity.WARNING, "rnn"), message="the gradient grows 1.3 times at each time step"
    )
    found = diagnose(diverged(run=lstm, findings=(growth, finding("diverging-loss", 3))))
    assert found.causes[0].kind == "recurrence"
    assert "LSTM" not in " ".join(found.remedies)


def test_a_sum_in_place_of_a_mean_is_known_by_its_size() -> None:
    """A squared error above the largest square of a difference can only be a sum; one that overflows is none."""
    operands = (operand(None, -5.0, 5.0, shape=(256, 3)), operand(None, -2.0, 2.0, shape=(256, 3)))
    for value, named in ((9000.0, True), (40.0, False), (float("inf"), False)):
        term = LossTerm("mse_loss", operands, value=value)
        found = diagnose(diverged(batch=batch(field(), labels()), replay=Replay("finite", losses=(term,))))
        assert ("accumulated-gradients" in kinds(found)) is named


def test_two_rollbacks_do_not_rule_the_rate_out() -> None:
    """A rate far too high is still too high after it was halved twice."""
    tried = tuple(Attempt(step, "rollback") for step in range(2))
    assert "learning-rate" in kinds(diagnose(diverged(experiments=OVERSHOOT, attempts=tried)))


def test_the_rate_is_taken_from_the_line_search() -> None:
    """It is the rate at which the loss was least, between that and what the first update bears if that is lower."""
    ordinary = history({**growing(), "update_ratio": [0.05] * 12})
    assert "lr=0.05" in diagnose(diverged(experiments=OVERSHOOT, history=(ordinary,))).remedies[0]
    assert "lr=0.03" in diagnose(diverged(experiments=OVERSHOOT)).remedies[0]


def test_a_loss_that_climbs_from_the_start_of_the_update_has_moving_targets() -> None:
    """No step along its own gradient raises a loss to first order, however long it is: the targets move with it."""
    climbing = Experiments(line_search=((0.0, 2.0), (0.01, 2.1), (0.1, 3.0), (0.3, 6.0), (1.0, 90.0)))
    plain = run(optimizers=(OptimizerFacts("SGD", groups=({"lr": 0.5},)),))
    assert kinds(diagnose(diverged(experiments=climbing, run=plain)))[0] == "moving-target"
    assert kinds(diagnose(diverged(experiments=OVERSHOOT, run=plain)))[0] == "learning-rate"


def test_a_loss_that_is_huge_before_any_update_is_no_matter_of_the_rate() -> None:
    """A matrix that a loop applies again and again makes such a loss, and is named by elimination."""
    huge = history({"loss": [1e24, NAN], "grad_norm": [1e25, NAN], "update_ratio": [1e20, NAN]})
    drift = run(parameters=(parameter("drift", (8, 8)),))
    found = diagnose(Evidence(0, 1, (finding("weight-growth", 0), finding("nonfinite-loss", 1)), drift, (huge,)))
    assert (found.causes[0].kind, found.where) == ("recurrence", "drift")
    assert "learning-rate" not in kinds(found)


def test_running_averages_that_took_nan_in_are_no_case_for_skipping() -> None:
    """The forward pass of a batch that is skipped has changed them already."""
    evidence = CASES["a row of NaN"][1]
    net = run(modules=(ModuleFacts("norm", "BatchNorm1d", "normalization"),))
    assert '"skip"' not in " ".join(diagnose(replace(evidence, run=net)).causes[0].remedies)


def kinds(diagnosis: Diagnosis) -> list[str]:
    """Return the kinds of the causes."""
    return [cause.kind for cause in diagnosis.causes]


NUMBER = some.floats(width=32) | some.sampled_from([NAN, float("inf"), -float("inf"), 0.0, 1e38])
OPERATIONS = ("log", "exp", "div", "_softmax", "x")
SIGNS = ("nonfinite-loss", "nonfinite-gradient", "diverging-loss", "own")
NAMES = ("loss", "grad_norm", "weight_norm", "update_ratio", "learning_rate", "backward_passes", "loss_scale")


@some.composite
def wild_evidence(draw: some.DrawFn) -> Evidence:
    """Return evidence of any numbers, with parts missing."""
    steps = draw(some.integers(0, 8))
    values = {
        name: np.array(draw(some.lists(NUMBER, min_size=steps, max_size=steps)), dtype=float)
        for name in draw(some.sets(some.sampled_from(NAMES)))
    }
    template = draw(some.sampled_from([evidence for _, evidence in CASES.values()]))
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


def test_a_batch_that_is_not_known_is_not_called_finite() -> None:
    """A loop may pass no batch, whose facts then have no field."""
    for facts, is_said in (batch(), False), (batch(field()), True):
        found = diagnose(replace(failed(9), batch=facts))
        assert any("holds no NaN" in one for one in found.causes[0].evidence) is is_said
