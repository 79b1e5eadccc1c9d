"""Batches of unusual kinds, and what is recorded of them."""

from __future__ import annotations

import math
from collections import Counter, UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gradexplode.measure.batch_facts import collect_batch_facts
from lightning_gradexplode.records import FieldFacts

NAN, INF = math.nan, math.inf


Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Detection:
    """A dataclass with a dictionary in it."""

    image: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)


class Slotted:
    """A container without a dictionary and without methods."""

    __slots__ = ("name", "x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y, self.name = x, y, "one"


class Graph:
    """A graph as libraries keep it: tensors behind a private attribute, and a method `to`."""

    def __init__(self, **tensors: Any) -> None:
        self._store = tensors

    def to(self, device: str) -> Graph:
        return self


class Graphs:
    """Several graphs in one, as libraries keep them: with numbers and slices in further private attributes."""

    def __init__(self, **tensors: Any) -> None:
        self._store = UserDict(tensors)
        self._num_graphs = 2
        self._slices = {"x": torch.tensor([0, 2, 4])}

    def to(self, device: str) -> Graphs:
        return self


class Image(Tensor):
    """A tensor class of a library."""


class Encoding(UserDict[str, Any]):
    """A tokenizer's output: a mapping that is no dict."""


ONES = torch.ones(4, 2)


def fields_by_name(batch: Any) -> dict[str, FieldFacts]:
    """Collect the facts of a batch's fields."""
    return {one.name: one for one in collect_batch_facts(batch).fields}


def only(batch: Any) -> FieldFacts:
    """Collect the facts of a batch's only field."""
    (found,) = collect_batch_facts(batch).fields
    return found


def truth_of(values: list[float]) -> dict[str, Any]:
    """Work out what is recorded of some elements, in plain Python."""
    finite = [value for value in values if math.isfinite(value)]
    mean = math.fsum(finite) / len(finite) if finite else None
    return {
        "nan_count": sum(map(math.isnan, values)),
        "inf_count": sum(map(math.isinf, values)),
        "least": min(finite, default=None),
        "greatest": max(finite, default=None),
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / len(finite))
        if mean is not None
        else None,
        "is_integral": bool(finite) and all(value == round(value) for value in finite),
    }


def assert_facts_of(found: FieldFacts, values: list[float]) -> None:
    """Compare the facts of a field with the truth about its elements."""
    for name, expected in truth_of(values).items():
        actual = getattr(found, name)
        if expected is None or isinstance(expected, (int, bool)):
            assert actual == expected, name
        else:
            scale = max(map(abs, (value for value in values if math.isfinite(value))), default=0.0)
            tolerance = 0.0 if name in ("least", "greatest") else 1e-6 * scale
            assert actual == pytest.approx(expected, rel=1e-6, abs=tolerance), name
    if found.is_integral and values:
        counts = Counter(value for value in values if math.isfinite(value))
        most = max(counts.values())
        assert found.most_common_share == pytest.approx(most / len(values))
        assert found.most_common is not None
        assert counts[found.most_common] == most
