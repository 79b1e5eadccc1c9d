"""Parts of a network that can make a loss fall without a bound."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.causes.unbounded_parts import critic_of
from lightning_gradexplode.records import ModuleFacts
from tests.diagnose.evidence import run


@pytest.mark.parametrize(("other", "is_named"), [("generator", True), ("actor", False), ("policy_net.0", False)])
def test_the_critic_of_a_policy_is_not_to_be_clamped(other: str, is_named: bool) -> None:
    """A critic of samples needs a bound; one of actions is to learn returns of any size."""
    facts = run(modules=(ModuleFacts(other, "Linear", "linear"), ModuleFacts("critic", "Linear", "linear")))
    assert (critic_of(facts) == "critic") is is_named
