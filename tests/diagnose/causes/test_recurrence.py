"""A gain per time step that compounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.recurrence import recurrence
from lightning_gradexplode.records import (
    Activation,
    AppliedWeight,
    Evidence,
    ModuleFacts,
    OptimizerFacts,
    Replay,
    Severity,
)
from tests.diagnose.evidence import NAN, batch, diverged, field, finding, history, kinds, parameter, run
from tests.diagnose.growth_examples import RNN


def test_gated_cells_are_not_proposed_for_gated_cells() -> None:
    """The advice to use an LSTM is not given for an LSTM."""
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


@pytest.mark.parametrize(
    ("rate", "growth", "confidence"), [(0.1, 4.0, 0.3), (0.1, 1.2, 0.75), (1e-3, 4.0, 0.75)], ids=str
)
def test_a_recurrent_matrix_that_updates_have_enlarged_is_a_consequence(
    rate: float, growth: float, confidence: float
) -> None:
    """If the rate is far above the usual ones and the weights have grown before the gradient does in time."""
    steps = 90
    weights = [10.0 * growth ** (step / steps) for step in range(steps + 1)]
    values = {"loss": [0.5] * (steps + 1), "grad_norm": [0.4] * (steps + 1), "weight_norm": weights}
    adam = OptimizerFacts("Adam", ({"lr": rate, "beta2": 0.999},))
    seen = replace(
        finding("backward-gain", steps - 1, Severity.WARNING, "rnn"),
        message="the gradient grows 1.3 times at each time step",
    )
    cell = parameter("rnn.weight_hh", (48, 48), module_kind="LSTMCell", spectral_radius=0.6)
    facts = run(optimizers=(adam,), modules=(ModuleFacts("rnn", "LSTMCell", "recurrent"),), parameters=(cell,))
    rates = {"learning_rate": [rate] * (steps + 1)}
    found = recurrence(Evidence(steps - 1, steps - 1, (seen,), facts, (history(values | rates),)))
    assert found is not None
    assert found.confidence == confidence


def test_a_loss_that_is_huge_before_any_update_is_no_matter_of_the_rate() -> None:
    """A matrix that a loop applies again and again makes such a loss, and is named by elimination."""
    huge = history({"loss": [1e24, NAN], "grad_norm": [1e25, NAN], "update_ratio": [1e20, NAN]})
    drift = run(parameters=(parameter("drift", (8, 8)),))
    found = diagnose(Evidence(0, 1, (finding("weight-growth", 0), finding("nonfinite-loss", 1)), drift, (huge,)))
    assert (found.causes[0].kind, found.where) == ("recurrence", "drift")
    assert "learning-rate" not in kinds(found)


@pytest.mark.parametrize(("calls", "named"), [(1, False), (20, True)])
def test_a_matrix_that_the_first_forward_pass_applies_once_is_not_recurrent(calls: int, named: bool) -> None:
    """A loss that is multiplied by a large number is huge, too, in a network with a square layer."""
    huge = history({"loss": [1e24, NAN], "grad_norm": [1e25, NAN], "update_ratio": [1e20, NAN]})
    square = run(parameters=(parameter("hidden.weight", (8, 8)),))
    found = recurrence(
        Evidence(
            0,
            1,
            (finding("weight-growth", 0), finding("nonfinite-loss", 1)),
            square,
            (huge,),
            applied=(AppliedWeight("hidden.weight", calls, 1.0, 1.0),),
        )
    )
    assert (found is not None) == named


@pytest.mark.parametrize(("rows", "named"), [(2560, True), (32, False)])
def test_time_steps_are_counted_by_the_rows_that_the_graph_holds(rows: int, named: bool) -> None:
    """A loop passes the loss only: 32 samples of 80 steps are 2,560 rows of the input of the recurrent layer."""
    plain = replace(RNN, sequence_length=None, batch_size=None)
    fields = field("input of rnn", shape=(rows, 4)), field("target of mse_loss", shape=(32, 1))
    found = recurrence(diverged(run=plain, batch=batch(*fields), findings=(finding("weight-growth", 0),)))
    assert (found is not None and "over 80 time steps" in found.evidence[0]) == named


@pytest.mark.parametrize(("largest", "named"), [(1.15, True), (0.99, False)])
def test_units_that_keep_more_than_their_state_are_named_by_their_largest_factor(largest: float, named: bool) -> None:
    """Units connected with themselves only grow by the largest of their factors, whatever the mean is."""
    own = parameter("units.own", (32,), std=0.6, largest=largest, fan_in=None, module_kind="Units")
    facts = run(modules=(ModuleFacts("units", "Units", "other"),), parameters=(own, parameter("inside", (32, 2))))
    huge = history({"loss": [3e14], "grad_norm": [8e16]})
    sequence = batch(field(shape=(32, 160, 2)))
    found = recurrence(Evidence(0, 0, (finding("gradient-above-one", 0),), facts, (huge,), batch=sequence))
    assert (found is not None and found.where == "units.own") == named


@pytest.mark.parametrize(("gain", "named"), [(5e3, True), (20.0, False)])
def test_a_gain_beyond_the_norms_of_all_layers_is_that_of_a_repeated_one(gain: float, named: bool) -> None:
    """A layer that is executed once multiplies no gradient by more than its Frobenius norm."""
    square = parameter("own.weight", (24, 24), gain=1.3)
    modules = tuple(ModuleFacts(name, "Linear", "linear") for name in ("encode", "own", "decode"))
    parameters = (parameter("encode.weight", (24, 3)), square, parameter("decode.weight", (2, 24)))
    seen = replace(
        finding("backward-gain", 0, Severity.WARNING, "own", value=gain),
        message=f"from the last of 3 modules to the first the gradient grows {gain:g} times",
    )
    first = history({"loss": [780.0], "grad_norm": [6e4]})
    found = recurrence(
        Evidence(0, 0, (seen,), run(modules=modules, parameters=parameters), (first,), batch=batch(field()))
    )
    assert (found is not None and found.where == "own.weight") == named


@pytest.mark.parametrize(("calls", "rms", "named"), [(40, 1e8, True), (5, 1e8, False)])
def test_a_weight_that_the_first_pass_multiplies_by_again_and_again(calls: int, rms: float, named: bool) -> None:
    """A loop of products is named from its growth before any update, though nothing can be computed again."""
    own = run(parameters=(parameter("step", (16, 16), 1.6),))
    huge = history({"loss": [3e14, NAN], "grad_norm": [1e15, NAN]})
    applied = (AppliedWeight("step", calls, 1.0, rms),)
    findings = (finding("weight-growth", 0), finding("nonfinite-loss", 1))
    found = diagnose(Evidence(0, 1, findings, own, (huge,), applied=applied))
    assert ((found.causes[0].kind, found.where) == ("recurrence", "step")) == named


@pytest.mark.parametrize(("norm", "named"), [(4e5, True), (3.0, False)])
def test_a_repeated_layer_whose_state_is_bounded_is_named_by_its_first_gradient(norm: float, named: bool) -> None:
    """With tanh only the gradient grows; a layer with a large gain in a loop with a usual gradient is no cause."""
    cell = run(parameters=(parameter("cell.weight", (16, 16), 1.6),))
    first = history({"loss": [1.0, NAN], "grad_norm": [norm, NAN]})
    evidence = Evidence(
        0, 1, (finding("nonfinite-loss", 1),), cell, (first,), applied=(AppliedWeight("cell.weight", 40, 0.9, 0.9),)
    )
    assert (recurrence(evidence) is not None) == named


@pytest.mark.parametrize(("last", "named"), [(1e6, True), (3.0, False)])
def test_what_many_layers_take_may_grow(last: float, named: bool) -> None:
    """The growth over the layers of the first pass is that of depth; the scale of the data does not count."""
    names = [f"layers.{place}.weight" for place in range(12)]
    sizes = [1e-4, *(last ** (place / 10) for place in range(11))]
    applied = tuple(AppliedWeight(name, 1, size, size) for name, size in zip(names, sizes, strict=True))
    deep = run(parameters=tuple(parameter(name, (16, 16), 3.0) for name in names))
    huge = history({"loss": [3e14, NAN], "grad_norm": [1e15, NAN]})
    found = diagnose(Evidence(0, 1, (finding("nonfinite-loss", 1),), deep, (huge,), applied=applied))
    assert (found.causes[0].kind == "depth") == named


@pytest.mark.parametrize(("rows", "where"), [(48, "inside"), (8, "inside.weight")])
def test_a_layer_that_cannot_be_applied_to_its_own_result_is_no_recurrent_matrix(rows: int, where: str) -> None:
    """What it is executed with in a loop is a matrix that is no parameter, which no initialization is advised for."""
    facts = run(
        modules=(ModuleFacts("inside", "Linear", "linear"),), parameters=(parameter("inside.weight", (rows, 2)),)
    )
    loop = Activation("inside", "Linear", 1e20, 1e20, calls=80, first_rms=1.0)
    found = recurrence(diverged(run=facts, replay=Replay("finite", activations=(loop,))))
    assert found is not None
    assert found.where == where
    assert ("spectral radius: `matrix" in found.remedies[0]) is (where == "inside")


def test_of_several_layers_in_a_loop_the_one_that_takes_its_own_result_is_named() -> None:
    """A layer of the inputs has the same growth."""
    names = ("inside", "state")
    facts = run(
        modules=tuple(ModuleFacts(name, "Linear", "linear") for name in names),
        parameters=(parameter("inside.weight", (48, 2)), parameter("state.weight", (48, 48), 1.6)),
    )
    loops = tuple(
        Activation(name, "Linear", size, size, calls=80, first_rms=1.0)
        for name, size in zip(names, (1e20, 1e19), strict=True)
    )
    found = recurrence(diverged(run=facts, replay=Replay("finite", activations=loops)))
    assert found is not None
    assert found.where == "state.weight"
