"""What to do about each sign, in one line; the article's remedies among them."""

from __future__ import annotations

from lightning_gradexplode.records import Finding

_CLIP = 'clip the gradients (clip="auto")'

_ADVICE = {
    "nonfinite-loss": "look at this batch and at logarithms, divisions and square roots in the loss; then at the "
    "learning rate",
    "nonfinite-gradient": "look at this parameter's layer: a norm, root or logarithm of zero, or overflow in half "
    "precision",
    "nonfinite-weight": "go back to a checkpoint from before; look at the optimizer's epsilon and the number format",
    "unstable-loss": "lower the learning rate, or take larger batches",
    "diverging-loss": f"lower the learning rate, or {_CLIP}",
    "stalled-loss": "nothing is learned: try another learning rate, ReLU units, or fewer layers",
    "gradient-spike": f"one batch may be an outlier; if it comes again, {_CLIP}",
    "gradient-growth": f"{_CLIP}; then a lower learning rate, gated units (LSTM), or shorter sequences",
    "backward-gain": "fewer or normalized layers, residual connections, ReLU units, or a smaller initialization; "
    "in a recurrent network gated units (LSTM) and shorter sequences",
    "gradient-above-one": "no alarm by itself: it depends on the scale of the loss; a mean in place of a sum lowers it",
    "large-update": "lower the learning rate (usual updates are near 0.001 of the weights), or warm it up",
    "weight-growth": "lower the learning rate, or penalize the weights (L2)",
    "zero-gradient": "nothing is learned from here on: look for rectified units that are never active, a loss detached "
    "from the network, or targets that are all ignored",
    "clip-saturated": "clipping sets the size of every step and hides why gradients are so large: look at the scale of "
    "inputs, targets and loss",
    "vanishing-gradient": "ReLU units, another initialization, normalization or residual connections help",
}


_ADVICE_IF_CLIPPED = {
    "diverging-loss": "lower the learning rate",
    "gradient-spike": "one batch may be an outlier",
    "gradient-growth": "lower the learning rate; then gated units (LSTM), or shorter sequences",
}
"""The same for runs with a clip policy, where it would be to clip."""


def advice_for(finding: Finding, clips: bool = False) -> str:
    """Return one line of advice for a finding; a general one for the sign of a user's own detector.

    Args:
        finding: The finding.
        clips: Whether the run has a clip policy.
    """
    general = "look at this step's histograms"
    if clips:
        return _ADVICE_IF_CLIPPED.get(finding.sign, _ADVICE.get(finding.sign, general))
    return _ADVICE.get(finding.sign, f"{general}; {_CLIP}")
