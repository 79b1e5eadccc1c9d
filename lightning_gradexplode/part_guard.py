"""Isolation of parts of the monitor that users may have written: if one fails, it alone is disabled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.state import plain
from lightning_gradexplode.records.text import describe

T = TypeVar("T")

_PACKAGE = __name__.partition(".")[0]


def is_own(part: object) -> bool:
    """Return whether a part is one of the package."""
    return type(part).__module__.partition(".")[0] == _PACKAGE


class PartGuard:
    """Calls the methods of one part. If one raises, the part is switched off, and a line with its name is logged.

    Args:
        part: The part.
        kind: The kind of part, such as ``"clip policy"``.
        consequence: The consequence of switching it off, for the line.
        passes: Exceptions that are not caught.

    Attributes:
        is_off: Whether the part is switched off.
    """

    def __init__(
        self, part: Any, kind: str, consequence: str = "", passes: tuple[type[BaseException], ...] = ()
    ) -> None:
        self.is_off = False
        self._part = part
        self._kind = kind
        self._consequence = consequence
        self._passes = passes
        self._state_is_lost = False

    @property
    def name(self) -> str:
        """Name of the part's class."""
        return type(self._part).__qualname__

    def call(self, method: Callable[..., T], *arguments: Any, otherwise: T, always: bool = False) -> T:
        """Call a method of the part.

        Args:
            method: The method.
            *arguments: Its arguments.
            otherwise: The result if it is not called, or raises.
            always: Whether it is called also if the part is switched off, as a method that cleans up.

        Returns:
            The result of the method.
        """
        if self.is_off and not always:
            return otherwise
        try:
            return method(*arguments)
        except self._passes:
            raise
        except Exception as error:
            self.switch_off(f"{getattr(method, '__name__', 'a call').strip('_')} raised {describe(error)}")
            logger.debug("gradexplode: traceback of the %s", self._kind, exc_info=True)
            return otherwise

    def switch_off(self, reason: str) -> None:
        """Switch the part off, and log it."""
        if not self.is_off:
            self.is_off = True
            logger.warning(
                "gradexplode: the %s %s is switched off for this fit%s: %s",
                self._kind,
                self.name,
                f", {self._consequence}" if self._consequence else "",
                reason,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the part's state in plain values; empty, with one line logged, if it cannot be saved."""
        if self.is_off:
            return {}
        try:
            state = plain(self._part.state_dict())
            if not isinstance(state, dict):
                raise TypeError(f"state_dict must return a dictionary, got {type(state).__name__}")
        except Exception as error:
            if not self._state_is_lost:
                self._state_is_lost = True
                logger.warning(
                    "gradexplode: the state of the %s %s cannot be saved: %s", self._kind, self.name, describe(error)
                )
            return {}
        return state

    def load_state_dict(self, state: Any) -> list[str]:
        """Restore what `state_dict` returned.

        Returns:
            Names of the parts that the state does not fit, and which start without it.
        """
        try:
            return [f"{self.name}.{part}" for part in self._part.load_state_dict(state) or ()]
        except Exception:
            return [self.name]
