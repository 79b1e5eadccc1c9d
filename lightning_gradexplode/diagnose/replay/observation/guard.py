"""A dispatch mode that ends a replayed step before it can change anything of the run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.observation.finiteness import storage_key
from lightning_gradexplode.diagnose.replay.observation.operation_calls import flat, name_of, written

_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd", "_dtensor")
HALF = (torch.float16, torch.bfloat16)
"""The half-precision types."""

WRITES = "the step writes to a tensor of the run"
"""How the reason begins for which such a step ends."""


class Guard(TorchDispatchMode):
    """Runs each operation of a replayed step, unless it would change the run.

    Only tensors that were made during the replay, or that belong to the copy, may be written to in place. Collective
    operations are not started. Both end the step with `ReplayStopped`, as does the end of the time that is allowed.

    Args:
        owned: Tensors of the copy that may be written to.
        deadline: Time (of ``time.perf_counter``) at which the step is given up.
        float32: Whether operations that make half-precision tensors make float32 ones instead.

    Attributes:
        paused: While True, operations are passed on as they are.
        operations: Number of operations that ran.
        written: The storages of the copy that were written to.
    """

    def __init__(self, owned: Iterable[Tensor] = (), *, deadline: float = float("inf"), float32: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paused = False
        self.operations = 0
        self.written: set[int] = set()
        self._owned = {storage_key(one) for one in owned} - {None}
        self._deadline = deadline
        self._float32 = float32

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch would import its compiler at the first operation, and step through a wrapper at each."""
        return False

    def owns(self, tensor: Tensor) -> bool:
        """Return whether a tensor may be written to."""
        return storage_key(tensor) in self._owned

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        self._check(func, args, kwargs)
        self.operations += 1
        if self._float32:
            args = tuple(torch.float32 if one in HALF else one for one in args) if _any_half(args) else args
            kwargs = {key: torch.float32 if _is_half(one) else one for key, one in kwargs.items()}
        # What shares memory with an argument, such as a view of a weight, belongs to whatever that belongs to.
        taken = {storage_key(one) for one in flat((args, kwargs.values()))}
        result = self.run(func, args, kwargs, taken)
        # `torch.tensor` and `torch.from_numpy` call it; the memory of a NumPy array is not torch's.
        if name_of(func) == "lift_fresh":
            taken = {storage_key(one) for one in args if not one.untyped_storage().resizable()}
        self._owned.update({storage_key(one) for one in flat((result,))} - taken)
        return result

    def run(self, func: Any, args: Any, kwargs: Any, taken: Set[int | None]) -> Any:
        """Run an operation that is allowed, given the storages of its arguments; overridden by what observes."""
        return func(*args, **kwargs)

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        if time.perf_counter() > self._deadline:
            raise ReplayStopped("the time allowed was over")
        if func.namespace in _COLLECTIVES:
            raise ReplayStopped(f"the step communicates with other processes ({name_of(func)})")
        for one in written(func, args, kwargs):
            key = storage_key(one)
            if key is None or not one.numel():
                continue
            if key not in self._owned:
                raise ReplayStopped(f"{WRITES} ({name_of(func)})")
            self.written.add(key)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in HALF


def _any_half(args: Sequence[Any]) -> bool:
    return any(_is_half(one) for one in args)
