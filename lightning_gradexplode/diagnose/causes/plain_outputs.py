"""A negative log-likelihood that was given the plain outputs of a network in place of logarithms of probabilities."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_gradexplode.diagnose.curves import loss_curve
from lightning_gradexplode.diagnose.faults.operations import base_name
from lightning_gradexplode.records import Cause, Evidence, LossTerm

TOLERANCE = 1e-3
"""Largest logarithm of a probability, with room for rounding."""


def plain_outputs(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a negative log-likelihood takes numbers above and below zero, and the loss fell below zero.

    From the replay, else from the first loss of the run. Numbers from 0 to 1 alone may be probabilities, whose loss is
    negative and yet bounded.
    """
    least_loss = loss_curve(evidence).least
    if least_loss is None or least_loss >= 0:
        return
    terms = evidence.replay.losses if evidence.replay is not None else ()
    for term in terms or evidence.first_losses:
        greatest = _greatest_logarithm(term)
        if greatest is None:
            continue
        yield Cause(
            "loss-without-floor",
            "`nll_loss`" + ("" if term.file is None else f" at {term.file}:{term.line}"),
            (
                "`nll_loss` takes logarithms of probabilities, which are never above zero; it was given numbers up "
                f"to {greatest:.4g}, and falls as long as they grow.",
            ),
            0.95,
            (
                "give it logarithms of probabilities, `F.nll_loss(F.log_softmax(outputs, dim=1), labels)`, which "
                "is `F.cross_entropy(outputs, labels)`",
            ),
        )
        return


def _greatest_logarithm(term: LossTerm) -> float | None:
    """Return the greatest number that a negative log-likelihood was given, None if they may be probabilities."""
    if base_name(term.name) != "nll_loss" or not term.inputs:
        return None
    least, greatest = term.inputs[0].least, term.inputs[0].greatest
    if least is None or greatest is None:
        return None
    return greatest if greatest > 1 or least < 0 < TOLERANCE < greatest else None
