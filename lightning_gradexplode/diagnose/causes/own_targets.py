"""Targets that a step computes itself: by a copy of a network, by the network, or from its outputs."""

from __future__ import annotations

import math
from collections import defaultdict

from lightning_gradexplode.diagnose.batch import is_known_of_batch, is_of_batch, size_of, targets
from lightning_gradexplode.diagnose.faults.operations import base_name
from lightning_gradexplode.diagnose.faults.operations import size_of as largest_of
from lightning_gradexplode.records import Activation, Evidence, FieldFacts, LossTerm, Operand, RunFacts

HALF_AS_LARGE = 0.5
"""Size of targets divided by that of the outputs from which, with a growing loss, both have grown."""

TARGETS_GROWN = 100.0
"""Growth of targets over the run from which they are no data."""

GROWN_TOGETHER = 5.0
"""Growth of both targets and outputs from which, if the inputs have not grown, the outputs determine the targets."""

STAYED = 2.0
"""Ratio of the largest target to that of the first batch up to which targets are those of the data."""

INPUTS_ALIKE = 2.0
"""Growth of the inputs up to which they have not grown."""

OUTPUTS_ALIKE, CLOSE = 100.0, 3.0
"""Largest factor between outputs and targets that have grown together, by much and by little."""

_COPY = ("target", "tgt", "teacher", "ema", "momentum", "old", "slow", "delayed", "offline", "key")


def copied_module(run: RunFacts) -> tuple[str, str] | None:
    """Return the names of a module and its copy for targets: of the same shapes, by name or without optimizer."""
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    trained: dict[str, bool] = defaultdict(bool)
    for one in run.parameters:
        top = one.name.split(".")[0]
        shapes[top].append(one.shape)
        trained[top] = trained[top] or one.optimizer is not None
    for name in shapes:
        alike = [other for other in shapes if shapes[other] == shapes[name] and other != name]
        # Three or more modules of the same shapes are layers of one network, such as query, key and value.
        for other in alike if len(alike) == 1 or len(shapes[name]) > 2 else ():
            untrained = trained[name] and not trained[other] and len(shapes[name]) > 1
            named = any(word in other.lower() for word in _COPY) and not any(word in name.lower() for word in _COPY)
            if named or untrained:
                return name, other
    return None


def names_of_copy(run: RunFacts | None) -> frozenset[str]:
    """Return the names of the parameters of a copy for targets; none if there is no copy, or nothing is known."""
    copied = None if run is None else copied_module(run)
    if run is None or copied is None:
        return frozenset()
    return frozenset(one.name for one in run.parameters if one.name.split(".")[0] == copied[1])


def moving_copy(evidence: Evidence) -> tuple[str, str] | None:
    """Return the names of a module and its copy for targets, unless the copy has the weights of the start."""
    copied, names = copied_module(evidence.run), names_of_copy(evidence.run)
    return None if names <= {*evidence.unchanged} else copied


def target_of_itself(evidence: Evidence) -> tuple[Activation, LossTerm] | None:
    """Return a layer of which all calls but one have no error gradient, and the loss whose targets the step computes.

    Returns:
        None without such a layer, if all elements of the targets are equal (as for an adversarial critic), or if the
        targets have not grown with the outputs.
    """
    replay = evidence.replay
    if replay is None or evidence.batch is None:
        return None
    weights = {one.module for one in evidence.run.parameters}
    called = [one for one in replay.activations if one.module in weights and one.calls > 1]
    once = [one for one in called if one.gradient_norm and one.gradient_norm == one.first_gradient_norm]
    if not once or len(once) < len(called):
        return None
    for term in replay.losses:
        if len(term.inputs) < 2 or is_of_batch(evidence, term):
            continue
        output, target = (size_of(one) or 0.0 for one in term.inputs[:2])
        # Targets of random noise keep their size; the layer may be called for a metric without a gradient.
        if target >= HALF_AS_LARGE * output and term.inputs[1].least != term.inputs[1].greatest:
            return once[0], term
    return None


def grown_target(evidence: Evidence) -> tuple[LossTerm, float] | None:
    """Return a loss whose targets have grown with its outputs since the first step, and how much.

    Data do not grow with the outputs of a model, unless its inputs grow, too; targets do that are computed from it.
    Those that have a gradient are outputs themselves, and are none.
    """
    are_alike = evidence.input_growth is not None and evidence.input_growth < INPUTS_ALIKE
    later = evidence.replay.losses if evidence.replay is not None else ()
    for before, now in zip(evidence.first_losses, later, strict=False):
        if base_name(before.name) != base_name(now.name) or min(len(before.inputs), len(now.inputs)) < 2:
            continue
        if is_known_of_batch(evidence, now) or not now.inputs[1].is_constant:
            continue
        (first, start), (output, target) = ([size_of(one) or 0.0 for one in term.inputs[:2]] for term in (before, now))
        if not start > 0:
            continue
        growth, output_growth = target / start, output / first if first else 0.0
        factor = max(output, target) / min(output, target) if output and target else math.inf
        by_much = growth > TARGETS_GROWN and factor < OUTPUTS_ALIKE
        by_little = are_alike and min(growth, output_growth) > GROWN_TOGETHER and factor < CLOSE
        if by_much or by_little:
            return now, growth
    return None


def infinite_target(evidence: Evidence) -> FieldFacts | None:
    """Return the target of a loss that is infinite at the same step as the outputs, if earlier batches were finite.

    Data do not become infinite at the same step as the outputs by chance: the targets were computed from the outputs.
    """
    for term in evidence.replay.losses if evidence.replay is not None else ():
        for field in targets(evidence):
            is_known = field.usual_greatest is not None and not field.usual_nonfinite
            is_of_term = field.read_as == "target" and field.read_by == base_name(term.name)
            if is_of_term and is_known and field.inf_count and term.inputs and term.inputs[0].inf_count:
                return field
    return None


def targets_stay(evidence: Evidence) -> Operand | None:
    """Return the targets of a loss function whose size is that of the first step, while the outputs have grown.

    Returns:
        The targets in the incident; None if they have grown, or are not known.
    """
    later = {one.name: one for one in evidence.replay.losses} if evidence.replay is not None else {}
    for first in evidence.first_losses:
        now = later.get(first.name)
        if now is None or len(first.inputs) != 2 or len(now.inputs) != 2:
            continue
        (output, target), (last_output, last_target) = first.inputs, now.inputs
        is_data = target.is_constant and last_target.is_constant and not last_target.nan_count + last_target.inf_count
        same = is_data and 0 < largest_of(last_target) <= STAYED * largest_of(target)
        if same and largest_of(last_output) >= GROWN_TOGETHER * largest_of(output):
            return last_target
    return None
