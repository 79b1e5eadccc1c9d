"""Python that runs only to be recorded: while a CUDA graph is captured, or ``torch.compile`` traces a program.

What is recorded runs later without any Python, so that no hook sees it. While it is recorded nothing can be read from
the device, and an exception would end the recording.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lightning_gradexplode.records.log import logger


def is_captured() -> bool:
    """Return whether a CUDA graph is being captured; never starts CUDA."""
    is_running: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return is_running and torch.cuda.is_current_stream_capturing()


def untraced(call: Callable[..., Any]) -> Callable[..., Any]:
    """Make a hook of an optimizer run as Python also where ``torch.compile`` compiles the optimizer's step."""
    in_program = torch.compiler.disable(call)  # type: ignore[no-untyped-call]

    @functools.wraps(call)
    def hook(*args: Any) -> Any:
        return in_program(*args) if torch.compiler.is_compiling() else call(*args)

    return hook


class RecordedCalls:
    """Detects calls that are made only to be recorded, and logs once that the monitor does not see what is recorded.

    Args:
        logs: Whether this process logs it.

    Attributes:
        are_possible: Whether `happen` has to be called.
    """

    def __init__(self, logs: bool) -> None:
        self.are_possible = torch.cuda.is_available()
        self._logs = logs
        self._program = ""

    def traced(self) -> None:
        """Record that ``torch.compile`` traces a call; a message follows later, since a logger cannot be traced."""
        self._program, self.are_possible = "torch.compile", True

    def happen(self) -> bool:
        """Return whether the call that is running is captured by a CUDA graph, so that there is nothing to measure."""
        captured = is_captured()
        if captured:
            self._program = "a CUDA graph"
        if self._program and self._logs:
            self._logs = False
            logger.warning(
                "gradexplode: a backward pass or an optimizer's step runs inside of %s, where hooks see it in part or "
                "not at all; what they do not see is not measured, clipped or held back",
                self._program,
            )
        return captured
