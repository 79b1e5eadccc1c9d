"""The operations of the forward pass that autograd nodes belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay.observation.source_line import SourceLine, calling_line

Module = tuple[str, str]
"""Name and class of a module."""


@dataclass(frozen=True, slots=True)
class ForwardOperation:
    """An operation of the forward pass.

    Args:
        line: The line of the user's own code that called it, None if there is none.
        module: The module that ran it, None outside of all modules.
        batch_shapes: Shapes of arguments with the rows of the batch that no other argument has.
    """

    line: SourceLine | None = None
    module: Module | None = None
    batch_shapes: Set[tuple[int, ...]] = frozenset()


class ForwardOperations:
    """The operations of a forward pass, by their autograd node."""

    def __init__(self) -> None:
        self._by_number: dict[int, ForwardOperation] = {}

    def record(
        self, tensors: Sequence[Tensor], module: Module | None, has_rows: Callable[[Tensor], bool]
    ) -> int | None:
        """Record the operation that is about to run; autograd makes its node, and counts it, before.

        Args:
            tensors: The arguments of the operation.
            module: The module that runs it.
            has_rows: Returns whether a tensor has the rows of the batch.

        Returns:
            The sequence number of its autograd node, None if it has none of its own.
        """
        number = int(torch.autograd._get_sequence_nr()) - 1  # type: ignore[attr-defined]
        if number in self._by_number:
            return None
        shapes: tuple[set[tuple[int, ...]], set[tuple[int, ...]]] = (set(), set())
        for one in tensors:
            shapes[has_rows(one)].add(tuple(one.shape))
        self._by_number[number] = ForwardOperation(calling_line(), module, shapes[True] - shapes[False])
        return number

    def of(self, node: Any) -> ForwardOperation:
        """Return the operation that an autograd node belongs to; one without any facts if it was not recorded."""
        return self._by_number.get(node._sequence_nr(), ForwardOperation())
