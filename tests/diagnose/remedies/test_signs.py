"""One line of advice for each sign."""

from __future__ import annotations

import pytest

from lightning_gradexplode.detect import default_detectors
from lightning_gradexplode.diagnose import advice_for
from lightning_gradexplode.records import Finding, Severity

SIGNS = [detector.sign for detector in default_detectors()]


def of(sign: str, clips: bool = False) -> str:
    """Return the advice for a sign."""
    return advice_for(Finding(0, sign, Severity.WARNING, None, 1.0, 0.0, "message"), clips)


@pytest.mark.parametrize("sign", SIGNS)
def test_every_sign_has_advice_of_its_own(sign: str) -> None:
    """No sign that the package finds is left with the general line."""
    assert of(sign) != of("a sign of one's own")
    assert "\n" not in of(sign)


def test_a_users_own_sign_gets_general_advice() -> None:
    """The sign of a user's own detector has a general line of advice."""
    assert of("a sign of one's own")


@pytest.mark.parametrize("sign", [*SIGNS, "a sign of one's own"])
def test_a_run_that_clips_is_not_advised_to_clip(sign: str) -> None:
    """There the advice is what else can be done."""
    assert of(sign, clips=True)
    assert 'clip="auto"' not in of(sign, clips=True)
