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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_gradexplode.diagnose.replay.copies.left_out import (
    BLOCKING,
    LOGGERS,
    SHARED_PACKAGES,
    is_from,
    without_hooks,
)
from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped, Silent, Unavailable
from lightning_gradexplode.diagnose.replay.copies.tensor_copies import TensorCopies

LARGE = 10_000
"""A container of more elements is copied alone, and its elements are shared."""

_ATOMIC = (int, float, complex, str, bytes, type(None), range, slice, type(Ellipsis), type(NotImplemented))
_SHARED = (type, types.ModuleType, types.CodeType, torch.dtype, torch.device, torch.Size, torch.layout)
_DATA = (Dataset, DataLoader)
_LOCKS = ("lock", "RLock")
_GENERATORS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
"""Dictionaries whose own copies hold keys or values of the original."""


class StructuralCopy:
    """Copies objects with everything they hold, so that nothing done to the copy reaches the original.

    Tensors are cloned, and enter detached, while they fit the budget; above it they are shared. Containers, modules,
    objects, bound methods and the variables that functions close over are rebuilt. Data sets, tables and locks are
    shared. Loggers and files become objects that do nothing. Iterators, queues and threads, and what else cannot be
    copied, become objects whose use ends the replay.

    Args:
        tensor_bytes: Budget for clones of tensors and arrays.
        deadline: Time (of ``time.perf_counter``) at which copying is given up.

    Attributes:
        memo: Copies by ``id`` of the original, as in `copy.deepcopy`; what is put there first replaces an object.
        notes: What was detached, shared or dropped, in one sentence each.
        tensors: The clones of tensors.
        modules: The modules that were built.
    """

    def __init__(self, tensor_bytes: int, deadline: float = float("inf")) -> None:
        self.memo: dict[int, Any] = {}
        self.notes: list[str] = []
        self.tensors = TensorCopies(tensor_bytes, self.notes)
        self.modules: list[nn.Module] = []
        self._deadline = deadline
        self._originals: list[Any] = []  # kept alive, so that no other object gets one of their ids

    def replace(self, original: object, new: object) -> None:
        """Use an object in place of another one wherever that is found."""
        self._originals.append(original)
        self.memo[id(original)] = new

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
        is_atomic = isinstance(value, _ATOMIC) and kind.__module__ == "builtins"
        if is_atomic or isinstance(value, _SHARED) or kind.__name__ in _LOCKS:
            return value
        if time.perf_counter() > self._deadline:
            raise ReplayStopped("copying what the module holds takes too long")
        self._originals.append(value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._copy(value, kind, name)
        except Exception as error:
            place = name or kind.__name__
            stop = Unavailable(f"the step uses {place} ({kind.__name__}), which cannot be copied: {error}")
            return self._replaced(value, stop, f"{place} ({kind.__name__}) cannot be copied: {error}")

    def _copy(self, value: Any, kind: type, name: str) -> Any:
        """Copy one object; the order of the cases matters."""
        place = name or kind.__name__
        if isinstance(value, nn.Module):
            return self._module(value, name)
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray):
            return self._remember(value, self.tensors.array(value, name))
        if kind in (list, set, deque, tuple, frozenset, dict):
            return self._container(value, kind, name)
        if isinstance(value, types.FunctionType):
            return self._function(value, name)
        if isinstance(value, types.MethodType):
            return self._remember(value, types.MethodType(value.__func__, self(value.__self__, name)))
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            mutable = isinstance(owner, (list, dict, set, deque))
            return getattr(self(owner, name), value.__name__) if mutable else value
        if isinstance(value, functools.partial):
            arguments, keywords = self(value.args, name), self(value.keywords, name)
            return self._remember(value, kind(self(value.func, name), *arguments, **keywords))
        if isinstance(value, weakref.ref):
            target = value()
            return self._remember(value, value if target is None else weakref.ref(self(target, name)))
        if isinstance(value, _WEAK):
            new = self._remember(value, type(value)())
            new.update({self(key, name): self(one, name) for key, one in list(value.items())})
            return new
        if isinstance(value, torch.Generator):
            return self._remember(value, torch.Generator(value.device).set_state(value.get_state()))
        if isinstance(value, (logging.Logger, logging.Handler)) or is_from(kind.__module__, LOGGERS):
            return self._replaced(value, Silent(), f"{place} does nothing in it: it writes logs")
        if isinstance(value, io.IOBase) and not isinstance(value, (io.StringIO, io.BytesIO)):
            return self._replaced(value, Silent(), f"{place} does nothing in it: it is a file")
        if isinstance(value, _DATA) or is_from(kind.__module__, SHARED_PACKAGES):
            return self._replaced(value, value, f"{place} is shared with the run: it holds data")
        if any(is_from(one.__module__, BLOCKING) for one in kind.__mro__):
            raise TypeError("it belongs to several threads or processes")
        is_iterator = hasattr(value, "__next__") and kind.__module__ in ("builtins", "itertools")
        if is_iterator or isinstance(value, _GENERATORS):
            raise TypeError("it is an iterator")
        own = getattr(kind, "__deepcopy__", None)
        return self._remember(value, own(value, self.memo)) if own is not None else self._rebuild(value, name)

    def _remember(self, value: Any, new: Any) -> Any:
        self.memo[id(value)] = new
        return new

    def _replaced(self, value: Any, new: Any, note: str) -> Any:
        self.notes.append(f"{note}.")
        return self._remember(value, new)

    def _tensor(self, value: Tensor, name: str) -> Tensor:
        new = self.memo[id(value)] = self.tensors.tensor(value, name)
        for attribute, one in getattr(value, "__dict__", {}).items():
            setattr(new, attribute, self(one, f"{name}.{attribute}"))
        return new

    def _container(self, value: Any, kind: Any, name: str) -> Any:
        is_large = len(value) > LARGE
        if is_large:
            self.notes.append(f"The {len(value)} elements of {name or 'a container'} are shared with the run.")
        if kind in (tuple, frozenset):
            return self.memo.setdefault(id(value), value if is_large else kind(self(one, name) for one in value))
        new: Any = deque(maxlen=value.maxlen) if kind is deque else kind()
        self.memo[id(value)] = new
        if kind is dict:
            for key, one in list(value.items()):
                new[self(key)] = one if is_large else self(one, f"{name}.{key}" if name else str(key))
            return new
        add = new.add if kind is set else new.append
        for one in list(value):
            add(one if is_large else self(one, name))
        return new

    def _function(self, value: types.FunctionType, name: str) -> Any:
        """Rebuild a function around copies of what it closes over, such as a hook that appends to a list."""
        plain = getattr(value, "_torchdynamo_orig_callable", None)
        if plain is not None:
            return self._remember(value, self(plain, name))
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

    def _module(self, value: nn.Module, name: str) -> Any:
        kind = type(value)
        own = set() if nn.utils.parametrize.is_parametrized(value) else _overridden(kind)
        if "__deepcopy__" in own:
            return self._remember(value, kind.__deepcopy__(value, self.memo))  # type: ignore[attr-defined]
        state = value.__getstate__() if "__getstate__" in own else vars(value)  # type: ignore[no-untyped-call]
        kept = without_hooks(state) if isinstance(state, dict) else state
        self._originals.append((state, kept))
        new: Any = kind.__new__(kind)
        self.memo[id(value)] = new
        self.modules.append(new)
        copied = self._state(kept, name)
        if "__setstate__" in own:
            new.__setstate__(copied)
        else:
            vars(new).update(copied)
        return new

    def _rebuild(self, value: Any, name: str) -> Any:
        """Copy an object by the protocol of `pickle`, as `copy.deepcopy` does."""
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return self._remember(value, value)
        self._originals.append(reduced)
        build, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        is_plain = build is copyreg.__newobj__  # type: ignore[attr-defined]
        copied = [self(one, name) for one in arguments]
        new = self.memo[id(value)] = arguments[0].__new__(*copied) if is_plain else build(*copied)
        if state is not None:
            _set_state(new, self._state(state, name))
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


def _set_state(new: Any, state: Any) -> None:
    if hasattr(new, "__setstate__"):
        new.__setstate__(state)
        return
    plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if plain:
        vars(new).update(plain)
    for key, one in (slots or {}).items():
        setattr(new, key, one)


def _overridden(kind: type) -> set[str]:
    """Return the names that a class of modules defines itself, not by `torch.nn.Module` or a LightningModule."""
    plain = {"Module", "LightningModule", "object"}
    return {name for one in kind.__mro__ if one.__name__ not in plain for name in vars(one)}
