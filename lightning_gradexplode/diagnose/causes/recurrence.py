"""A gain per time step that compounds over the sequence."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose.batch import inputs, scale_of, targets
from lightning_gradexplode.diagnose.causes.loops import carried_state, cell_by_hand
from lightning_gradexplode.diagnose.causes.optimization import exceeds_usual
from lightning_gradexplode.diagnose.curves import loss_curve
from lightning_gradexplode.diagnose.gain_profiles import backward_gain
from lightning_gradexplode.diagnose.layers import DEEP, first_numbers, gain_of, is_early, layers
from lightning_gradexplode.diagnose.remedies.recurrence import recurrence_remedies
from lightning_gradexplode.diagnose.repeated_weights import (
    explodes_at_first,
    is_gated,
    own_matrices,
    recurrent_parameters,
)
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Activation, Cause, Evidence, ParameterFacts, RunFacts
from lightning_gradexplode.records.backward_gain import is_in_time

SCALE_OF_UNKNOWN = 1e6
"""Scale assumed for data that are not known, such as energies or incomes."""


MAX_GATES = 4
"""Most numbers that a recurrent cell returns for each number that it takes: one for each gate."""

GROWN = 30.0
"""Growth over all calls of a layer, or uses of a weight, from which its gain has compounded."""

GROWN_WEIGHTS = 2.0
"""Growth of the weights from which updates have made the recurrent matrix another one."""


def recurrence(evidence: Evidence) -> Cause | None:
    """Return the cause if the gain per time step compounds over the sequence."""
    rules = (
        _of_matrix,
        _of_gradient,
        _of_loop,
        _of_first_pass,
        carried_state,
        cell_by_hand,
        _by_elimination,
    )
    found = [rule(evidence) for rule in rules]
    return max((one for one in found if one is not None), key=lambda one: one.confidence, default=None)


def _of_matrix(evidence: Evidence) -> Cause | None:
    """Return the cause if a matrix without gates that is applied at each time step has a spectral radius above one.

    For a matrix of the user's own module the radius is not measured, but estimated from the size of its elements.
    """
    plain = [one for one in recurrent_parameters(evidence.run) if not is_gated(one, evidence.run)]
    worst = max(plain, key=lambda one: one.spectral_radius or 0.0, default=None)
    length = sequence_length(evidence)
    radius = 0.0 if worst is None else worst.spectral_radius or 0.0
    calls = _calls(evidence) if explodes_at_first(evidence) else {}
    in_loop = [one for one in layers(evidence.run) if one.name in calls and one.shape[0] == one.shape[-1]]
    if worst is None and (own := in_loop or own_matrices(evidence.run)):
        worst = max(own, key=gain_of)
        length, radius = calls.get(worst.name) or _steps(evidence), gain_of(worst)
    if worst is None or not length or not 1.0 < radius < math.inf:
        return None
    total = math.exp(min(length * math.log(radius), 700.0))
    confidence = 0.88 if total >= 1e3 else 0.7 if total >= 30 else 0.3
    confidence *= 1.0 if is_early(evidence) else 0.7
    if worst.spectral_radius is None:
        confidence *= 0.7
    return Cause(
        "recurrence",
        worst.name,
        (
            f"`{worst.name}` started with a spectral radius {'of' if worst.spectral_radius else 'near'} {radius:.3g}; "
            f"over {length} time steps that compounds to {total:.3g}.",
            *first_numbers(evidence),
        ),
        confidence,
        recurrence_remedies(evidence, worst, False, length),
    )


def _of_gradient(evidence: Evidence) -> Cause | None:
    """Return the cause if the measured error gradient grows from time step to time step."""
    seen = [one for one in evidence.findings if is_in_time(one)]
    if not seen:
        return None
    weights = (*recurrent_parameters(evidence.run), *layers(evidence.run))
    own = [one for one in weights if one.module == seen[0].where and _returns_state(one)]
    worst = own[0] if own else None
    sentence = seen[0].message[:1].upper() + seen[0].message[1:]
    gated = worst is not None and is_gated(worst, evidence.run)
    # Updates far too long enlarge the recurrent matrix themselves.
    is_made = not is_early(evidence) and exceeds_usual(evidence) and trend(evidence).weight_growth >= GROWN_WEIGHTS
    return Cause(
        "recurrence",
        worst.name if worst is not None else seen[0].where,
        (f"{sentence.rstrip('.')}.", *first_numbers(evidence)),
        0.3 if is_made else 0.75,
        recurrence_remedies(evidence, worst, gated, sequence_length(evidence)),
    )


def _of_loop(evidence: Evidence) -> Cause | None:
    """Return the cause if a layer that is executed repeatedly in a loop amplifies its inputs."""
    replay = evidence.replay
    if replay is None or not (trend(evidence).has_diverged or is_early(evidence)):
        return None
    weights = {one.module: one for one in layers(evidence.run)}
    looped = [one for one in replay.activations if one.calls >= DEEP and one.module in weights]
    grown = [one for one in looped if loop_gain(one) >= GROWN]
    # A layer that takes what comes from outside has the gain of what is applied to the state.
    worst = max(grown, key=lambda one: (_returns_state(weights[one.module]), loop_gain(one)), default=None)
    if worst is None:
        return None
    gain = loop_gain(worst)
    parameter = weights[worst.module]
    own = max(own_matrices(evidence.run), key=gain_of, default=None)
    if own is not None and gain_of(own) > 1 and parameter.shape[0] != parameter.shape[-1]:
        parameter = own  # other modules that are applied to the state in the same loop
    is_known = _returns_state(parameter)
    return Cause(
        "recurrence",
        parameter.name if is_known else worst.module,
        (
            f"`{worst.module}` is executed {worst.calls} times in one forward pass; from the first call to the last, "
            f"or back, its output or error gradient grows {gain:.3g} times, {gain ** (1 / (worst.calls - 1)):.3g} "
            "times a call.",
            *first_numbers(evidence),
        ),
        0.85 if gain >= 1e3 else 0.65,
        recurrence_remedies(evidence, parameter if is_known else None, False, worst.calls),
    )


def _returns_state(parameter: ParameterFacts) -> bool:
    """Return whether a weight can be applied to its own result, as that of a recurrent cell."""
    return MAX_GATES * parameter.shape[-1] >= parameter.shape[0]


def _of_first_pass(evidence: Evidence) -> Cause | None:
    """Return the cause if the first forward pass multiplies by one weight again and again, and its results grow."""
    if not (trend(evidence).has_diverged or is_early(evidence)):
        return None
    parameters = {one.name: one for one in evidence.run.parameters}
    looped = [one for one in evidence.applied if one.calls >= DEEP and one.name in parameters]
    gains = {one.name: (one.rms or 0.0) / (one.first_rms or math.inf) for one in looped}
    worst = max(looped, key=lambda one: gains[one.name], default=None)
    if worst is None or gains[worst.name] < GROWN:
        return None
    gain = gains[worst.name]
    return Cause(
        "recurrence",
        worst.name,
        (
            f"The first forward pass multiplies by `{worst.name}` {worst.calls} times in turn, and what it multiplies "
            f"grows {gain:.3g} times.",
            *first_numbers(evidence),
        ),
        0.85 if gain >= 1e3 else 0.65,
        recurrence_remedies(evidence, parameters[worst.name], False, worst.calls),
    )


def _by_elimination(evidence: Evidence) -> Cause | None:
    """Return the cause if the first loss is far above that of a few layers, each executed once."""
    first, batch = loss_curve(evidence).first, evidence.batch
    weights = layers(evidence.run)
    once = {one.name for one in evidence.applied if one.calls == 1}
    repeated = [one for one in weights if one.shape[0] == one.shape[-1] and len(one.shape) == 2]
    repeated = repeated or [one for one in evidence.run.parameters if _is_factor(one, evidence.run)]
    repeated = [one for one in repeated if one.name not in once]
    if first is None or not repeated or not is_early(evidence) or len(weights) >= 2 * DEEP:
        return None
    scales = [scale_of(one) or 0.0 for one in (batch.fields if batch is not None else ())] or [SCALE_OF_UNKNOWN]
    reach = math.prod(max(1.0, gain_of(one)) for one in weights) * max([1.0, *scales])
    gain = backward_gain(evidence)
    # No layer that is executed once multiplies an error gradient by more than its Frobenius norm.
    bound = math.prod(max(1.0, one.std * math.sqrt(math.prod(one.shape))) for one in weights)
    is_beyond = gain is not None and gain.total > 10 * bound
    if not first > (1e2 if is_beyond else 1e4) * reach**2:
        return None
    worst = max(repeated, key=gain_of)
    steps = _steps(evidence)
    said = []
    if gain is not None and is_beyond:
        said = [
            f"The error gradient grows {gain.total:.3g} times on its way back; their norms multiply to {bound:.3g}."
        ]
    shape = "is square" if len(worst.shape) == 2 else f"multiplies by up to {worst.largest:.3g}"
    return Cause(
        "recurrence",
        worst.name,
        (
            f"The first loss is {first:.4g}, before any update; the layers together multiply what they take by "
            f"{reach:.3g} at most if each is executed once. `{worst.name}` {shape}"
            + (f", and an input has {steps} steps." if steps else ", as what a loop applies again and again."),
            *said,
        ),
        0.5 if steps else 0.45,
        recurrence_remedies(evidence, worst, False, steps, is_alone=steps is not None or len(repeated) == 1),
    )


def _steps(evidence: Evidence) -> int | None:
    """Return the number of time steps of the first input that is a long sequence, None if none is."""
    return next((one.shape[1] for one in inputs(evidence) if len(one.shape) == 3 and one.shape[1] >= DEEP), None)


def _calls(evidence: Evidence) -> dict[str, int]:
    """Return how often the first forward pass multiplies in turn by each weight that it repeats."""
    return {one.name: one.calls for one in evidence.applied if one.calls >= DEEP}


def _is_factor(parameter: ParameterFacts, run: RunFacts) -> bool:
    """Return whether a parameter is a vector of the user's own module some of whose elements are above one."""
    roles = {one.name: one.role for one in run.modules}
    is_own = roles.get(parameter.module, "other") == "other" and not parameter.name.endswith("bias")
    return len(parameter.shape) == 1 and is_own and 1.0 < parameter.largest < math.inf


def loop_gain(activation: Activation) -> float:
    """Return the growth of a module's output, or of its error gradient in the backward pass, over all of its calls."""
    grows = [1.0]
    if activation.first_rms and activation.first_rms > 0:
        grows.append(activation.rms / activation.first_rms)
    if activation.gradient_norm and activation.first_gradient_norm and activation.gradient_norm > 0:
        grows.append(activation.first_gradient_norm / activation.gradient_norm)
    return max((one for one in grows if math.isfinite(one)), default=1.0)


def sequence_length(evidence: Evidence) -> int | None:
    """Return the number of time steps: those of the run's first batch, of the loss's graph or of an input."""
    if evidence.run.sequence_length:
        return evidence.run.sequence_length
    cells = {one.name for one in evidence.run.modules if one.role == "recurrent"}
    if not cells:
        return None
    fields = evidence.batch.fields if evidence.batch is not None else ()
    # The graph of a loss holds the time steps of all samples as rows of one matrix.
    rows = next((one.shape[0] for one in fields if one.read_as == "input" and one.read_by in cells and one.shape), 0)
    samples = next((one.shape[0] for one in targets(evidence) if one.shape), 0)
    if samples and rows > samples and rows % samples == 0:
        return rows // samples
    return next((one.shape[1] for one in inputs(evidence) if len(one.shape) == 3), None) or next(
        (one.shape[1] for one in fields if len(one.shape) == 2 and "int" in one.dtype and one not in targets(evidence)),
        None,
    )
