"""One call of a torch operation: its name, its tensors, and which of them it reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor


def name_of(func: Any) -> str:
    """Return the name of an operation without its overload and the underscore of an in-place one."""
    name = str(func.overloadpacket.__name__)
    return name if name.startswith("_") and name.endswith("__") else name.rstrip("_") or name


def flat(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors of arguments or results, those in lists and tuples included."""
    found: list[Tensor] = []
    for one in values:
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found.extend(flat(one))
    return found


def written(func: Any, args: Sequence[Any], kwargs: Any) -> list[Tensor]:
    """Return the arguments that an operation writes to."""
    positions, names = _written_arguments(func)
    values = [args[at] for at in positions if at < len(args)] + [kwargs[name] for name in names if name in kwargs]
    return flat(values) if values else []


def read(func: Any, args: Sequence[Any], kwargs: Any) -> list[Tensor]:
    """Return the arguments that an operation reads: in training, batch normalization does not read its statistics."""
    taken = flat((args, kwargs.values()))
    training = _training_argument(func)
    if training is None or not (args[training] if training < len(args) else kwargs.get("training", True)):
        return taken
    updated = {id(one) for one in written(func, args, kwargs)}
    return [one for one in taken if id(one) not in updated]


@lru_cache(maxsize=4096)
def is_view(func: Any) -> bool:
    """Return whether an operation returns views of its arguments and computes nothing."""
    returns = func._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


@lru_cache(maxsize=4096)
def _training_argument(func: Any) -> int | None:
    """Return the position of the argument ``training`` of batch normalization, None for other operations."""
    names = [one.name for one in func._schema.arguments]
    return names.index("training") if "batch_norm" in str(func) and "training" in names else None


@lru_cache(maxsize=4096)
def _written_arguments(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    arguments = func._schema.arguments
    # In the schema of batch normalization the running statistics are not marked as written.
    running = {"running_mean", "running_var"} if "batch_norm" in str(func) else set()
    chosen = [
        (at, one)
        for at, one in enumerate(arguments)
        if (one.alias_info is not None and one.alias_info.is_write) or one.name in running
    ]
    return tuple(at for at, one in chosen if not one.kwarg_only), tuple(one.name for _, one in chosen)
