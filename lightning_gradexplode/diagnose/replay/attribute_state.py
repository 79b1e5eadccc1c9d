"""Numbers and random generators that a module holds, as they were before a step."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

_NUMBERS = frozenset({int, float, bool})
_OTHERS = frozenset({str, dict, list, tuple, set, OrderedDict, type(None), torch.dtype, torch.device})
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


class AttributeState:
    """The attributes of a module by which its next step may differ from the last one, such as a counter.

    Containers and objects of the user's own are not recorded: a replay has them as the step has left them.

    Args:
        module: The module.
        everything: Whether the modules inside of it are recorded too (1 microsecond each).
    """

    def __init__(self, module: nn.Module, *, everything: bool) -> None:
        self._numbers: list[tuple[nn.Module, dict[str, Any]]] = []
        self._generators: list[tuple[Any, Any]] = []
        for part in module.modules() if everything else (module,):
            numbers: dict[str, Any] = {}
            self._numbers.append((part, numbers))
            for name, one in vars(part).items():
                if type(one) in _NUMBERS:
                    numbers[name] = one
                elif type(one) not in _OTHERS and isinstance(one, _GENERATORS):
                    self._generators.append((one, _state(one)))

    @property
    def is_unchanged(self) -> bool:
        """Whether the module still holds the same numbers."""
        return all(vars(part).get(name) == one for part, numbers in self._numbers for name, one in numbers.items())

    def restore(self, copies: Mapping[int, Any]) -> None:
        """Set the attributes of a copy.

        Args:
            copies: What each object was copied to, by its ``id``.
        """
        for part, numbers in self._numbers:
            if id(part) in copies:
                values = vars(copies[id(part)])
                values.update({name: one for name, one in numbers.items() if type(values.get(name)) in _NUMBERS})
        for generator, state in self._generators:
            if id(generator) in copies:
                _set_state(copies[id(generator)], state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    kind = type(generator)
    return generator.getstate() if issubclass(kind, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
