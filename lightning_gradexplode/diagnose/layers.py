"""The layers of a network at the start of the run: the scale of their weights, and whether they were trained."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose.batch import is_known_of_batch, is_of_batch, is_same, targets
from lightning_gradexplode.diagnose.curves import critical_step, curve, loss_curve, signs
from lightning_gradexplode.diagnose.trends import initial_weight_norm
from lightning_gradexplode.records import Evidence, LossTerm, ParameterFacts, RunFacts

EARLY_STEPS = 30
"""Number of steps from the start within which a failure comes from the initial state of the run."""

LARGE_GAIN = 3.0
"""Root mean square of a weight times the root of its inputs; 0.58 is torch's default, 1 Xavier's, 1.41 He's."""

DEEP = 8
"""Number of layers, or of calls of one layer, from which even a gain per layer slightly above one adds up."""

_WEIGHTED = {"linear", "convolution", "attention", "recurrent", "other"}
_NOTHING_LEARNED = {"stalled-loss", "vanishing-gradient", "zero-gradient"}


def layers(run: RunFacts) -> list[ParameterFacts]:
    """Return the weights of linear, convolutional and similar layers, in the order of the modules."""
    roles = {one.name: one.role for one in run.modules}
    return [
        one
        for one in run.parameters
        if one.fan_in
        and len(one.shape) > 1
        and math.isfinite(one.std)
        and roles.get(one.module, "other") in _WEIGHTED
        and "Embedding" not in one.module_kind
    ]


def gain_of(parameter: ParameterFacts) -> float:
    """Return the factor by which a weight scales independent inputs: its root mean square times ``sqrt(fan_in)``."""
    return parameter.std * math.sqrt(parameter.fan_in or parameter.shape[-1])


def keeping_std(parameter: ParameterFacts) -> float:
    """Return the root mean square with which a weight keeps the scale of its inputs: ``1 / sqrt(fan_in)``."""
    return 1.0 / math.sqrt(max(parameter.fan_in or parameter.shape[-1], 1))


def normalized_share(run: RunFacts) -> float:
    """Return the number of normalizing modules divided by that of layers."""
    count = len(layers(run))
    return sum(one.role == "normalization" for one in run.modules) / count if count else 0.0


def is_rectified(run: RunFacts) -> bool:
    """Return whether the network has rectified units."""
    return any("relu" in one.kind.lower() or one.kind in ("GELU", "SiLU", "ELU", "SELU") for one in run.modules)


def code_of_parameter(parameter: ParameterFacts) -> str:
    """Return an expression for a parameter: ``model.body.weight``, ``model.layers[0].weight``."""
    parts = parameter.name.split(".")
    if not all(part.isdigit() or part.isidentifier() for part in parts):
        return "layer.weight"
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)


def is_early(evidence: Evidence) -> bool:
    """Return whether the failure comes from the initial state: within the first steps, or since nothing is learned."""
    if evidence.run.is_resumed:
        return False
    serious = signs(evidence)
    has_learned_nothing = bool(serious) and serious <= _NOTHING_LEARNED | {"gradient-above-one"}
    return critical_step(evidence) <= EARLY_STEPS or has_learned_nothing


def is_trained(evidence: Evidence) -> bool:
    """Return whether the run started with trained weights: it is resumed, or its first loss is low."""
    if evidence.run.is_resumed:
        return True
    first = loss_curve(evidence).first
    usual = untrained_loss(evidence)
    return first is not None and usual is not None and 0 <= first < 0.25 * usual


def has_initial_scale(evidence: Evidence) -> bool:
    """Return whether the weights had about the norm of the start before the last update."""
    before = curve(evidence, "weight_norm").before(evidence.now).finite
    start = initial_weight_norm(evidence) or before.first  # the first one that was measured is that after an update
    return start is None or before.last is None or before.last <= 1.5 * start


def untrained_loss(evidence: Evidence) -> float | None:
    """Return the loss of a network that has learned nothing: entropy of the classes, or variance of the targets.

    Returns:
        None if the loss is not about the sum of such terms, or if the step computes the targets itself.
    """
    replay = evidence.replay
    replayed = replay.losses if replay is not None else ()
    terms = replayed or evidence.first_losses
    total = loss_curve(evidence).first if replay is None or terms == evidence.first_losses else replay.loss
    # Only of a replayed step are all loss functions known, so that a single one is the loss even if its value is not.
    if not terms or not (_is_made_of(total, terms) or (len(replayed) == 1 and not _has_value(total, terms))):
        return None
    parts = [_untrained_term(evidence, one) for one in terms]
    return None if None in parts else sum(one for one in parts if one is not None)


def _has_value(total: float | None, terms: tuple[LossTerm, ...]) -> bool:
    """Return whether a loss and its terms are known and finite."""
    numbers = [total, *(one.value for one in terms)]
    return all(one is not None and math.isfinite(one) and one for one in numbers)


def _is_made_of(total: float | None, terms: tuple[LossTerm, ...]) -> bool:
    """Return whether a loss is about the sum of its terms."""
    if total is None or not _has_value(total, terms):
        return False
    return 0.5 <= sum(one.value or 0.0 for one in terms) / total <= 2


def _untrained_term(evidence: Evidence, term: LossTerm) -> float | None:
    """Return the value of a loss function for a network that has learned nothing, None if it is not known."""
    shape = term.inputs[0].shape if term.inputs else ()
    if term.name.startswith("nll_loss") and len(shape) > 1 and shape[1] > 1:
        # In a contrastive loss the classes are the rows of the batch; similar rows have a low loss from the start.
        is_square = len(shape) == 2 and shape[0] == shape[1]
        if is_square and not is_known_of_batch(evidence, term):
            return None
        return min(math.log(shape[1]), _largest_entropy(evidence, term))
    if term.name == "mse_loss":
        spreads = [one.usual_std or one.std for one in targets(evidence) if is_of_batch(evidence, term)]
        return spreads[0] ** 2 if len(spreads) == 1 and spreads[0] else None
    return None


def _largest_entropy(evidence: Evidence, term: LossTerm) -> float:
    """Return the largest entropy of labels with the spread of those of the batch, infinite if they are not known.

    It is at most that of a normal distribution with the variance of the labels plus 1/12 (Cover and Thomas, Elements of
    Information Theory, 2nd edition, problem 8.7). With a rare class it is far below the logarithm of the number of
    classes, as is the first loss of a network whose bias is initialized to the frequency of the class.
    """
    fields = evidence.batch.fields if evidence.batch is not None and len(term.inputs) > 1 else ()
    spreads = [one.std for one in fields if one.is_integral and one.std is not None and is_same(one, term.inputs[1])]
    return 0.5 * math.log(2 * math.pi * math.e * (max(spreads) ** 2 + 1 / 12)) if spreads else math.inf


def first_numbers(evidence: Evidence) -> list[str]:
    """Return one sentence with the loss and the gradient norm before any update; empty if neither is known."""
    loss, norm = loss_curve(evidence).first, curve(evidence, "grad_norm").first
    experiments = evidence.experiments
    if experiments is not None and experiments.initial_grad_norm is not None:
        norm = experiments.initial_grad_norm
    parts = [f"the first loss is {loss:.4g}"] if loss is not None else []
    parts += [f"the first gradient has a norm of {norm:.3g}"] if norm is not None and math.isfinite(norm) else []
    return [f"Before any update, {' and '.join(parts)}."] if parts else []
