"""The cases of both halves, and of the sets that the rules were improved on afterwards."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Literal

from benchmarks.diagnosis import (
    eighteenth,
    eighth,
    eleventh,
    fifteenth,
    fifth,
    fourteenth,
    fourth,
    held_out,
    left_out,
    nineteenth,
    ninth,
    second,
    seventeenth,
    seventh,
    sixteenth,
    sixth,
    tenth,
    third,
    thirteenth,
    tuning,
    twelfth,
    twentieth,
    twentyfirst,
    twentyfourth,
    twentysecond,
    twentythird,
)
from benchmarks.diagnosis.case import Case

Half = Literal[
    "tuning",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "left_out",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
    "twentieth",
    "twentyfirst",
    "twentysecond",
    "twentythird",
    "twentyfourth",
    "held_out",
]
NOT_BY_CASE: tuple[Half, ...] = ("ninth", "held_out")

_PACKAGES = {
    "tuning": tuning,
    "second": second,
    "third": third,
    "fourth": fourth,
    "fifth": fifth,
    "sixth": sixth,
    "seventh": seventh,
    "left_out": left_out,
    "eighth": eighth,
    "ninth": ninth,
    "tenth": tenth,
    "eleventh": eleventh,
    "twelfth": twelfth,
    "thirteenth": thirteenth,
    "fourteenth": fourteenth,
    "fifteenth": fifteenth,
    "sixteenth": sixteenth,
    "seventeenth": seventeenth,
    "eighteenth": eighteenth,
    "nineteenth": nineteenth,
    "twentieth": twentieth,
    "twentyfirst": twentyfirst,
    "twentysecond": twentysecond,
    "twentythird": twentythird,
    "twentyfourth": twentyfourth,
    "held_out": held_out,
}


@cache
def cases(half: Half) -> tuple[type[Case], ...]:
    """Return the cases of a half or of another set, by file and in the order in which they stand there."""
    package = _PACKAGES[half]
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = (importlib.import_module(f"{package.__name__}.{name}") for name in names)
    return tuple(case for module in modules for case in _cases_in(module))


def _cases_in(module: ModuleType) -> list[type[Case]]:
    """Return the classes of a module that have a true kind of cause; others are bases."""
    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Case)]
    return [one for one in found if one.kinds and one.__module__ == module.__name__]
