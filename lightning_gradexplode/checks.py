"""Validation of arguments. All error messages have the form ``clip must be a positive number, got -1``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def count(name: str, value: Any, minimum: int = 0) -> int:
    """Return a whole number of at least `minimum`.

    Raises:
        TypeError: It is no whole number; those of numpy are accepted.
        ValueError: It is less than `minimum`.
    """
    message = f"{name} must be a whole number of at least {minimum}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(message)
    if value < minimum:
        raise ValueError(message)
    return int(value)


def limit(name: str, value: Any) -> int | None:
    """Return a whole number of at least 1, or None for no limit.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less than 1.
    """
    return None if value is None else count(name, value, 1)


def number(name: str, value: Any, maximum: float = math.inf, *, zero: bool = False) -> float:
    """Return a finite number above 0 (with `zero` also 0) and of at most `maximum`.

    Raises:
        TypeError: It is no real number; those of numpy are accepted.
        ValueError: It is out of range, or not finite.
    """
    expected = "a finite number of at least 0" if zero else "a positive number"
    if math.isfinite(maximum):
        expected += f" of at most {maximum:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    try:
        result = float(value)
    except OverflowError:  # of a whole number that no float can hold
        result = math.inf
    if not (math.isfinite(result) and (result > 0 or (zero and result == 0)) and result <= maximum):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return result


def choice(name: str, value: Any, choices: Sequence[str]) -> Any:
    """Return one of several names.

    Raises:
        ValueError: It is not one of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {shown(value)}")
    return value


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Return a sequence of ``fnmatch`` patterns of parameter names.

    Raises:
        TypeError: It is not a sequence of strings. A single string is not accepted: its letters would be patterns.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} must be a sequence of parameter name patterns, got {value!r}")
    return tuple(value)


def folder(name: str, value: str | Path) -> Path:
    """Return a local folder.

    Raises:
        ValueError: It is a URL, which would be used as the name of a local folder.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(value)):
        raise ValueError(f"{name} must be a local folder, got {str(value)!r}")
    return Path(value)


def scalars(value: Any) -> dict[str, float]:
    """Return numbers by name, as floats.

    Raises:
        TypeError: It is not a mapping of strings to numbers.
        ValueError: A value is a string that is not a number.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"scalars must be a mapping of names to numbers, got {shown(value)}")
    return {name: float(one) for name, one in value.items()}


def shown(value: Any) -> str:
    """Return the representation of a value, at most 100 characters; its type if ``repr`` fails."""
    try:
        return repr(value)[:100]
    except Exception:
        return f"an object of type {type(value).__name__}"
