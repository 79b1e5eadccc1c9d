"""Parts of a network that can make a loss fall without a bound: critics, spreads, learned factors; and the advice."""

from __future__ import annotations

import math
import re

from lightning_gradexplode.records import RunFacts

_POLICY = re.compile(r"(actor|policy)", re.IGNORECASE)


def critic_of(run: RunFacts) -> str | None:
    """Return the module of an adversarial critic, None if there is none; that of a policy is not adversarial."""
    names = [one.name for one in run.modules]
    if any(map(_POLICY.match, names)):
        return None
    return next((name for name in names if re.search(r"(critic|disc)", name.split(".")[0], re.IGNORECASE)), None)


def spread_of(run: RunFacts) -> str | None:
    """Return the parameter with the name of a scale or a spread, None if there is none or more than one."""
    names = [one.name for one in run.parameters]
    found = [name for name in names if re.search(r"(sigma|std|var|scale|spread|precision|temperature)", name.lower())]
    return found[0] if len(found) == 1 else None


def learned_factor(run: RunFacts) -> str | None:
    """Return the only parameter of the user's own modules, if it has few elements, such as weights of terms."""
    roles = {one.name: one.role for one in run.modules}
    own = [one for one in run.parameters if roles.get(one.module, "other") == "other"]
    return own[0].name if len(own) == 1 and math.prod(own[0].shape) <= 16 else None


def floor_remedies(run: RunFacts) -> tuple[str, ...]:
    """Return the remedies for a loss without a lower bound: for a critic, a policy, a spread, or any other."""
    critic = critic_of(run)
    if critic is not None:
        return critic_remedies(critic)
    if any(_POLICY.match(one.name) for one in run.modules):
        return (
            "compute the log probability of an action from the sample before it is squashed, and bound it from below: "
            "`log_prob.clamp(min=-20.0)`",
            "bound the value that the policy maximizes: `value.clamp(-limit, limit)`",
        )
    spread = spread_of(run)
    if spread is not None:
        name = spread.rpartition(".")[2]
        return (
            f"bound the spread from below: `{name}.clamp(min=-3.0)` for a logarithm, `{name}.clamp(min=0.05)` else",
        )
    return (
        "look for a wrong sign, and for a term without a lower bound: bound it with `term.clamp(min=0.0)`",
        "of a likelihood, bound the variance from below: `log_variance.clamp(min=-6.0, max=6.0)`",
    )


def critic_remedies(critic: str) -> tuple[str, ...]:
    """Return the remedies for a critic without a bound, by the name of its module."""
    return (
        f"bound the critic after each of its steps: `[p.data.clamp_(-0.01, 0.01) for p in {critic}.parameters()]`",
        "or bound each of its layers: `torch.nn.utils.parametrizations.spectral_norm(layer)`, or penalize the "
        "norm of its gradient with respect to its inputs",
    )
