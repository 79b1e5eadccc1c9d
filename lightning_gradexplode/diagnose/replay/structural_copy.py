"""A deep copy of what a module holds, where `copy.deepcopy` would fail, or copy too much, or share too much."""

from __future__ import annotations

import copyreg
import functools
import io
import logging
import time
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.data import DataLoader, Dataset

from lightning_gradexplode.diagnose.replay.stand_ins import ReplayStopped, Silent, Unavailable

LARGE = 10_000
"""A container of more elements is copied alone, and its elements are shared."""

SMALL_BYTES = 1 << 20
"""Tensors up to this size are copied whatever the budget is."""

_LOGGING = ("tensorboard", "torch.utils.tensorboard", "tensorboardX", "wandb", "comet_ml", "mlflow", "neptune", "aim")
_TABLES = ("pandas", "pyarrow", "datasets", "polars", "h5py", "zarr")
_OWN_HOOKS = ("lightning_gradexplode", "wandb")
_ATOMIC = (int, float, complex, str, bytes, type(None), type, range, slice, type(Ellipsis), type(NotImplemented))
_SHARED = (types.ModuleType, types.CodeType, torch.dtype, torch.device, torch.Size, torch.layout, Dataset, DataLoader)
_LOCKS = ("lock", "RLock")
_ITERATORS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


class StructuralCopy:
    """Copies objects with everything they hold, so that nothing done to the copy reaches the original.

    Tensors are cloned, and enter detached, while they fit the budget; above it they are shared. Containers, modules,
    objects, bound methods and the variables that functions close over are rebuilt. Data sets, tables and locks are
    shared. Loggers and files become objects that do nothing. Iterators, and what else cannot be copied, become
    objects whose use ends the replay.

    Args:
        tensor_bytes: Budget for clones of tensors and arrays.
        deadline: Time (of ``time.perf_counter``) at which copying is given up.

    Attributes:
        memo: Copies by ``id`` of the original, as in `copy.deepcopy`; what is put there first replaces an object.
        notes: What was detached, shared or dropped, in one sentence each.
        owned: The tensors that were cloned.
    """

    def __init__(self, tensor_bytes: int, deadline: float = float("inf")) -> None:
        self.memo: dict[int, Any] = {}
        self.notes: list[str] = []
        self.owned: list[Tensor] = []
        self._bytes = tensor_bytes
        self._deadline = deadline
        self._originals: list[Any] = []
        self._storages: dict[int, torch.UntypedStorage] = {}

    def replace(self, original: object, new: object) -> None:
        """Use an object in place of another one wherever that is found."""
        self._originals.append(original)
        self.memo[id(original)] = new

    def share_storage(self, tensor: Tensor) -> None:
        """Let tensors that share this one's storage be views of it, not clones."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def __call__(self, value: Any, name: str = "") -> Any:
        """Return the copy of an object.

        Args:
            value: The object.
            name: Its place in the module, for notes.

        Raises:
            ReplayStopped: Copying takes too long.
        """
        known = self.memo.get(id(value), self)
        if known is not self:
            return known
        kind = type(value)
        if isinstance(value, _ATOMIC) and kind.__module__ == "builtins":
            return value
        if isinstance(value, (type, *_SHARED)) or kind.__name__ in _LOCKS:
            return value
        if time.perf_counter() > self._deadline:
            raise ReplayStopped("copying what the module holds takes too long")
        self._originals.append(value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._copy(value, kind, name)
        except Exception as error:
            return self._without_copy(value, name, error)

    def _copy(self, value: Any, kind: type, name: str) -> Any:
        if isinstance(value, Tensor):
            return self._remember(value, self._tensor(value, name))
        if isinstance(value, np.ndarray):
            return self._remember(value, self._array(value, name))
        if kind in (list, set, deque):
            return self._elements(value, kind, name)
        if kind is dict:
            return self._entries(value, name)
        if kind in (tuple, frozenset):
            new = value if self._is_large(value, name) else kind(self(one, name) for one in value)
            return self.memo.setdefault(id(value), new)
        if isinstance(value, types.FunctionType):
            return self._function(value, name)
        if isinstance(value, types.MethodType):
            return self._remember(value, types.MethodType(value.__func__, self(value.__self__, name)))
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            mutable = isinstance(owner, (list, dict, set, deque))
            return getattr(self(owner, name), value.__name__) if mutable else value
        if isinstance(value, functools.partial):
            keywords = self(value.keywords, name)
            return self._remember(value, kind(self(value.func, name), *self(value.args, name), **keywords))
        if isinstance(value, weakref.ref):
            target = value()
            return self._remember(value, value if target is None else weakref.ref(self(target, name)))
        if isinstance(value, torch.Generator):
            generator = torch.Generator(value.device)
            generator.set_state(value.get_state())
            return self._remember(value, generator)
        if isinstance(value, (logging.Logger, logging.Handler)) or _belongs_to(kind, _LOGGING):
            return self._replaced(value, name, Silent(), "does nothing: it writes logs")
        if isinstance(value, io.IOBase) and not isinstance(value, (io.StringIO, io.BytesIO)):
            return self._replaced(value, name, Silent(), "does nothing: it is a file")
        if _belongs_to(kind, _TABLES):
            return self._replaced(value, name, value, "is shared with the run: it is a table")
        if isinstance(value, _ITERATORS) or (
            hasattr(value, "__next__") and kind.__module__ in ("builtins", "itertools")
        ):
            raise TypeError("it is an iterator")
        own = getattr(kind, "__deepcopy__", None)
        if own is not None and not _is_parametrized(value):
            return self._remember(value, own(value, self.memo))
        return self._rebuild(value, name)

    def _remember(self, value: Any, new: Any) -> Any:
        self.memo[id(value)] = new
        return new

    def _replaced(self, value: Any, name: str, new: Any, how: str) -> Any:
        self.notes.append(f"{name or type(value).__name__} {how}.")
        return self._remember(value, new)

    def _without_copy(self, value: Any, name: str, error: Exception) -> Any:
        place = name or type(value).__name__
        reason = f"{place} ({type(value).__name__}) cannot be copied: {error}"
        self.notes.append(f"{reason}.")
        return self._remember(value, Unavailable(f"the step uses {reason}"))

    def _is_large(self, value: Any, name: str) -> bool:
        if len(value) > LARGE:
            self.notes.append(f"The {len(value)} elements of {name or 'a container'} are shared with the run.")
        return len(value) > LARGE

    def _entries(self, value: dict[Any, Any], name: str) -> dict[Any, Any]:
        new: dict[Any, Any] = {}
        self.memo[id(value)] = new
        large = self._is_large(value, name)
        for key, one in list(value.items()):
            new[self(key)] = one if large else self(one, f"{name}.{key}" if name else str(key))
        return new

    def _elements(self, value: Any, kind: Callable[..., Any], name: str) -> Any:
        new: Any = deque(maxlen=value.maxlen) if kind is deque else kind()
        self.memo[id(value)] = new
        large = self._is_large(value, name)
        add = new.add if kind is set else new.append
        for one in list(value):
            add(one if large else self(one, name))
        return new

    def _tensor(self, value: Tensor, name: str) -> Tensor:
        if value.requires_grad and not value.is_leaf:
            self.notes.append(f"{name or 'A tensor'} was part of an autograd graph and enters detached.")
        new = self._clone(value.detach(), name)
        for attribute, one in getattr(value, "__dict__", {}).items():
            setattr(new, attribute, self(one, f"{name}.{attribute}"))
        return new.requires_grad_(value.requires_grad and value.is_leaf)

    def _clone(self, value: Tensor, name: str) -> Tensor:
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_quantized:
            return self._counted(value, value.numel() * value.element_size(), name, value.clone)
        storage = value.untyped_storage()

        def on(other: torch.UntypedStorage) -> Tensor:
            empty = torch.empty(0, dtype=value.dtype, device=value.device)
            empty.set_(other, value.storage_offset(), value.shape, value.stride())
            return empty

        if storage._cdata in self._storages:
            return on(self._storages[storage._cdata])
        new = self._counted(value, storage.nbytes(), name, lambda: on(storage.clone()))  # type: ignore[no-untyped-call]
        self._storages[storage._cdata] = new.untyped_storage()
        return new

    def _counted(self, value: Tensor, size: int, name: str, clone: Callable[[], Tensor]) -> Tensor:
        if size > SMALL_BYTES and size > self._bytes:
            self.notes.append(f"{name or 'A tensor'} ({size / 2**20:.0f} MiB) is shared with the run.")
            return value.detach()
        self._bytes -= size
        new = clone()
        self.owned.append(new)
        return new

    def _array(self, value: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        if value.nbytes <= max(SMALL_BYTES, self._bytes):
            self._bytes -= value.nbytes
            return value.copy()
        self.notes.append(f"{name or 'An array'} ({value.nbytes / 2**20:.0f} MiB) is shared with the run.")
        view = value.view()
        view.flags.writeable = False
        return view

    def _function(self, value: types.FunctionType, name: str) -> Any:
        """Rebuild a function around copies of what it closes over, such as a hook that appends to a list."""
        value = getattr(value, "_torchdynamo_orig_callable", value)
        if not (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
            return self._remember(value, value)
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        new = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells or None)
        self.memo[id(value)] = new
        new.__dict__.update(value.__dict__)
        new.__qualname__, new.__module__, new.__doc__ = value.__qualname__, value.__module__, value.__doc__
        new.__defaults__ = self(value.__defaults__, name)
        new.__kwdefaults__ = self(value.__kwdefaults__, name)
        for cell, original in zip(cells, value.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self(original.cell_contents, name)
            except ValueError:  # an empty cell
                continue
        return new

    def _rebuild(self, value: Any, name: str) -> Any:
        """Copy an object by the protocol of `pickle`, as `copy.deepcopy` does."""
        # A parametrized module refuses the protocol of `pickle`.
        parametrized = _is_parametrized(value)
        reduced = (copyreg.__newobj__, (type(value),), vars(value)) if parametrized else value.__reduce_ex__(4)  # type: ignore[attr-defined]
        if isinstance(reduced, str):
            return self._remember(value, value)
        self._originals.append(reduced)
        build, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if build is copyreg.__newobj__:  # type: ignore[attr-defined]
            new = arguments[0].__new__(arguments[0], *(self(one, name) for one in arguments[1:]))
        else:
            new = build(*(self(one, name) for one in arguments))
        self.memo[id(value)] = new
        if isinstance(value, nn.Module) and isinstance(state, dict):
            state = without_own_hooks(state)
            self._originals.append(state)
        if state is not None:
            self._set_state(new, self._state(state, name))
        for one in items or ():
            new.append(self(one, name))
        for key, one in pairs or ():
            new[self(key, name)] = self(one, f"{name}.{key}" if name else str(key))
        return new

    def _state(self, state: Any, name: str) -> Any:
        if type(state) is not dict:
            return self(state, name)
        inner = {"_parameters", "_buffers", "_modules"}
        return {
            key: self(one, name if key in inner else f"{name}.{key}" if name else key) for key, one in state.items()
        }

    @staticmethod
    def _set_state(new: Any, state: Any) -> None:
        if hasattr(new, "__setstate__"):
            new.__setstate__(state)
            return
        slots: Mapping[str, Any] = {}
        if isinstance(state, tuple) and len(state) == 2:
            state, slots = state
        if state:
            vars(new).update(state)
        for key, one in (slots or {}).items():
            setattr(new, key, one)


def without_own_hooks(state: dict[str, Any]) -> dict[str, Any]:
    """Return a module's state without the hooks of this package and of loggers, which would measure the copy."""
    hooked = {key for key in state if key.endswith("_hooks") and isinstance(state[key], dict)}
    kept = {key: type(state[key])((at, one) for at, one in state[key].items() if not is_own(one)) for key in hooked}
    return state | kept


def is_own(hook: Any) -> bool:
    """Return whether a hook was registered by this package or by a logger."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    return _starts_with(getattr(function, "__module__", None) or type(hook).__module__, _OWN_HOOKS)


def _is_parametrized(value: Any) -> bool:
    return isinstance(value, nn.Module) and is_parametrized(value)


def _belongs_to(kind: type, packages: Iterable[str]) -> bool:
    return _starts_with(kind.__module__, packages)


def _starts_with(module: str, packages: Iterable[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in packages)
