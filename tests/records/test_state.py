"""What goes through a checkpoint, and what starts fresh."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.records import Severity
from lightning_gradexplode.records.state import Stateful, plain
from tests.detect.steps import through_checkpoint


class Inner(Stateful):
    """A part with one number."""

    def __init__(self) -> None:
        self._number = 0


class Outer(Stateful):
    """A part with a value of every kind."""

    _last: float | None
    _places: list[int] | None
    not_saved = ("_derived",)
    also_saved = ("level",)

    def __init__(self) -> None:
        self.option = 3
        self.level = 1.0
        self._count = 0
        self._share = 0.5
        self._low = -math.inf
        self._last = None
        self._places = None
        self._flag = False
        self._name = "a"
        self._list: list[float] = []
        self._names: dict[str, int] = {}
        self._recent: deque[int] = deque(maxlen=3)
        self._array = np.zeros(2)
        self._inner = Inner()
        self._derived = object()


def filled() -> Outer:
    """Build a part whose values all differ from the fresh ones."""
    outer = Outer()
    outer._count, outer._share, outer._low, outer._last, outer._flag, outer._name = 4, 0.25, 1.0, 2.5, True, "b"
    outer._list, outer._names, outer._places = [1.0], {"b": 2}, [0, 3]
    outer._recent.extend([1, 2, 3, 4])
    outer._array = np.array([1.0, math.nan])
    outer._inner._number = 7
    outer.level = 4.5
    return outer


def test_every_kind_of_value_goes_through_a_checkpoint() -> None:
    """A state that is loaded without trust gives the same state again, in the same types."""
    state = through_checkpoint(filled().state_dict())
    other = Outer()
    assert other.load_state_dict(state) == []
    assert repr(other.state_dict()) == repr(state)
    assert other._recent == deque([2, 3, 4], maxlen=3)
    assert isinstance(other._array, np.ndarray)
    assert other.level == 4.5
    assert "option" not in state


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_count", "four"),
        ("_count", None),
        ("_count", True),
        ("_share", math.nan),
        ("_last", "late"),
        ("_last", math.inf),
        ("_flag", 1),
        ("_name", 1),
        ("_list", {}),
        ("_names", []),
        ("_recent", 5),
        ("_array", ["a"]),
        ("_array", 3.0),
        ("_inner", [1]),
        ("_inner", None),
    ],
)
def test_a_value_that_does_not_fit_costs_that_part_alone(name: str, value: Any) -> None:
    """The part keeps its fresh value and is named; all others are loaded."""
    state = {**filled().state_dict(), name: value}
    outer = Outer()
    assert outer.load_state_dict(state) == [name]
    fresh, expected = Outer().state_dict(), filled().state_dict()
    assert repr(outer.state_dict()) == repr({**expected, name: fresh[name]})


def test_missing_and_unknown_values_are_no_error() -> None:
    """What is missing is named, also inside a nested part; what is unknown is left out."""
    state = filled().state_dict()
    del state["_list"]
    state["_inner"] = {}
    state["_from_the_future"] = 1
    outer = Outer()
    assert outer.load_state_dict(state) == ["_list", "_inner._number"]
    assert not hasattr(outer, "_from_the_future")


def test_names_of_an_older_version_have_no_underscore() -> None:
    """Checkpoints of 0.1.0 name some attributes without the leading underscore."""
    inner = Inner()
    assert inner.load_state_dict({"number": 3}) == []
    assert inner.state_dict() == {"_number": 3}


def test_a_state_is_plain() -> None:
    """Enumerations and numbers of NumPy become plain ones; what cannot be saved raises."""
    assert type(plain(Severity.WARNING)) is int
    assert type(plain(np.float64(1.0))) is float
    assert plain((1, deque([2]), {"a": np.bool_(True)})) == [1, [2], {"a": True}]
    for value in (threading.Lock(), lambda: None):
        with pytest.raises(TypeError, match="a state must be made of"):
            plain(value)
