"""Targets that move with the model, and modules that make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.moving_target import moving_target
from lightning_gradexplode.diagnose.causes.optimization import learning_rate
from lightning_gradexplode.diagnose.causes.own_targets import copied_module
from lightning_gradexplode.diagnose.trends import first_order_changes
from lightning_gradexplode.records import Activation, Evidence, Experiments, LossTerm, OptimizerFacts, Replay
from tests.diagnose.evidence import (
    batch,
    calm,
    diverged,
    field,
    finding,
    growing,
    history,
    kinds,
    operand,
    parameter,
    run,
)
from tests.diagnose.growth_examples import OVERSHOOT


def facts(names: Sequence[str], untrained: str = "", count: int = 2) -> object:
    """Return what is known of a network of equal modules, of which one may have no optimizer."""
    parameters = [
        parameter(f"{name}.{layer}.weight", (8, 8), optimizer=None if name == untrained else 0)
        for name in names
        for layer in range(count)
    ]
    return copied_module(run(parameters=tuple(parameters)))


@pytest.mark.parametrize(
    ("names", "untrained"),
    [(("online", "target"), ""), (("student", "mirror"), "mirror")],
    ids=["by its name", "without an optimizer"],
)
def test_a_copy_is_known_by_its_name_or_since_nothing_trains_it(names: Sequence[str], untrained: str) -> None:
    """The pair is named, the copy second."""
    assert facts(names, untrained) == names


def test_layers_of_equal_shapes_are_no_copies() -> None:
    """Query, key and value of an attention, although a key encoder makes targets elsewhere."""
    assert facts(("query", "key", "value"), count=1) is None


def rising(change: float, factor: float = 1.1, grown: float = 16.0) -> Evidence:
    """Return the evidence of a loss that grows steadily, by the first-order changes of its updates, without a replay.

    The weights have a norm of 10, and grow.
    """
    loss = [1.0 * factor**step for step in range(60)]
    quantities = {
        "loss": loss,
        "grad_norm": [one**0.5 for one in loss],
        "update_ratio": [change * one**0.5 / 10 for one in loss],
        "weight_norm": [10.0] * 59 + [grown],
    }
    findings = (finding("diverging-loss", 55),)
    names = ("body.weight",)
    one = replace(history(quantities), parameters=names, parameter_grad_norm=np.zeros((60, 1), np.float32))
    facts_of_run = run(parameters=(parameter(*names, (100, 100), std=0.1),))
    return diverged(step=40, now=59, findings=findings, history=(one,), batch=batch(), run=facts_of_run)


def test_updates_too_short_to_overshoot_leave_moving_targets() -> None:
    """To first order they change the loss of their own batch by a fifth, and it grows by a tenth at each step."""
    found = moving_target(rising(0.2))
    assert found is not None
    assert "do not overshoot" in found.evidence[-1]
    assert learning_rate(rising(0.2)) is None


def test_a_loss_that_rises_over_weights_of_the_same_size_has_other_reasons() -> None:
    """Data that become harder from batch to batch."""
    assert moving_target(rising(0.2, grown=10.5)) is None


def test_values_far_outside_of_the_others_need_no_moving_targets() -> None:
    """A batch of transitions whose reward is ten thousand times the usual one, beside a network that makes targets."""
    facts_of_copy = run(parameters=tuple(parameter(f"{name}.weight", (8, 8)) for name in ("online", "target")))
    names = ("state", "action", "next_state")
    usual = diverged(run=facts_of_copy, batch=batch(*(field(name) for name in (*names, "reward"))))
    assert moving_target(usual) is not None
    crashed = batch(*(field(name) for name in names), field("reward", least=-3.5e4))
    found = moving_target(replace(usual, batch=crashed))
    assert found is None or found.confidence < 0.5


def test_targets_that_become_infinite_with_the_outputs_are_made_from_them() -> None:
    """Labels of a model's own; not where the outputs are finite, nor where targets were infinite all along."""
    target = field("target of mse_loss", shape=(16,), inf_count=4)
    lost = LossTerm("mse_loss", (operand(inf_count=9), operand(inf_count=4)))
    moved = diverged(batch=batch(target), replay=Replay("reproduced", losses=(lost,)))
    found = moving_target(moved)
    assert found is not None
    assert found.confidence == 0.75
    assert "computed from the outputs" in found.evidence[0]
    assert "clamp(-3.5, 3.5)" in found.remedies[0]
    ordinary = Replay("reproduced", losses=(replace(lost, inputs=(operand(), operand(inf_count=4))),))
    assert moving_target(replace(moved, replay=ordinary)) is None
    assert moving_target(replace(moved, batch=batch(replace(target, usual_nonfinite=True)))) is None


def test_updates_that_reach_past_the_loss_may_overshoot() -> None:
    """A parabola whose step goes so far that the loss rises has a first-order change of four and more."""
    assert moving_target(rising(4.0)) is None
    assert learning_rate(rising(4.0)) is not None


@pytest.mark.parametrize("rate", [2.05, 2.5, 4.0])
def test_the_first_order_change_of_a_step_that_diverges_on_a_parabola_is_four_and_more(rate: float) -> None:
    """Gradient descent on half of w squared, at a rate above two; the formula against the run itself."""
    weight = 1.0
    quantities: dict[str, list[float]] = {name: [] for name in ("loss", "grad_norm", "update_ratio", "weight_norm")}
    for _ in range(60):
        quantities["loss"].append(weight**2 / 2)
        quantities["grad_norm"].append(abs(weight))
        quantities["update_ratio"].append(rate)
        quantities["weight_norm"].append(abs(weight))
        weight -= rate * weight
    changes = first_order_changes(diverged(now=59, history=(history(quantities),)))
    assert changes is not None
    assert changes == pytest.approx((2 * rate, 2 * rate))
    assert changes[0] >= 4


def test_a_loss_that_climbs_from_the_start_of_the_update_has_moving_targets() -> None:
    """No step along its own gradient raises a loss to first order, however long it is: the targets move with it."""
    climbing = Experiments(line_search=((0.0, 2.0), (0.01, 2.1), (0.1, 3.0), (0.3, 6.0), (1.0, 90.0)))
    plain = run(optimizers=(OptimizerFacts("SGD", groups=({"lr": 0.5},)),))
    assert kinds(diagnose(diverged(experiments=climbing, run=plain)))[0] == "moving-target"
    assert kinds(diagnose(diverged(experiments=OVERSHOOT, run=plain)))[0] == "learning-rate"


@pytest.mark.parametrize(("share", "named"), [(0.2, True), (-0.8, True), (0.97, False), (-1.0, False)])
def test_a_loss_that_falls_by_less_than_its_gradient_says_has_moving_targets(share: float, named: bool) -> None:
    """Its slope along the gradient is the gradient's norm where targets stay, and minus that where a sign is wrong."""
    along = ((0.0, 66.4), (0.01, 65.9), (0.1, 65.0), (0.3, 94.5), (1.0, 834.0))
    found = moving_target(
        diverged(
            experiments=Experiments(line_search=along, slope_ratio=share),
            history=(history(growing(rate=0.05)),),
            run=run(optimizers=(OptimizerFacts("SGD", groups=({"lr": 0.05},)),)),
        )
    )
    assert (found is not None) == named


def test_a_loss_that_is_many_times_itself_after_a_hundredth_of_the_update_shows_no_slope() -> None:
    """The shortest step is too long for the slope of the loss, so that nothing is known of the targets."""
    along = ((0.0, 2.0), (0.01, 60.0), (0.1, 6000.0), (0.3, 5e4), (1.0, 6e5))
    plain = run(optimizers=(OptimizerFacts("SGD", groups=({"lr": 0.5},)),))
    evidence = diverged(experiments=Experiments(line_search=along, memory_grad_norm=1e3), run=plain)
    assert kinds(diagnose(evidence))[0] == "learning-rate"


@pytest.mark.parametrize(("std", "is_resumed", "named"), [(0.1, False, True), (0.13, False, False), (0.13, True, True)])
def test_a_network_of_the_same_shapes_that_began_with_other_weights_is_a_fixed_teacher(
    std: float, is_resumed: bool, named: bool
) -> None:
    """A copy that follows begins with the same weights; of a run that goes on, that is not known."""
    weights = [parameter("net.0.weight", (8, 4)), parameter("net.2.weight", (2, 8))]
    teachers = [replace(one, name=one.name.replace("net", "teacher"), std=std, optimizer=None) for one in weights]
    facts = run(parameters=(*(replace(one, std=0.1) for one in weights), *teachers), is_resumed=is_resumed)
    found = moving_target(diverged(run=facts))
    assert (found is not None) is named
    assert found is None or any("the copy `teacher`, updated more slowly" in one for one in found.remedies)


@pytest.mark.parametrize("moved", ["", "teacher.2.weight"])
def test_a_copy_with_the_weights_of_the_start_makes_no_targets_that_move(moved: str) -> None:
    """A teacher whose student began as its copy stays as it is; one whose weights have changed follows."""
    weights = [parameter("net.0.weight", (8, 4)), parameter("net.2.weight", (2, 8))]
    teachers = [replace(one, name=one.name.replace("net", "teacher"), optimizer=None) for one in weights]
    unchanged = tuple(one.name for one in teachers if one.name != moved)
    found = moving_target(diverged(run=run(parameters=(*weights, *teachers)), unchanged=unchanged))
    assert (found is not None) == bool(moved)


@pytest.mark.parametrize(("rate", "named"), [(0.01, True), (5.0, False)])
def test_a_copy_says_less_than_a_rate_with_which_most_networks_fail(rate: float, named: bool) -> None:
    """Nothing but its shapes is seen of the copy."""
    weights = [parameter("net.0.weight", (8, 4)), parameter("net.2.weight", (2, 8))]
    copies = [replace(one, name=one.name.replace("net", "target"), optimizer=None) for one in weights]
    facts = run(parameters=(*weights, *copies), optimizers=(OptimizerFacts("SGD", ({"lr": rate},)),))
    found = moving_target(diverged(run=facts, history=(history(growing(rate=rate)),)))
    assert (found is not None) is named


def test_the_fall_of_a_loss_says_nothing_where_groups_have_rates_of_their_own() -> None:
    """The update is then no multiple of the gradient."""
    along = ((0.0, 66.4), (0.01, 65.9), (0.1, 65.0), (0.3, 94.5), (1.0, 834.0))
    groups = OptimizerFacts("SGD", groups=({"lr": 0.05}, {"lr": 0.0005}))
    experiments = Experiments(line_search=along, memory_grad_norm=74.0)
    assert moving_target(diverged(experiments=experiments, run=run(optimizers=(groups,)))) is None


@pytest.mark.parametrize(
    ("slope", "least", "output", "named"),
    [(2.0, -1.0, 1.0, True), (1.5, -1.0, 1.0, False), (2.0, 1.0, 1.0, False), (2.0, -1.0, 50.0, False)],
    ids=["one with a gradient", "several with one", "targets of ones", "targets that have not grown"],
)
def test_a_network_that_makes_its_own_targets_is_known_by_its_calls_without_a_gradient(
    slope: float, least: float, output: float, named: bool
) -> None:
    """The loss takes numbers that no field holds, and of three calls of each layer one has an error gradient."""
    made = LossTerm("mse_loss", (operand(greatest=output), operand(least=least)), 2.0)
    call = Activation("body", "Linear", 1.0, 2.0, gradient_norm=2.0, calls=3, first_gradient_norm=slope)
    known = diverged(
        batch=batch(field(), field("kind", dtype="int64")),
        replay=Replay("reproduced", loss=2.0, losses=(made,), activations=(call,)),
    )
    found = moving_target(known)
    assert (found is not None) == named
    assert found is None or "`body` is executed 3 times" in found.evidence[0]


@pytest.mark.parametrize("is_known", [True, False], ids=["loss known", "manual optimization"])
@pytest.mark.parametrize(("target", "named"), [(8e5, True), (1.2, False)])
def test_targets_that_grow_with_the_outputs_are_computed_from_the_model(
    target: float, named: bool, is_known: bool
) -> None:
    """Where nothing can be computed again, the targets of a later loss are compared with those of the first one."""

    def term(output: float, target: float) -> LossTerm:
        return LossTerm("mse_loss", (operand(greatest=output), operand(greatest=target, is_constant=True)), 1.0)

    values = growing(12, factor=1.8, rate=0.05)
    if not is_known:
        values["loss"] = [math.nan] * 12
    evidence = diverged(
        history=(history(values),),
        first_losses=(term(0.4, 1.0),),
        replay=Replay("not-possible", losses=(term(9e5, target),)),
    )
    found = moving_target(evidence)
    assert (found is not None and "have grown 8e+05 times" in found.evidence[0]) == named


@pytest.mark.parametrize(("rate", "named"), [(0.05, True), (5.0, False)])
def test_targets_that_grow_by_updates_that_are_far_too_long_are_a_consequence(rate: float, named: bool) -> None:
    """At a learning rate with which most networks fail, the outputs grow at once, and the targets that they make."""
    early, late = (
        LossTerm("mse_loss", (operand(greatest=size), operand(greatest=size, is_constant=True)), 1.0)
        for size in (1.0, 9e5)
    )
    evidence = diverged(
        history=(history(growing(12, factor=1.8, rate=rate)),),
        run=run(optimizers=(OptimizerFacts("SGD", ({"lr": rate},)),)),
        first_losses=(early,),
        replay=Replay("not-possible", losses=(late,)),
    )
    assert (moving_target(evidence) is not None) is named


@pytest.mark.parametrize(
    ("inputs", "output", "named"),
    [(1.1, 9.0, True), (12.0, 9.0, False), (None, 9.0, False), (1.1, 0.5, False), (1.1, 9.0, None)],
    ids=["inputs as at first", "inputs have grown", "inputs are not known", "outputs have not grown", "gradients"],
)
def test_targets_that_have_grown_little_are_computed_if_the_inputs_have_not_grown(
    inputs: float | None, output: float, named: bool | None
) -> None:
    """Data whose level rises raise targets and outputs, too, but by way of the inputs; two outputs are no targets."""
    early, late = (
        LossTerm("mse_loss", (operand(least=0.0, greatest=one), replace(other, is_constant=named is not None)), 1.0)
        for one, other in ((0.4, operand(least=0.0, greatest=1.0)), (output, operand(least=0.0, greatest=8.0)))
    )
    evidence = diverged(
        history=(history(growing(12, factor=1.8, rate=0.05)),),
        first_losses=(early,),
        replay=Replay("not-possible", losses=(late,)),
        input_growth=inputs,
    )
    found = moving_target(evidence)
    assert (found is not None and "have grown 8 times" in found.evidence[0]) == bool(named)


@pytest.mark.parametrize(
    ("error", "value", "named"),
    [
        (1.8e15, 4e7, True),  # about its square
        (1.8e15, -4e7, False),  # two losses that rise, as of two networks that share a rate
        (1.8e15, 40.0, False),  # the second has not run away
        (0.3, 4e7, False),  # nor the first
        (4e7, 4e7, False),  # no square
    ],
)
def test_a_critic_whose_error_is_the_square_of_the_values_of_an_actor_has_moving_targets(
    error: float, value: float, named: bool
) -> None:
    """Whichever of two optimizers is the actor's, and however small the losses were at the incident."""
    grown = [10.0 ** (step / 10) for step in range(60)]
    of_critic, of_actor = ([last / grown[-1] * one for one in grown] for last in (error, -value))
    of_critic[:12], of_actor[:12] = [0.3] * 12, [-1.0] * 12
    rate = [0.001] * 60
    for losses in ((of_critic, of_actor), (of_actor, of_critic)):
        kept = tuple(history({**calm(60), "loss": one, "learning_rate": rate}) for one in losses)
        settings = run(optimizers=(OptimizerFacts("Adam", ({"lr": 0.001},)),) * 2)
        found = moving_target(Evidence(12, 59, (finding("gradient-growth", 13),), settings, kept))
        assert (found is not None and "about its square" in found.evidence[0]) is named
