"""The usual ranges of a run's batches, from samples of some of them."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_gradexplode.measure.batch_fields import MAX_FIELDS, batch_size, fields_of
from lightning_gradexplode.measure.field_totals import TOTALS, Totals, sample, totals
from lightning_gradexplode.measure.reading import PendingRead, is_on_host

REMEMBERED = 64
"""Number of sampled batches of which standard deviations and sizes are kept."""
RECENT = 8
"""The last sampled batches, which may be the ones at fault, can be left out of what is usual."""


@dataclass(frozen=True, slots=True)
class UsualField:
    """What was usual of a field in earlier batches.

    Args:
        least: The least finite element, infinity if there is none.
        greatest: The greatest finite element, minus infinity if there is none.
        stds: Standard deviations of the last batches; empty if none had a finite element.
        batches: Number of batches.
        nonfinite_batches: Number of those with NaN or infinite elements.
    """

    least: float
    greatest: float
    stds: tuple[float, ...]
    batches: int
    nonfinite_batches: int

    @property
    def is_nonfinite(self) -> bool:
        """Whether most batches held NaN or infinite elements."""
        return 2 * self.nonfinite_batches > self.batches

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.least), abs(self.greatest))

    @property
    def std(self) -> float:
        """The median of the standard deviations."""
        return statistics.median(self.stds)


@dataclass(frozen=True, slots=True)
class UsualBatch:
    """What was usual of earlier batches.

    Args:
        fields: By the field's name.
        size: Number of rows of most batches, None if unknown.
    """

    fields: Mapping[str, UsualField] = field(default_factory=dict)
    size: int | None = None


class UsualRanges:
    """Samples batches of a run and keeps the ranges of their fields, in memory of a fixed size.

    Numbers on an accelerator are copied to the host without waiting for it, and are read at a later step.
    """

    def __init__(self) -> None:
        self._recent: deque[_Sample] = deque()
        self._fields: dict[str, UsualField] = {}
        self._sizes: deque[int] = deque(maxlen=REMEMBERED)

    def sample(self, batch: Any, step: int) -> None:
        """Sample a batch.

        Args:
            batch: A batch of any kind, see `lightning_gradexplode.measure.batch_fields.fields_of`.
            step: Its step.
        """
        if len(self._recent) == RECENT:
            self._fields, sizes = _with(self._fields, [self._recent.popleft()])
            self._sizes.extend(sizes)
        self._recent.append(_Sample(batch, step))

    def before(self, step: int) -> UsualBatch:
        """Return what was usual of the sampled batches before a step, so that a bad batch is no part of it.

        Batches that are older than the last 8 sampled ones are part of it in any case.
        """
        found, sizes = _with(self._fields, [one for one in self._recent if one.step < step])
        counts = Counter([*self._sizes, *sizes])
        return UsualBatch(found, counts.most_common(1)[0][0] if counts else None)

    def discard(self, step: int) -> None:
        """Discard the samples of a step and of later ones, as far as they are among the last 8, after an incident."""
        self._recent = deque(one for one in self._recent if one.step < step)


class _Sample:
    """Numbers of a sampled batch that may still be on their way from an accelerator."""

    def __init__(self, batch: Any, step: int) -> None:
        self.step = step
        fields = fields_of(batch)
        self.size = batch_size(fields)
        self._counts: dict[str, int] = {}
        numbers: list[Tensor] = []
        for one in fields:
            with suppress(RuntimeError, NotImplementedError, TypeError):  # some types have no such operations
                values = sample(one)
                if values is not None and not values.is_meta:
                    numbers.append(totals(values))
                    self._counts[one.name] = values.numel()
        # Apart, since numbers of the host would have to be copied to the accelerator, which waits for it.
        self._on_host = [is_on_host(one) for one in numbers]
        self._reads = [PendingRead([one for one in numbers if is_on_host(one) is on_host]) for on_host in (False, True)]

    def totals(self) -> dict[str, Totals]:
        """Return the totals of each field, waiting for them where they are not there yet."""
        read = [iter(one.values().reshape(-1, TOTALS)) for one in self._reads]
        return {
            name: Totals.of(count, next(read[on_host]))
            for (name, count), on_host in zip(self._counts.items(), self._on_host, strict=True)
        }


def _with(usual: Mapping[str, UsualField], samples: list[_Sample]) -> tuple[dict[str, UsualField], list[int]]:
    """Return what is usual with some more samples, and the sizes of their batches."""
    fields = dict(usual)
    for one in samples:
        for name, found in one.totals().items():
            old = fields.get(name)
            if old is None and len(fields) >= MAX_FIELDS:
                continue
            is_nonfinite = found.count < found.elements
            stds = (*(old.stds if old else ()), *(() if found.std is None else (found.std,)))
            fields[name] = UsualField(
                min(found.least, old.least if old else found.least),
                max(found.greatest, old.greatest if old else found.greatest),
                stds[-REMEMBERED:],
                (old.batches if old else 0) + 1,
                (old.nonfinite_batches if old else 0) + is_nonfinite,
            )
    return fields, [one.size for one in samples if one.size is not None]
