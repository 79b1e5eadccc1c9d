"""A gain per time step that compounds over the sequence."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import inputs, scale_of, targets
from lightning_gradexplode.diagnose.causes.loops import COMPOUNDED, carried_state, cell_by_hand
from lightning_gradexplode.diagnose.curves import curve, first_nonfinite, loss_curve
from lightning_gradexplode.diagnose.layers import DEEP, first_numbers, gain_of, is_early, layers
from lightning_gradexplode.diagnose.rate_remedies import first_update_ratio
from lightning_gradexplode.diagnose.recurrence_remedies import recurrence_remedies
from lightning_gradexplode.diagnose.repeated_weights import is_gated, own_matrices, recurrent_parameters
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Activation, Cause, Evidence, ParameterFacts, RunFacts

SCALE_OF_UNKNOWN = 1e6
"""Scale that data which are not known may have: that of energies, incomes or amounts of money."""


def recurrence(evidence: Evidence) -> Cause | None:
    """Return the cause if the gain per time step compounds over the sequence."""
    rules = (
        _of_matrix,
        _of_first_update,
        _of_gradient,
        _of_loop,
        carried_state,
        cell_by_hand,
        _by_elimination,
        _of_own_matrix,
    )
    found = [rule(evidence) for rule in rules]
    return max((one for one in found if one is not None), key=lambda one: one.confidence, default=None)


def _of_matrix(evidence: Evidence) -> Cause | None:
    """Return the cause if a recurrent matrix without gates has a spectral radius above one."""
    plain = [one for one in recurrent_parameters(evidence.run) if not is_gated(one, evidence.run)]
    worst = max(plain, key=lambda one: one.spectral_radius or 0.0, default=None)
    radius = worst.spectral_radius if worst is not None else None
    if worst is None or radius is None or not 1.0 < radius < math.inf:
        return None
    norm = "" if worst.spectral_norm is None else f" and a largest singular value of {worst.spectral_norm:.3g}"
    sentences = [f"`{worst.name}` started with a spectral radius of {radius:.3g}{norm}."]
    length = sequence_length(evidence)
    confidence = 0.45
    if length:
        total = math.exp(min(length * math.log(radius), 700.0))
        sentences.append(f"Over {length} time steps a radius of {radius:.3g} compounds to {total:.3g}.")
        confidence = 0.88 if total >= 1e3 else 0.7 if total >= 30 else 0.3
    if not is_early(evidence):
        confidence *= 0.7
    sentences += first_numbers(evidence)
    return Cause(
        "recurrence", worst.name, tuple(sentences), confidence, recurrence_remedies(evidence, worst, False, length)
    )


def _of_first_update(evidence: Evidence) -> Cause | None:
    """Return the cause if an early update can have raised a matrix without gates above a radius of one.

    No eigenvalue of a normal matrix moves by more than the norm of what is added to it (Bauer and Fike, 1960).
    """
    plain = [one for one in recurrent_parameters(evidence.run) if not is_gated(one, evidence.run)]
    length, ratio = sequence_length(evidence), first_update_ratio(evidence)
    worst = max(plain, key=lambda one: one.spectral_radius or 0.0, default=None)
    if worst is None or not worst.spectral_radius or worst.spectral_radius > 1 or not length or not ratio:
        return None
    growth, failed = trend(evidence).gradient_growth, first_nonfinite(evidence)
    fails_at_once = failed is not None and failed.step <= evidence.run.first_step + 1
    if not is_early(evidence) or evidence.run.is_resumed or not (growth >= COMPOUNDED or fails_at_once):
        return None
    change = ratio * math.hypot(*(one.std * math.sqrt(math.prod(one.shape)) for one in evidence.run.parameters))
    radius = worst.spectral_radius + change
    if not radius > 1 or not length * math.log(radius) > math.log(COMPOUNDED):
        return None
    return Cause(
        "recurrence",
        worst.name,
        (
            f"`{worst.name}` started with a spectral radius of {worst.spectral_radius:.3g}; the first update, of norm "
            f"{change:.3g}, can have raised it to {radius:.3g}, which over {length} time steps compounds to "
            f"{math.exp(min(length * math.log(radius), 700.0)):.3g}.",
            "The next step is not finite."
            if fails_at_once
            else f"The gradient norm has grown {growth:.3g} times since.",
        ),
        0.55,
        tuple(dict.fromkeys((*remedies.clip(evidence), *recurrence_remedies(evidence, worst, False, length)))),
    )


def _of_own_matrix(evidence: Evidence) -> Cause | None:
    """Return the cause if a square matrix of the user's own expands, and an input is a long sequence."""
    own = own_matrices(evidence.run)
    steps = next((one.shape[1] for one in inputs(evidence) if len(one.shape) == 3 and one.shape[1] >= DEEP), None)
    worst = max(own, key=gain_of, default=None)
    norm = curve(evidence, "grad_norm").first
    if worst is None or steps is None or norm is None or norm < COMPOUNDED or not is_early(evidence):
        return None
    if not gain_of(worst) > 1 or not steps * math.log(gain_of(worst)) > math.log(COMPOUNDED):
        return None
    return Cause(
        "recurrence",
        worst.name,
        (
            f"`{worst.name}` is square, its elements are those of a matrix with a spectral radius near "
            f"{gain_of(worst):.3g}, and an input has {steps} time steps.",
            *first_numbers(evidence),
        ),
        0.6,
        recurrence_remedies(evidence, worst, False, steps),
    )


def _of_gradient(evidence: Evidence) -> Cause | None:
    """Return the cause if the error gradient was seen to grow from time step to time step."""
    seen = [one for one in evidence.findings if one.sign == "backward-gain" and "time step" in one.message]
    if not seen:
        return None
    own = [one for one in (*recurrent_parameters(evidence.run), *layers(evidence.run)) if one.module == seen[0].where]
    worst = own[0] if own else None
    sentence = seen[0].message[:1].upper() + seen[0].message[1:]
    gated = worst is not None and is_gated(worst, evidence.run)
    return Cause(
        "recurrence",
        worst.name if worst is not None else seen[0].where,
        (f"{sentence.rstrip('.')}.", *first_numbers(evidence)),
        0.75,
        recurrence_remedies(evidence, worst, gated, sequence_length(evidence)),
    )


def _of_loop(evidence: Evidence) -> Cause | None:
    """Return the cause if a layer that a loop executes again and again multiplies what it takes."""
    replay = evidence.replay
    if replay is None or not (trend(evidence).has_diverged or is_early(evidence)):
        return None
    weights = {one.module: one for one in layers(evidence.run)}
    looped = [one for one in replay.activations if one.calls >= DEEP and one.module in weights]
    worst = max(looped, key=loop_gain, default=None)
    if worst is None or loop_gain(worst) < 30:
        return None
    gain = loop_gain(worst)
    parameter = weights[worst.module]
    own = max(own_matrices(evidence.run), key=gain_of, default=None)
    if own is not None and gain_of(own) > 1 and parameter.shape[0] != parameter.shape[-1]:
        parameter = own  # what is applied to the state in the same loop
    return Cause(
        "recurrence",
        parameter.name,
        (
            f"`{worst.module}` is executed {worst.calls} times in one forward pass; from the first call to the last, "
            f"or back, its output or error gradient grows {gain:.3g} times, {gain ** (1 / (worst.calls - 1)):.3g} "
            "times a call.",
            *first_numbers(evidence),
        ),
        0.85 if gain >= 1e3 else 0.65,
        recurrence_remedies(evidence, parameter, False, worst.calls),
    )


def _by_elimination(evidence: Evidence) -> Cause | None:
    """Return the cause if the first loss is far beyond what few layers, each executed once, can make of the inputs."""
    first, batch = loss_curve(evidence).first, evidence.batch
    weights = layers(evidence.run)
    repeated = [one for one in weights if one.shape[0] == one.shape[-1] and len(one.shape) == 2]
    repeated = repeated or [one for one in evidence.run.parameters if _is_factor(one, evidence.run)]
    if first is None or not repeated or not is_early(evidence) or len(weights) >= 2 * DEEP:
        return None
    scales = [scale_of(one) or 0.0 for one in (batch.fields if batch is not None else ())] or [SCALE_OF_UNKNOWN]
    reach = math.prod(max(1.0, gain_of(one)) for one in weights) * max([1.0, *scales])
    if not first > 1e4 * reach**2:
        return None
    worst = max(repeated, key=gain_of)
    steps = next((one.shape[1] for one in inputs(evidence) if len(one.shape) == 3 and one.shape[1] >= DEEP), None)
    shape = "is square" if len(worst.shape) == 2 else f"multiplies by {worst.std:.3g}"
    return Cause(
        "recurrence",
        worst.name,
        (
            f"The first loss is {first:.4g}, before any update; the layers together multiply what they take by "
            f"{reach:.3g} at most if each is executed once. `{worst.name}` {shape}"
            + (f", and an input has {steps} steps." if steps else ", as what a loop applies again and again."),
        ),
        0.6 if steps else 0.5,
        recurrence_remedies(evidence, worst, False, steps),
    )


def _is_factor(parameter: ParameterFacts, run: RunFacts) -> bool:
    """Return whether a parameter is a vector of the user's own module whose elements are above one."""
    roles = {one.name: one.role for one in run.modules}
    is_own = roles.get(parameter.module, "other") == "other" and not parameter.name.endswith("bias")
    return len(parameter.shape) == 1 and is_own and 1.0 < parameter.std < math.inf


def loop_gain(activation: Activation) -> float:
    """Return the growth of a module's output, or of its error gradient on the way back, over all of its calls."""
    grows = [1.0]
    if activation.first_rms and activation.first_rms > 0:
        grows.append(activation.rms / activation.first_rms)
    if activation.gradient_norm and activation.first_gradient_norm and activation.gradient_norm > 0:
        grows.append(activation.first_gradient_norm / activation.gradient_norm)
    return max((one for one in grows if math.isfinite(one)), default=1.0)


def sequence_length(evidence: Evidence) -> int | None:
    """Return the number of time steps: that of the run's first batch, else of an input of three dimensions."""
    if evidence.run.sequence_length:
        return evidence.run.sequence_length
    if not any(one.role == "recurrent" for one in evidence.run.modules):
        return None
    return next((one.shape[1] for one in inputs(evidence) if len(one.shape) == 3), None) or next(
        (
            one.shape[1]
            for one in (evidence.batch.fields if evidence.batch is not None else ())
            if len(one.shape) == 2 and "int" in one.dtype and one not in targets(evidence)
        ),
        None,
    )
