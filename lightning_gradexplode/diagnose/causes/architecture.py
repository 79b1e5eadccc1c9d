"""Causes in the network: the scale of its first weights, its depth, its recurrence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import (
    critical_step,
    curve,
    gradient_profile,
    signs,
    trend,
)
from lightning_gradexplode.records import Activation, Cause, Evidence, ModuleFacts, ParameterFacts, RunFacts

USUAL_GAIN = 1.5
"""Root mean square of a weight times the root of its inputs: 0.58 by torch's default, 1 by Xavier, 1.41 by He."""

EARLY = 30
"""Steps from the start within which a failure shows how the run began."""

DEEP = 8
"""So many layers of weights in a row, and a gain per layer of little more than one compounds."""

_WEIGHTED = {"linear", "convolution", "attention", "recurrent", "other"}
_SATURATING = ("tanh", "sigmoid", "hardtanh", "hardsigmoid")


def initialization(evidence: Evidence) -> Cause | None:
    """Return the cause if weights start on a scale that explodes or saturates."""
    large = sorted(_large_weights(evidence.run), key=gain_of, reverse=True)
    course = trend(evidence)
    saturated = (
        _saturated(evidence) if signs(evidence) & {"stalled-loss", "vanishing-gradient", "zero-gradient"} else []
    )
    if large and is_early(evidence):
        worst = large[0]
        gain = gain_of(worst)
        confidence = 0.9 if gain >= 10 else 0.8 if gain >= 5 else 0.65
        if _normalized_share(evidence.run) >= 0.5:
            confidence *= 0.6
        first = curve(evidence, "grad_norm").first
        if first is not None and first < 10 and not course.has_diverged:
            confidence *= 0.6
        sentences = [
            f"`{worst.name}` starts with a root mean square of {worst.std:.3g}; for its {worst.fan_in} inputs the "
            "usual "
            f"is {usual_std(worst):.3g}, so that it multiplies them by {gain:.3g}."
        ]
        if len(large) > 1:
            sentences.append(f"{len(large)} weights are above {2 * USUAL_GAIN:g} times the inputs' scale.")
        sentences += _first_numbers(evidence)
        return Cause(
            "initialization",
            worst.name,
            tuple(sentences),
            confidence,
            (_initialization_remedy(worst, evidence.run), *remedies.clip(evidence)),
        )
    if saturated:
        worst_layer = saturated[0]
        return Cause(
            "initialization",
            worst_layer.module,
            (
                f"{worst_layer.saturated or 0:.0%} of the outputs of `{worst_layer.module}` ({worst_layer.kind}) are "
                "in its "
                "flat part, where the slope is zero.",
            ),
            0.55,
            (
                "use rectified units there: `nn.ReLU()`"
                if any(word in worst_layer.kind.lower() for word in _SATURATING)
                else "start with smaller biases and He's initialization: `nn.init.kaiming_normal_(layer.weight)`",
                "start with smaller weights: `nn.init.xavier_uniform_(layer.weight)`",
            ),
        )
    return None


def gain_of(parameter: ParameterFacts) -> float:
    """Return by how much a weight multiplies inputs that are independent of each other."""
    return parameter.std * math.sqrt(parameter.fan_in or 0)


def usual_std(parameter: ParameterFacts) -> float:
    """Return the usual root mean square of a weight with so many inputs."""
    return 1.0 / math.sqrt(max(parameter.fan_in or 1, 1))


def is_early(evidence: Evidence) -> bool:
    """Return whether the run fails within its first steps, and did not go on from trained weights."""
    return evidence.run.first_step == 0 and critical_step(evidence) <= EARLY


def _layers(run: RunFacts) -> list[ParameterFacts]:
    """Return the weights of linear, convolutional and similar layers, in the order of the modules."""
    roles = {one.name: one.role for one in run.modules}
    return [
        one
        for one in run.parameters
        if one.fan_in
        and len(one.shape) > 1
        and roles.get(one.module, "other") in _WEIGHTED
        and one.module_kind not in ("Embedding", "EmbeddingBag")
    ]


def _large_weights(run: RunFacts) -> list[ParameterFacts]:
    return [one for one in _layers(run) if math.isfinite(one.std) and gain_of(one) > 2 * USUAL_GAIN]


def _normalized_share(run: RunFacts) -> float:
    """Return the number of normalizing modules over that of layers with weights."""
    layers = len(_layers(run))
    return sum(one.role == "normalization" for one in run.modules) / layers if layers else 0.0


def _saturated(evidence: Evidence) -> list[Activation]:
    replay = evidence.replay
    found = [one for one in replay.activations if one.saturated is not None and one.saturated > 0.9] if replay else []
    return sorted(found, key=lambda one: -(one.saturated or 0))


def _first_numbers(evidence: Evidence) -> list[str]:
    loss, norm = curve(evidence, "loss").first, curve(evidence, "grad_norm").first
    experiments = evidence.experiments
    if experiments is not None and experiments.initial_grad_norm is not None:
        norm = experiments.initial_grad_norm
    said = [f"the first loss is {loss:.4g}"] if loss is not None else []
    said += [f"the first gradient has a norm of {norm:.3g}"] if norm is not None else []
    return [f"Before any update, {' and '.join(said)}."] if said else []


def _initialization_remedy(parameter: ParameterFacts, run: RunFacts) -> str:
    rectified = any("relu" in one.kind.lower() or one.kind in ("GELU", "SiLU", "ELU") for one in run.modules)
    call = "nn.init.kaiming_normal_" if rectified else "nn.init.xavier_uniform_"
    name = f"model.{parameter.name}" if parameter.name.replace(".", "").isidentifier() else "layer.weight"
    return f"start it on the usual scale: `{call}({name})`"


@dataclass(frozen=True, slots=True)
class Profile:
    """How a quantity changes over the layers of a network.

    Args:
        layers: Number of layers.
        total: Its value at the first layer over that at the last one, or the other way round for activations.
        of: What grows, as words.
    """

    layers: int
    total: float
    of: str

    @property
    def per_layer(self) -> float:
        """The mean gain of a layer."""
        return self.total ** (1 / max(self.layers - 1, 1)) if self.total > 0 else 0.0


def depth(evidence: Evidence) -> Cause | None:
    """Return the cause if the gain per layer compounds over a deep network."""
    if recurrent_parameters(evidence.run) and not _layers_outside_recurrence(evidence.run) >= DEEP:
        return None
    profiles = [one for one in (_activation_profile(evidence), _gradient_profile(evidence)) if one is not None]
    profiles = [one for one in profiles if one.layers >= DEEP and one.total >= 100 and one.per_layer < 10]
    if not profiles:
        return None
    best = max(profiles, key=lambda one: one.total)
    confidence = 0.8 if best.total >= 1e3 else 0.6
    if not is_early(evidence):
        confidence *= 0.6
    steepest = ""
    run = evidence.run
    rectified = any("relu" in one.kind.lower() for one in run.modules)
    saturating = [one.name for one in run.modules if one.kind.lower() in _SATURATING]
    advice = []
    if _normalized_share(run) < 0.5:
        advice.append("normalize after each layer: `nn.LayerNorm(features)`")
    advice.append(f"add residual connections: `x = x + layer(x)`, or use fewer layers than the present {best.layers}")
    advice.append(
        "start with weights that keep the scale: "
        + ("`nn.init.kaiming_normal_(layer.weight)`" if rectified else "`nn.init.orthogonal_(layer.weight)`")
    )
    if saturating and not rectified:
        advice.append(f"use rectified units in place of {run_kinds(run, saturating)}: `nn.ReLU()`")
    return Cause(
        "depth",
        _first_layer(run),
        tuple(
            one
            for one in (
                f"Over {best.layers} layers {best.of} grow{'s' if best.of.endswith('gradient') else ''} "
                f"{best.total:.3g} "
                f"times, {best.per_layer:.3g} times a layer.",
                steepest,
                *_first_numbers(evidence),
            )
            if one
        ),
        confidence,
        (*advice, *remedies.clip(evidence)),
    )


def run_kinds(run: RunFacts, names: Sequence[str]) -> str:
    """Return the kinds of some modules, as words."""
    return " and ".join(sorted({one.kind for one in run.modules if one.name in names}))


def _first_layer(run: RunFacts) -> str | None:
    layers = _layers(run)
    return layers[0].module or layers[0].name if layers else None


def _layers_outside_recurrence(run: RunFacts) -> int:
    inside = {one.module for one in recurrent_parameters(run)}
    return sum(one.module not in inside for one in _layers(run))


def _activation_profile(evidence: Evidence) -> Profile | None:
    replay = evidence.replay
    if replay is None:
        return None
    names = {one.module for one in _layers(evidence.run)}
    outputs = [one for one in replay.activations if (not names or one.module in names) and 0 < one.rms < math.inf]
    if len(outputs) < 2:
        return None
    return Profile(len(outputs), outputs[-1].rms / outputs[0].rms, "the outputs")


def _gradient_profile(evidence: Evidence) -> Profile | None:
    norms = gradient_profile(evidence, first=True) or gradient_profile(evidence)
    if evidence.run.parameters:
        names = [one.name for one in _layers(evidence.run) if one.name in norms]
    else:
        names = [name for name in norms if name.endswith("weight")]
    values = [norms[name] for name in names if norms[name] > 0]
    if len(values) < 2:
        return None
    return Profile(len(values), values[0] / values[-1], "the gradient")


def recurrence(evidence: Evidence) -> Cause | None:
    """Return the cause if the gain per time step compounds over the sequence."""
    run = evidence.run
    found = recurrent_parameters(run)
    in_time = [one for one in evidence.findings if one.sign == "backward-gain" and "time step" in one.message]
    if not found and not in_time:
        return _unrolled(evidence)
    length = run.sequence_length
    worst = max(found, key=lambda one: one.spectral_radius or 0.0, default=None)
    radius = worst.spectral_radius if worst is not None else None
    gated = worst is not None and is_gated(worst, run)
    sentences: list[str] = []
    confidence = 0.0
    if worst is not None and radius is not None:
        norm = "" if worst.spectral_norm is None else f" and a largest singular value of {worst.spectral_norm:.3g}"
        sentences.append(f"`{worst.name}` has a spectral radius of {radius:.3g}{norm}.")
        if length and radius > 1 and not gated:
            total = _power(radius, length)
            sentences.append(f"Over {length} time steps that compounds to {total:.3g}.")
            confidence = 0.88 if total >= 1e3 else 0.7 if total >= 30 else 0.3
        elif radius > 1 and not gated:
            confidence = 0.45
    if in_time:
        sentences.append(in_time[0].message[0].upper() + in_time[0].message[1:] + ".")
        confidence = max(confidence, 0.75)
    if not confidence:
        return None
    if not is_early(evidence) and not in_time:
        confidence *= 0.7
    sentences += _first_numbers(evidence)
    where = worst.name if worst is not None else in_time[0].where
    return Cause(
        "recurrence", where, tuple(sentences), confidence, _recurrence_remedies(evidence, where, gated, length)
    )


def _power(base: float, exponent: float) -> float:
    return math.exp(min(exponent * math.log(base), 700.0))


def _recurrence_remedies(evidence: Evidence, where: str | None, gated: bool, length: int | None) -> tuple[str, ...]:
    pattern = where if where and "weight" in where else "*weight_hh*"
    sigmoid = any(one.role == "recurrent" and "sigmoid" in str(one.settings.values()) for one in evidence.run.modules)
    bound = "bound=4.0, " if sigmoid else ""
    shorter = f"{max(8, (length or 64) // 4)}"
    advice = [
        *remedies.clip(evidence),
        f'bound the recurrent matrix: `RecurrentBound({bound}parameters=["{pattern}"])` in `on_explosion`',
        "start it orthogonal, with a spectral radius of one: `nn.init.orthogonal_(rnn.weight_hh_l0)`",
    ]
    if not gated:
        advice.append("use gated cells in its place: `nn.LSTM(input_size, hidden_size)`")
    advice.append(
        f"train on shorter parts of a sequence (truncated back-propagation through time), of {shorter} steps each"
    )
    return tuple(advice)


def recurrent_parameters(run: RunFacts) -> list[ParameterFacts]:
    """Return the recurrent matrices."""
    recurrent = {one.name for one in run.modules if one.role == "recurrent"}
    return [
        one
        for one in run.parameters
        if one.spectral_radius is not None
        or "weight_hh" in one.name
        or (one.module in recurrent and len(one.shape) == 2 and one.shape[0] == one.shape[1])
    ]


def is_gated(parameter: ParameterFacts, run: RunFacts) -> bool:
    """Return whether a recurrent matrix belongs to an LSTM or a GRU."""
    kinds: list[str] = [one.kind for one in run.modules if one.name == parameter.module] or [parameter.module_kind]
    return any(word in kind.lower() for kind in kinds for word in ("lstm", "gru"))


def _unrolled(evidence: Evidence) -> Cause | None:
    """Return the cause if a module that a loop uses again and again multiplies what it takes."""
    replay = evidence.replay
    if replay is None:
        return None
    layers = {one.module: one for one in _layers(evidence.run)}
    looped = [one for one in replay.activations if one.calls >= DEEP and one.module in layers]
    if not looped:
        return None
    worst = max(looped, key=lambda one: one.calls)
    parameter = layers[worst.module]
    grows = worst.largest > 1e3 or gain_of(parameter) > 1.2 or (curve(evidence, "grad_norm").first or 0) > 1e3
    if not grows or (not trend(evidence).has_diverged and not is_early(evidence)):
        return None
    return Cause(
        "recurrence",
        parameter.name,
        (
            f"`{worst.module}` is executed {worst.calls} times in one forward pass, and its output reaches "
            f"{worst.largest:.3g}.",
            *_first_numbers(evidence),
        ),
        0.65,
        _recurrence_remedies(evidence, parameter.name, False, worst.calls),
    )


def module_facts(run: RunFacts, name: str) -> ModuleFacts | None:
    """Return what is known of a module."""
    return next((one for one in run.modules if one.name == name), None)
