"""The state of a monitor between two fits: loaded from a checkpoint, or kept from the fit before."""

from __future__ import annotations

import weakref
from typing import Any


class FitState:
    """The state that the next fit of a monitor continues from.

    Attributes:
        state: The state, in plain values; empty if there is none.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self._stage: str | None = None
        self._loaded_in: str | None = None
        self._module: weakref.ref[Any] | None = None

    def begin_stage(self, stage: str) -> None:
        """Begin a stage, such as ``"fit"``. State that was loaded in another stage does not belong to a fit."""
        self._stage = stage
        if stage == "fit" and self._loaded_in not in (None, "fit"):
            self.state, self._loaded_in = {}, None

    def end_stage(self) -> None:
        """End the stage."""
        self._stage = None

    def load(self, state: dict[str, Any]) -> None:
        """Set the state from a checkpoint."""
        self.state, self._loaded_in = state, self._stage or "fit"

    def take(self, module: Any) -> dict[str, Any]:
        """Remove and return the state that a fit of a module continues from.

        Returns:
            The loaded state, or that of an earlier fit of the same module; else an empty one.
        """
        continues = self._loaded_in is not None or (self._module is not None and self._module() is module)
        state, self.state, self._loaded_in = (self.state if continues else {}), {}, None
        self._module = weakref.ref(module)
        return state

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without the module, which belongs to this process only."""
        return {**vars(self), "_module": None}
