"""Remedies: concrete changes against a cause, with numbers and code of the user's own run.

This module has those that several causes share. The others are in `lines` (corrections of a line of code), `rate` (how
far to lower a learning rate), `recurrence` (a gain per time step) and `signs` (one line for each sign of a finding).
"""

from lightning_gradexplode.diagnose.remedies.common import (
    anomaly_mode,
    clip,
    learning_rate,
    lower_rate,
    own_functions,
    rollback,
    rounded,
    skip,
    standardize,
    step_again,
    warm_up,
)

__all__ = [
    "anomaly_mode",
    "clip",
    "learning_rate",
    "lower_rate",
    "own_functions",
    "rollback",
    "rounded",
    "skip",
    "standardize",
    "step_again",
    "warm_up",
]
