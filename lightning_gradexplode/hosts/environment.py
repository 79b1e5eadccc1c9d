"""A monitor in every Lightning Trainer, without a line of code: ``GRADEXPLODE=1 python train.py``.

Lightning calls `callbacks` in the constructor of each Trainer, through the entry points that the installed package
declares. ``GRADEXPLODE_<ARGUMENT>`` sets an argument of the monitor, lists separated by commas:
``GRADEXPLODE_CLIP=auto``, ``GRADEXPLODE_ON_EXPLOSION=skip,rollback``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from lightning_gradexplode.records.log import logger

SWITCH = "GRADEXPLODE"

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def callbacks() -> list[Any]:
    """Return a monitor if the environment requests one, else nothing. Never raises."""
    if os.environ.get(SWITCH, "").strip().lower() in _FALSE:
        return []
    try:
        from lightning_gradexplode.hosts.automatic import AutomaticMonitor

        for line in unknown_variables(os.environ):
            logger.warning("gradexplode: %s", line)
        return [AutomaticMonitor(**arguments(os.environ))]
    except Exception as error:
        logger.warning("gradexplode: no monitor is added (%s): %s", type(error).__name__, _of_variables(str(error)))
        return []


def arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the monitor's arguments that environment variables set; an empty variable sets nothing.

    Raises:
        ValueError: A value cannot be read as what its argument takes.
    """
    return {
        name: read(text, _variable(name))
        for name, read in _READERS.items()
        if (text := environment.get(_variable(name), "")).strip()
    }


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each variable with the prefix of arguments that is not the variable of one."""
    from lightning_gradexplode.loggers import notifications  # too much to import where no monitor is requested

    known = {*map(_variable, _READERS), notifications.VARIABLE}
    unknown = sorted(name for name in environment if name.startswith(f"{SWITCH}_") and name not in known)
    arguments_by_name = {name.removeprefix(f"{SWITCH}_"): name for name in known}
    likely = [get_close_matches(name.removeprefix(f"{SWITCH}_"), arguments_by_name, 1) for name in unknown]
    return [
        f"{name} is ignored, since no argument can be set by it"
        + "".join(f"; did you mean {arguments_by_name[one]}?" for one in near)
        for name, near in zip(unknown, likely, strict=True)
    ]


def _of_variables(message: str) -> str:
    """Return the message of an error, which begins with the name of an argument, with that of its variable."""
    name, _, rest = message.partition(" ")
    return f"{_variable(name)} {rest}" if name in _READERS else message


def _variable(argument: str) -> str:
    return f"{SWITCH}_{argument.upper()}"


def _flag(text: str, variable: str) -> bool:
    value = text.strip().lower()
    if value not in _TRUE + _FALSE:
        raise ValueError(f"{variable} must be 1 or 0, got {text!r}")
    return value in _TRUE


def _count(text: str, variable: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable} must be a whole number, got {text!r}") from None


def _clip(text: str, variable: str) -> float | str:
    if text.strip().lower() == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'{variable} must be a positive number or "auto", got {text!r}') from None


def _report(text: str, variable: str) -> bool | str:
    value = text.strip()
    return value.lower() in _TRUE if value.lower() in _TRUE + _FALSE else value


def _list(text: str, variable: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _text(text: str, variable: str) -> str:
    return text.strip()


_READERS: dict[str, Callable[[str, str], Any]] = {
    "log_every_n_steps": _count,
    "histogram_every_n_steps": _count,
    "per_parameter": _flag,
    "include": _list,
    "exclude": _list,
    "ignore": _list,
    "clip": _clip,
    "on_explosion": _list,
    "alert_level": _text,
    "diagnose": _flag,
    "report": _report,
    "update_sample": _count,
}
