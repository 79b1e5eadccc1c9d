"""Saving and loading of state in checkpoints: each part is loaded separately, and a part that does not fit is not."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import numpy as np


class Stateful:
    """Base class of objects whose state is saved in checkpoints.

    The state is all attributes whose names begin with an underscore, and those in `also_saved`: numbers, strings,
    lists, tuples, dictionaries, deques, arrays, or objects with ``state_dict`` and ``load_state_dict``. A saved value
    fits if it has the type of the value it replaces, and is finite if that is a finite number. If that is None, it fits
    if it has the type in the annotation of the class, such as ``_last: float | None``.

    Example:
        >>> class Counter(Stateful):
        ...     def __init__(self):
        ...         self._count = 0
        ...         self._names = []
        >>> counter = Counter()
        >>> counter.load_state_dict({"_count": 3, "_names": "corrupt"})
        ['_names']
        >>> counter.state_dict()
        {'_count': 3, '_names': []}
    """

    not_saved: ClassVar[tuple[str, ...]] = ()
    """Attributes with a leading underscore that are not saved, such as results computed from other attributes."""

    also_saved: ClassVar[tuple[str, ...]] = ()
    """Attributes without a leading underscore that are saved, since other objects read them at every step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values, which ``torch.load(weights_only=True)`` accepts.

        Raises:
            TypeError: An attribute cannot be saved, such as a lock or a function.
        """
        return {name: plain(value) for name, value in vars(self).items() if self._is_state(name)}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Load the result of `state_dict`, attribute by attribute.

        Args:
            state: The state. Names with or without a leading underscore are accepted, as in checkpoints of 0.1.0.

        Returns:
            Names of the attributes that keep their initial value, since the state has none or one that does not fit.

        Raises:
            TypeError: The state is not a mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {type(state).__name__}")
        annotated = _annotated(type(self))
        fresh = []
        for name in [name for name in vars(self) if self._is_state(name)]:
            other = name[1:] if name.startswith("_") else f"_{name}"
            current, saved = getattr(self, name), state.get(name, state.get(other, _MISSING))
            value, missing = loaded(current, saved, annotated.get(name, ()))
            setattr(self, name, value)
            fresh += [f"{name}.{inner}" if inner else name for inner in missing]
        return fresh

    def _is_state(self, name: str) -> bool:
        return name in self.also_saved or (name.startswith("_") and name not in self.not_saved)


_MISSING = object()


def plain(value: Any) -> Any:
    """Return a copy of a value that can be saved in a checkpoint.

    Raises:
        TypeError: The value has none of the types that `Stateful` lists.
    """
    for kind in (bool, int, float, str):  # a subclass, such as an enumeration, is no plain value
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if hasattr(value, "state_dict"):
        return plain(value.state_dict())
    if isinstance(value, (list, tuple, deque)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist() if value.dtype != object else plain(value.tolist())
    if hasattr(value, "detach"):
        return value.detach().clone()
    raise TypeError(f"a state must be made of numbers, strings, lists and dictionaries, got {type(value).__name__}")


def copied(part: Any) -> Any:
    """Return a deep copy of an object that shares attributes with the original that cannot be copied, such as locks."""
    try:
        return copy.deepcopy(part)
    except Exception:
        pass
    try:
        shallow = copy.copy(part)
        for name, value in [*vars(shallow).items()]:
            setattr(shallow, name, copied(value))
    except Exception:
        return part
    return shallow


def loaded(current: Any, saved: Any, kinds: tuple[type, ...] = ()) -> tuple[Any, list[str]]:
    """Return a saved value in the type of the current one, and the names of the parts of it that do not fit.

    Args:
        current: The initial value.
        saved: The value in the state.
        kinds: Types that fit if the current value is None; any if empty.

    Returns:
        The value, and ``[""]`` if that is the current one because the saved one does not fit; for a nested object, the
        names of its parts that do not fit.
    """
    if saved is _MISSING:
        return current, [""]
    if hasattr(current, "load_state_dict"):
        fresh = copied(current)
        try:
            return current, list(current.load_state_dict(saved) or ())
        except Exception:
            return fresh, [""]
    try:
        return _converted(current, saved, kinds), []
    except (TypeError, ValueError):
        return current, [""]


def _converted(current: Any, saved: Any, kinds: tuple[type, ...]) -> Any:
    """Return a saved value in the type of the current one.

    Raises:
        TypeError: It is of another type.
        ValueError: It is a number that is not finite.
    """
    if isinstance(current, np.ndarray):
        _check(saved, (list,))
        return np.asarray(saved, dtype=current.dtype)
    if isinstance(current, (deque, tuple)):
        _check(saved, (list, tuple))
        return deque(saved, current.maxlen) if isinstance(current, deque) else tuple(saved)
    if saved is None and type(None) in kinds:
        return None
    if current is not None:
        kinds = (type(current),)
    if kinds:
        _check(saved, (*kinds, int) if float in kinds else (*kinds, float) if kinds == (int,) else kinds)
        if isinstance(saved, bool) and bool not in kinds:
            raise TypeError("expected a number, got a bool")
    if isinstance(saved, float) and not math.isfinite(saved) and (current is None or math.isfinite(current)):
        raise ValueError(f"expected a finite number, got {saved}")
    return copy.deepcopy(saved)


def _check(value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {type(value).__name__}")


def _annotated(kind: type) -> dict[str, tuple[type, ...]]:
    """Return the types that a class annotates its attributes with, where these are plain types or unions of them."""
    try:
        hints = get_type_hints(kind)
    except Exception:  # such as a name that is imported for type checkers only
        return {}
    alternatives = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {name: kinds for name, kinds in alternatives.items() if all(map(_is_plain, kinds))}


def _is_plain(kind: Any) -> bool:
    """Return whether `isinstance` takes a type; on Python 3.10 ``list[int]`` counts as one, and is refused there."""
    return isinstance(kind, type) and get_origin(kind) is None
