"""Detection of calls that run while a CUDA graph is captured, or while ``torch.compile`` traces a program.

The captured kernels run later without any Python, so that no hook is called for them. During the capture nothing can be
read from the device, and an exception would end the capture.
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
    disabled = torch.compiler.disable(call)  # type: ignore[no-untyped-call]

    @functools.wraps(call)
    def hook(*args: Any) -> Any:
        return disabled(*args) if torch.compiler.is_compiling() else call(*args)

    return hook


class GraphCapture:
    """Detects calls that are captured or traced, and logs once that the monitor does not see what runs there.

    Args:
        logs: Whether this process logs it.

    Attributes:
        is_possible: Whether `is_running` has to be called.
    """

    def __init__(self, logs: bool) -> None:
        self.is_possible = torch.cuda.is_available()
        self._logs = logs
        self._captured_by = ""

    def note_tracing(self) -> None:
        """Record that ``torch.compile`` traces a call; a message follows later, since a logger cannot be traced."""
        self._captured_by, self.is_possible = "torch.compile", True

    def is_running(self) -> bool:
        """Return whether a CUDA graph captures the present call, so that there is nothing to measure."""
        captured = is_captured()
        if captured:
            self._captured_by = "a CUDA graph"
        if self._captured_by and self._logs:
            self._logs = False
            logger.warning(
                "gradexplode: a backward pass or an optimizer's step runs inside of %s, where hooks see it in part or "
                "not at all; what they do not see is not measured, clipped or held back",
                self._captured_by,
            )
        return captured
