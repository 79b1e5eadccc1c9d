"""Which tensors of a step have the rows of the batch, in its order, in their first dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

from torch import Tensor

from lightning_gradexplode.diagnose.replay.observation.finiteness import storage_key
from lightning_gradexplode.diagnose.replay.observation.operation_calls import flat, name_of

_MOVING = {
    "argsort",
    "cat",
    "flip",
    "gather",
    "index_add",
    "index_copy",
    "index_reduce",
    "index_select",
    "repeat_interleave",
    "roll",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "segment_reduce",
    "sort",
    "topk",
}
"""They move elements along their dimension."""

_LOSING = {"masked_select", "nonzero", "repeat", "take", "unique_consecutive", "_unique2", "unique_dim"}
_PRODUCTS = {"addmm": 1, "addmv": 1, "mm": 0, "mv": 0}
"""Matrix products, and the place of the argument whose rows are those of the result."""


class BatchRows:
    """Follows the rows of the batch through the operations of a step.

    Args:
        batch: The tensors of the batch.
    """

    def __init__(self, batch: Iterable[Tensor]) -> None:
        self._aligned = {storage_key(one) for one in batch} - {None}
        self._mixed: set[int | None] = set()

    def are_in(self, tensor: Any) -> bool:
        """Return whether the first dimension of a tensor is that of the batch; False for what is no tensor."""
        return isinstance(tensor, Tensor) and storage_key(tensor) in self._aligned

    def update(self, func: Any, args: Any, kwargs: Any, taken: Set[int | None], made: Set[int | None]) -> None:
        """Record whether the result of an operation has the rows of the batch.

        Args:
            func: The operation.
            args: Its arguments.
            kwargs: Its arguments by name.
            taken: The storages of its arguments.
            made: The storages of its result.
        """
        of_batch = not taken.isdisjoint(self._aligned)
        if not taken.isdisjoint(self._mixed) or (of_batch and moves_rows(func, args, kwargs, self.are_in)):
            self._mixed |= made
            self._aligned -= made
            return
        self._mixed -= made  # addresses are used again
        if of_batch:
            self._aligned |= made
        else:
            self._aligned -= made - taken


def moves_rows(func: Any, args: Sequence[Any], kwargs: Any, is_aligned: Callable[[Tensor], bool]) -> bool:
    """Return whether the rows of an operation's result are not those of its arguments.

    Args:
        func: The operation.
        args: Its arguments.
        kwargs: Its arguments by name.
        is_aligned: Returns whether the first dimension of a tensor is that of the batch.
    """
    name = name_of(func)
    # Either rows of a table are selected by indices from the batch, or rows of the batch are selected.
    if name == "index":
        table, places = args[0], [one for one in args[1] if one is not None]
        return is_aligned(table) and args[1][0] is not None if places else False
    if name in _PRODUCTS and len(args) > _PRODUCTS[name]:
        return not is_aligned(args[_PRODUCTS[name]])
    if name in _LOSING:
        return True
    if name in _MOVING:
        return name != "index_select" or is_aligned(args[0]) if _is_first(func, args, kwargs) else False
    is_decomposition = name.lstrip("_").startswith(("cholesky", "linalg", "lu")) and name != "linalg_vector_norm"
    return is_decomposition and any(one.dim() == 2 for one in flat(args))


def _is_first(func: Any, args: Sequence[Any], kwargs: Any) -> bool:
    """Return whether an operation works along the first dimension of its first tensor, or along all."""
    tensors = flat(args)
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("dim", "dims", "axis"):
            value = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            dims = value if isinstance(value, (list, tuple)) else [value]
            return not dims or any(one is None or one == 0 or one == -tensors[0].dim() for one in dims)
    return True
