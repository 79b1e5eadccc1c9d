"""The losses whose backward passes an Accelerator of Hugging Face begins."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class AcceleratorLosses:
    """Calls a method with each loss before its backward pass, in runs of one optimizer.

    A callback of the Trainer gets neither the loss nor the Accelerator. ``Accelerator.backward`` is therefore replaced
    by a function that calls it, until `close`, or until the object of the method is gone, as after a run that failed.

    Args:
        optimizer: The optimizer of the run, in Accelerate's wrapper; those of other Accelerators are left alone.
        call: Called with the loss of each micro-batch. Neither its object nor the optimizer is kept alive.
    """

    def __init__(self, optimizer: Any, call: Callable[[Tensor], None]) -> None:
        self._method: weakref.WeakMethod[Callable[[Tensor], None]] | None = weakref.WeakMethod(call)
        self._optimizer = weakref.ref(optimizer)
        self._original = original = Accelerator.backward

        @functools.wraps(original)
        def backward(accelerator: Accelerator, loss: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._begins(accelerator, loss)
            return original(accelerator, loss, *args, **kwargs)

        self._replacement = backward
        Accelerator.backward = backward

    def _begins(self, accelerator: Accelerator, loss: Any) -> None:
        call, optimizer = None if self._method is None else self._method(), self._optimizer()
        if call is None or optimizer is None:
            self.close()
        elif isinstance(loss, Tensor) and any(one is optimizer for one in getattr(accelerator, "_optimizers", ())):
            call(loss)

    def close(self) -> None:
        """Put the method back; if another program has replaced it since, call nothing any more."""
        self._method = None
        if Accelerator.backward is self._replacement:
            Accelerator.backward = self._original
