"""Conversion of frozen records to plain values for JSON, and back."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

Record = TypeVar("Record")


def to_plain(value: Any) -> Any:
    """Return a record and its fields as dictionaries, lists, strings and numbers.

    Arrays become lists; members of an enumeration become their names.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value


def from_plain(kind: type[Record], plain: Mapping[str, Any]) -> Record:
    """Build a record from the result of `to_plain`. Unknown keys are ignored; missing fields have their defaults.

    Raises:
        TypeError: A field without a default is missing.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], plain[name]) for name in hints if name in plain})


def _value(hint: Any, plain: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if plain is None else _value(next(one for one in arguments if one is not type(None)), plain)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_value(arguments[0], one) for one in plain)
        return tuple(_value(one, value) for one, value in zip(arguments, plain, strict=True))
    if origin is np.ndarray:
        return np.array(plain, dtype=get_args(arguments[1])[0])
    if origin is Literal or origin is not None or not isinstance(hint, type):
        return plain
    if is_dataclass(hint):
        return from_plain(hint, plain)
    return hint[plain] if issubclass(hint, Enum) else plain


def json_safe(plain: Any) -> Any:
    """Return plain values with the strings ``"nan"``, ``"inf"`` and ``"-inf"`` in place of non-finite numbers."""
    if isinstance(plain, dict):
        return {key: json_safe(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [json_safe(value) for value in plain]
    return str(plain) if isinstance(plain, float) and not np.isfinite(plain) else plain
