"""What a run's findings mean together: what happened, where it began, since when, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.diagnose.advice import advice_for
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.report.recorder import Recorder

CALM = 50
"""Steps without a finding of at least a warning that separate one explosion from the next."""

STEEP = 30.0
"""So many times the gradient of the last weight matrix, that of the first one is told of."""

_OVERSHOOTS = {"diverging-loss", "large-update", "weight-growth", "unstable-loss"}
_RECURRENT = ("rnn", "lstm", "gru", "recur", "weight_hh", "weight_ih", "cell")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Plain sentences about one explosion.

    Args:
        step: The step of the first sign.
        parameter: Name of the parameter or module where it began, None if nothing points to one.
        what: What happened.
        where: Where it began.
        since: Since when.
        why: The likely causes, the likeliest first.
        remedies: What to do, in the order in which it is worth trying.
    """

    step: int
    parameter: str | None
    what: str
    where: str
    since: str
    why: tuple[str, ...]
    remedies: tuple[str, ...]

    @property
    def sentences(self) -> list[tuple[str, str]]:
        """The sentences with their headings."""
        return [("What", self.what), ("Where", self.where), ("Since", self.since), ("Why", " ".join(self.why))]

    def markdown(self) -> str:
        """Give the diagnosis as markdown."""
        told = "\n\n".join(f"**{heading}:** {code_safe(sentence)}" for heading, sentence in self.sentences)
        return f"{told}\n\n**What to do:**\n\n" + "\n".join(
            f"{place}. {code_safe(one)}" for place, one in enumerate(self.remedies, 1)
        )


def code_safe(sentence: str) -> str:
    """Keep markdown from taking the underscores and asterisks of names for emphasis."""
    return sentence.replace("_", "\\_").replace("*", "\\*")


def diagnose(findings: Sequence[Finding], recorders: Sequence[Recorder]) -> Diagnosis:
    """Explain the latest explosion of a run.

    Args:
        findings: All findings so far, oldest first, at least one of them critical.
        recorders: The last steps of each optimizer.

    Raises:
        ValueError: No finding is critical.
    """
    explosion = latest_explosion(findings)
    first = explosion[0]
    critical = next(finding for finding in explosion if finding.severity is Severity.CRITICAL)
    signs = {finding.sign for finding in explosion}
    parameter = next((one.where for one in (critical, *explosion) if one.where), None) or _largest(recorders, critical)
    clip_val = _at(recorders, critical.step, "clip_val")
    gain = _gain(recorders, critical.step)
    others = sorted(signs - {critical.sign})
    return Diagnosis(
        step=first.step,
        parameter=parameter,
        what=f"At step {critical.step} {critical.message.rstrip('.')}."
        + (f" Other signs: {', '.join(others)}." if others else ""),
        where=f"It began in {parameter}." if parameter else "No single parameter stands out.",
        since=_since(first, critical),
        why=tuple(_causes(explosion, gain)),
        remedies=tuple(_remedies(critical, signs, parameter or "", clip_val, gain)),
    )


def latest_explosion(findings: Sequence[Finding]) -> list[Finding]:
    """Give the findings of at least a warning that belong to the latest critical one, oldest first.

    Raises:
        ValueError: No finding is critical.
    """
    serious = sorted((one for one in findings if one.severity >= Severity.WARNING), key=lambda one: one.step)
    last = max((place for place, one in enumerate(serious) if one.severity is Severity.CRITICAL), default=None)
    if last is None:
        raise ValueError("nothing critical was found, and there is no explosion to explain")
    begin = last
    while begin and serious[begin].step - serious[begin - 1].step <= CALM:
        begin -= 1
    return serious[begin : last + 1]


def _since(first: Finding, critical: Finding) -> str:
    if first.step == critical.step:
        return f"Step {critical.step}; there was no sign before."
    steps = critical.step - first.step
    return (
        f"Step {first.step} ({first.sign}), {steps} step{'s' if steps > 1 else ''} before the first critical finding."
    )


def _causes(explosion: Sequence[Finding], gain: float) -> Iterator[str]:
    signs = {finding.sign for finding in explosion}
    at_once = {finding.sign for finding in explosion if finding.step == explosion[0].step}
    if "nonfinite-loss" in at_once:
        yield (
            "The loss itself was not finite, and nothing had grown before: the batch, or a logarithm, root or division "
            "in the forward pass, gave NaN or infinity."
        )
    elif "nonfinite-gradient" in at_once:
        yield (
            "The loss was finite and its gradient was not: the backward pass overflowed, or went through an "
            "operation without a finite slope, such as the root or the norm of zero."
        )
    if signs & _OVERSHOOTS and not at_once & {"nonfinite-loss", "nonfinite-gradient"}:
        yield (
            "Each update overshoots, so that loss, gradients and weights feed each other: the learning rate is too "
            "high for the curvature of the loss."
        )
    if gain >= STEEP:
        yield (
            f"Error gradients are multiplied on their way back: that of the first weights is {gain:.3g} times that of "
            "the last ones."
        )
    elif signs & {"gradient-growth", "backward-gain"} and not signs & _OVERSHOOTS:
        yield "Gradients grow from step to step while the loss does not show it yet."
    if signs == {"gradient-spike"}:
        yield "One batch has a gradient far above the usual ones."


def _remedies(critical: Finding, signs: set[str], where: str, clip_val: float, gain: float) -> Iterator[str]:
    """Name remedies, from the finding's own to the article's five."""
    advice = advice_for(critical)
    yield advice[0].upper() + advice[1:] + "."
    if clip_val > 0 and np.isfinite(clip_val):
        yield f'Clip harder: the clip value in force was {clip_val:.3g}; clip="auto" follows the run.'
    elif 'clip="auto"' not in advice:
        yield 'Clip the gradients: GradientExplosionMonitor(clip="auto"), or clip=1.0.'
    if "learning rate" not in advice:
        yield "Lower the learning rate, or warm it up over the first steps."
    if any(word in where.lower() for word in _RECURRENT):
        yield "Use gated units (LSTM, GRU), and fewer time steps per update (truncated back-propagation through time)."
    elif gain >= STEEP:
        yield "Use ReLU units, residual connections or normalization, a smaller initialization, or fewer layers."
    if "weight-growth" in signs:
        yield "Penalize the weights: weight_decay of the optimizer (L2), or an L1 term in the loss."
    if signs & {"nonfinite-weight", "nonfinite-gradient", "nonfinite-loss"}:
        yield 'Keep the weights: on_explosion="skip" leaves such an update out, "rollback" goes back before it.'


def _at(recorders: Sequence[Recorder], step: int, name: str) -> float:
    """Give what was recorded of a step, NaN if nothing was."""
    for recorder in recorders:
        arrays = recorder.arrays()
        found = np.flatnonzero(arrays["step"] == step)
        if len(found) and not np.isnan(arrays[name][found[-1]]):
            return float(arrays[name][found[-1]])
    return float("nan")


def _largest(recorders: Sequence[Recorder], critical: Finding) -> str | None:
    """Name the parameter of the largest gradient at the critical step; NaN counts as larger than all."""
    for recorder in recorders:
        arrays = recorder.arrays()
        found = np.flatnonzero(arrays["step"] == critical.step)
        if len(found) and len(recorder.parameters):
            norms = arrays["parameter_grad_norm"][found[-1]]
            return recorder.parameters[int(np.argmax(np.where(np.isnan(norms), np.inf, norms)))]
    return None


def _gain(recorders: Sequence[Recorder], step: int) -> float:
    """Give the gradient norm of the first weights over that of the last ones, at the last step that was finite."""
    for recorder in recorders:
        arrays = recorder.arrays()
        weights = [place for place, name in enumerate(recorder.parameters) if "bias" not in name]
        if len(weights) < 3:
            continue
        first, last = arrays["parameter_grad_norm"][:, weights[0]], arrays["parameter_grad_norm"][:, weights[-1]]
        usable = (arrays["step"] <= step) & np.isfinite(first) & np.isfinite(last) & (last > 0)
        if usable.any():
            place = np.flatnonzero(usable)[-1]
            return float(first[place]) / float(last[place])
    return 0.0
