"""Remedies for a gain that compounds over time steps."""

from __future__ import annotations

from lightning_gradexplode.diagnose.remedies import common
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.diagnose.repeated_weights import MAX_TRAINABLE_NORM, recurrent_parameters
from lightning_gradexplode.records import Evidence, Experiments, ParameterFacts, StartTrial


def recurrence_remedies(
    evidence: Evidence, parameter: ParameterFacts | None, gated: bool, length: int | None, is_alone: bool = True
) -> tuple[str, ...]:
    """Return the remedies for a gain that compounds over time steps.

    Args:
        evidence: The evidence.
        parameter: The weight that is applied repeatedly, None if it is not known.
        gated: Whether it belongs to an LSTM or a GRU.
        length: The number of time steps, None if it is not known.
        is_alone: Whether no other weight is applied with it, so that its initialization sets the gain of a step.
    """
    name = parameter.name if parameter is not None else "*weight_hh*"
    code = f"model.{name}" if all(part.isidentifier() for part in name.split(".")) else "rnn.weight_hh_l0"
    shorter = f" of {max(8, length // 4)} steps" if length and length > 16 else ""
    shorten = f"train on shorter parts of the sequences{shorter} (truncated back-propagation through time)"
    advice = []
    if parameter is None and not recurrent_parameters(evidence.run):
        return (
            "divide the matrix that each step applies to the state by its spectral radius: `matrix = 0.9 * matrix / "
            "torch.linalg.eigvals(matrix).abs().max()`",
            shorten,
            *common.clip(evidence),
        )
    if parameter is not None and len(parameter.shape) == 1:
        return (
            f"keep its elements below one: multiply by `torch.sigmoid({code})`",
            *common.clip(evidence),
            shorten,
        )
    if parameter is not None and not gated and parameter.shape[0] > parameter.shape[-1]:
        advice.append(shorten)  # one of several matrices of a step: its initialization alone does not keep the scale
    if not is_alone:
        advice.append(
            "add a part of what each step makes to the state, in place of replacing it: `state = state + update / "
            "steps`, with which no gain compounds over the steps; or take fewer steps"
        )
    elif not gated:
        advice += _starts(evidence, parameter, name, code)
    advice += common.clip(evidence)
    if "RecurrentBound" not in evidence.run.on_explosion:
        bound = f'RecurrentBound(parameters=["{name}"])'
        monitor = code_of(evidence.run).monitor(f"on_explosion={bound}")
        advice.append(f"keep its largest singular value at one: {monitor}")
    if not gated:
        advice.append("use gated cells in its place: `nn.LSTM(input_size, hidden_size)`")
    return tuple(dict.fromkeys((*advice, shorten)))


def _starts(evidence: Evidence, parameter: ParameterFacts | None, name: str, code: str) -> list[str]:
    """Return how to initialize a matrix; if initializations were tried, the first that worked, none if none did.

    A matrix that is multiplied with the state has to keep its norm; one whose result is added to the state has to be
    small. A matrix with far fewer outputs than inputs is one of several in a step, and does not keep the norm alone.
    """
    orthogonal = f"start it orthogonal, with a spectral radius below one: `nn.init.orthogonal_({code}, gain=0.9)`"
    small = f"start it near zero, as what it makes is added to the state: `nn.init.normal_({code}, std=0.01)`"
    tried = {one.start: one for one in (evidence.experiments or Experiments()).starts if one.parameter == name}
    if not tried and parameter is not None and 2 * parameter.shape[0] <= parameter.shape[-1]:
        return [
            f"start it near zero, as the gain of a step is in proportion to it: `nn.init.normal_({code}, std=0.01)`"
        ]
    if not tried:
        return [orthogonal]
    options = [(tried[start], text) for start, text in (("orthogonal", orthogonal), ("small", small)) if start in tried]
    working = [f"{text} ({_result(trial)})" for trial, text in options if trial.grad_norm <= MAX_TRAINABLE_NORM]
    return working[:1]


def _result(trial: StartTrial) -> str:
    return f"tried on this batch: the loss is {trial.loss:.3g} and the gradient norm {trial.grad_norm:.3g}"
