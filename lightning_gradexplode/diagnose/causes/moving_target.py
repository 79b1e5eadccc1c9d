"""Targets that are made from the model itself, and move with it."""

from __future__ import annotations

import math
from collections import defaultdict

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import is_of_batch, size_of, targets
from lightning_gradexplode.diagnose.causes.outliers import outlier_field
from lightning_gradexplode.diagnose.curves import curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.line_search import LineSearch, line_search
from lightning_gradexplode.diagnose.operation_names import base_name
from lightning_gradexplode.diagnose.trends import SHORT, initial_weight_norm, largest_reach, trend
from lightning_gradexplode.records import Activation, Cause, Evidence, FieldFacts, LossTerm, RunFacts

GROWN = 1.5
"""Growth of the weights without which no targets have grown with them; harder data make a loss rise, too."""

HALF_WAY = 0.5
"""Share of what a step along the gradient lowers its loss by, below which the gradient leaves out a part of it."""

HALF_AS_LARGE = 0.5
"""Size of targets over that of the outputs, at a loss that has grown, from which both have grown."""

_TRANSITION = ("reward", "done", "next", "action", "terminal", "state", "obs", "log_prob", "advantage")
_COPY = ("target", "teacher", "ema", "momentum", "old", "slow", "delayed", "offline", "key")


def moving_target(evidence: Evidence) -> Cause | None:
    """Return the cause if targets that are made from the model itself grow with it."""
    course = trend(evidence)
    loss = loss_curve(evidence).before(failing_step(evidence)).finite
    if not course.has_diverged or len(loss) < 5:
        return None
    confidence = 0.0
    sentences: list[str] = []
    copied = copied_module(evidence.run)
    if copied is not None:
        confidence += 0.4
        sentences.append(f"`{copied[1]}` has the shapes of `{copied[0]}`, as a network that makes targets has.")
    itself = _target_of_itself(evidence) if copied is None else None
    if itself is not None:
        confidence += 0.4
        sentences.append(
            f"The targets of `{itself[1].name}` are no field of the batch, and `{itself[0].module}` is executed "
            f"{itself[0].calls} times in one forward pass, of which one has an error gradient: without it the network "
            "makes targets for itself."
        )
    fields = [one.name.lower() for one in evidence.batch.fields] if evidence.batch is not None else []
    transitions = {word for word in _TRANSITION if any(word in name for name in fields)}
    if len(transitions) >= 2:
        confidence += 0.55 if {"reward", "next"} <= transitions else 0.25
        sentences.append(
            f"A batch holds transitions of reinforcement learning ({', '.join(fields[:6])}): the values that are "
            "learned make their own targets."
        )
    search = line_search(evidence)
    if search is not None and not search.overshoots:
        confidence += 0.3
        sentences.append(
            f"Each update lowers the loss of its own batch (from {search.start:.4g} to {search.end:.4g}), and yet "
            f"the loss has risen from {loss.first or 0:.4g} to {loss.last or 0:.4g}: the targets move."
        )
    elif search is not None and search.climbs:
        confidence += 0.55 if is_plain_descent(evidence.run) else 0.35
        sentences.append(
            f"The loss of the same batch rises from the first bit of the update on (from {search.start:.4g}, by "
            f"{search.slope:.3g} for the whole update to first order), where a step along its gradient lowers it: "
            "the targets move with the weights."
        )
    elif search is not None and (share := _share_of_descent(evidence, search)) is not None and share < HALF_WAY:
        confidence += 0.45
        sentences.append(
            f"To first order a step along the gradient of the loss lowers it by the rate times the gradient's squared "
            f"norm; the loss of the same batch falls by {max(share, 0.0):.2g} of that: its targets move with the "
            "weights, and the gradient leaves that out."
        )
    elif search is not None and not search.falls_at_first:
        confidence += 0.2
        sentences.append(
            "Even a hundredth of the update does not lower the loss of the same batch: the targets move with it."
        )
    reach = largest_reach(evidence) if search is None else None
    weights, start = curve(evidence, "weight_norm").greatest, initial_weight_norm(evidence)
    if reach is not None and reach < SHORT and weights is not None and start and weights > GROWN * start:
        confidence += 0.45
        sentences.append(
            f"The loss rose from {loss.first or 0:.4g} to {loss.last or 0:.4g}, and no update can have changed that of "
            f"its own batch by more than {reach:.2g} of it: the steps do not overshoot, the targets move with the "
            f"weights, which have grown to {weights / start:.3g} times their norm."
        )
    infinite, bound = _infinite_target(evidence), []
    if infinite is not None:
        least, greatest = (remedies.rounded(one or 0.0, 2) for one in (infinite.usual_least, infinite.usual_greatest))
        confidence += 0.75
        sentences.append(
            f"`{infinite.name}` is infinite in {infinite.inf_count} elements where the outputs are infinite, too, and "
            f"was between {least:g} and {greatest:g} before: it is computed from the outputs."
        )
        bound = [f"keep targets within the range of the data: `target = target.clamp({least:g}, {greatest:g})`"]
    if outlier_field(evidence.batch) is not None:
        confidence *= 0.5  # values far outside of the others need no targets that move
    if confidence < 0.4:
        return None
    return Cause(
        "moving-target",
        copied[1] if copied is not None else None,
        tuple(sentences),
        min(confidence, 0.85),
        (
            *bound,
            "make targets with a copy that follows slowly: `target.lerp_(online, 0.005)` for each pair of weights, "
            "under `torch.no_grad()`",
            "bound the targets, and the loss by a linear one: `F.huber_loss(prediction, target)`",
            *remedies.clip(evidence),
        ),
    )


def _target_of_itself(evidence: Evidence) -> tuple[Activation, LossTerm] | None:
    """Return a layer of which all calls but one have no error gradient, and the loss whose targets the step computes.

    Returns:
        None if there is none, if all elements of the targets are equal, as those of an adversarial critic are, or if
        they have not grown with the outputs.
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
        # Targets of noise that the step draws, beside a metric without a gradient, keep their size.
        if target >= HALF_AS_LARGE * output and term.inputs[1].least != term.inputs[1].greatest:
            return once[0], term
    return None


def _infinite_target(evidence: Evidence) -> FieldFacts | None:
    """Return the target of a loss that is infinite where its outputs are, if the batch is not known otherwise.

    Data are not infinite just when the outputs are: the targets were computed from the outputs.
    """
    for term in evidence.replay.losses if evidence.replay is not None else ():
        name = f"target of {base_name(term.name)}"
        for field in targets(evidence):
            is_known = field.usual_greatest is not None and not field.usual_nonfinite
            if field.name == name and is_known and field.inf_count and term.inputs and term.inputs[0].inf_count:
                return field
    return None


def _share_of_descent(evidence: Evidence, search: LineSearch) -> float | None:
    """Return the fall of the loss along the update to first order, over what gradient descent makes it fall by.

    Returns:
        None if the update is not the gradient of the step times one learning rate, or if that is not known.
    """
    experiments, rate = evidence.experiments, remedies.learning_rate(evidence)
    norm = experiments.memory_grad_norm if experiments is not None else None
    groups = [group for one in evidence.run.optimizers for group in one.groups]
    if not is_plain_descent(evidence.run) or len({group.get("lr") for group in groups}) != 1:
        return None
    if evidence.run.clip_val is not None or any(group.get("weight_decay") for group in groups):
        return None
    if rate is None or norm is None or not 0 < norm < math.inf or not math.isfinite(search.slope):
        return None
    return -search.slope / (rate * norm**2)


def is_plain_descent(run: RunFacts) -> bool:
    """Return whether every optimizer is gradient descent without momentum, whose updates follow the gradient."""
    return bool(run.optimizers) and all(
        one.kind == "SGD" and not any(group.get("momentum") or group.get("maximize") for group in one.groups)
        for one in run.optimizers
    )


def copied_module(run: RunFacts) -> tuple[str, str] | None:
    """Return a module and one of its shapes that makes targets: by its name, or since no optimizer updates it."""
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    trained: dict[str, bool] = defaultdict(bool)
    for one in run.parameters:
        top = one.name.split(".")[0]
        shapes[top].append(one.shape)
        trained[top] = trained[top] or one.optimizer is not None
    for name in shapes:
        alike = [other for other in shapes if shapes[other] == shapes[name] and other != name]
        # Three and more of the same shapes are layers of one network, such as query, key and value.
        for other in alike if len(alike) == 1 or len(shapes[name]) > 2 else ():
            untrained = trained[name] and not trained[other] and len(shapes[name]) > 1
            named = any(word in other.lower() for word in _COPY) and not any(word in name.lower() for word in _COPY)
            if named or untrained:
                return name, other
    return None
