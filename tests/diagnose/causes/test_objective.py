"""Modules that make targets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_gradexplode.diagnose.causes.objective import copied_module
from tests.diagnose.evidence import parameter, run


def facts(names: Sequence[str], untrained: str = "", count: int = 2) -> object:
    """Return what is known of a network of equal modules, of which one may have no optimizer."""
    parameters = [
        parameter(f"{name}.{layer}.weight", (8, 8), optimizer=None if name == untrained else 0)
        for name in names
        for layer in range(count)
    ]
    return copied_module(run(parameters=tuple(parameters)))


@pytest.mark.parametrize(
    ("names", "untrained"),
    [(("online", "target"), ""), (("student", "mirror"), "mirror")],
    ids=["by its name", "without an optimizer"],
)
def test_a_copy_is_known_by_its_name_or_since_nothing_trains_it(names: Sequence[str], untrained: str) -> None:
    """The pair is named, the copy second."""
    assert facts(names, untrained) == names


def test_layers_of_equal_shapes_are_no_copies() -> None:
    """Query, key and value of an attention, although a key encoder makes targets elsewhere."""
    assert facts(("query", "key", "value"), count=1) is None
