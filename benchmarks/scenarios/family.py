"""What a family of runs is: a builder of training set-ups, and what is known of them beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pytorch_lightning.plugins import MixedPrecision

from benchmarks.scenarios.module import ScenarioModule


@dataclass(frozen=True, slots=True)
class Setup:
    """All that is needed to train one run.

    Args:
        module: What is trained.
        batches: The batches of the run, in order.
        trainer: Arguments of the trainer.
    """

    module: ScenarioModule
    batches: Sequence[Any]
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of runs, of which every seed gives one.

    Args:
        name: Name of the function that builds it.
        story: What happens in it, in one sentence.
        expected: What it is built to do; the label of a run is its outcome and nothing else.
        kind: The kind of training it belongs to; figures are reported for kinds that were left out while constants were
            chosen.
        build: Return the set-up for a seed; the global random state is seeded before.
        begins: The step at which the trouble is planted. Before it a run is healthy, and an alarm is a false one.
        where: Name of the module that the trouble is planted in, None if it is in no single one.
    """

    name: str
    story: str
    expected: Literal["explodes", "healthy"]
    kind: str
    build: Callable[[int], Setup]
    begins: int = 0
    where: str | None = None


def exploding(kind: str, *, begins: int = 0, where: str | None = None) -> Callable[[Callable[[int], Setup]], Family]:
    """Return a decorator for a family that is built to explode; see `Family` for the arguments."""

    def decorate(build: Callable[[int], Setup]) -> Family:
        return Family(build.__name__, build.__doc__ or "", "explodes", kind, build, begins, where)

    return decorate


def healthy(kind: str) -> Callable[[Callable[[int], Setup]], Family]:
    """Return a decorator for a family that is built to stay healthy, and to look as if it did not."""

    def decorate(build: Callable[[int], Setup]) -> Family:
        return Family(build.__name__, build.__doc__ or "", "healthy", kind, build)

    return decorate


def half_precision(scale: float, adapts: bool) -> MixedPrecision:
    """Return float16 with a gradient scaler, which lowers its scale at an overflow or does not."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    if not adapts:
        scaler._backoff_factor = 1.0  # its constructor refuses what amounts to a fixed scale
    return MixedPrecision("16-mixed", "cpu", scaler)
