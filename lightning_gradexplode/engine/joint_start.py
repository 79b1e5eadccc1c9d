"""The start of a run on several processes: all of them start with the same arguments, or none does."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.process_group import Alone, ProcessFailedError, ProcessGroup
from lightning_gradexplode.distributed.shard_layout import is_sharded
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.respond import Warn


class DifferentProcessesError(ValueError):
    """Arguments that affect collectives or weights differ between processes."""


def allowed(arguments: Arguments, loop: TrainingLoop) -> Arguments:
    """Return the arguments without those that a process that cannot exchange data with the others must not use.

    Without an exchange, weights must not be changed, since other processes may hold copies of them: clip policy and
    responses are removed, which is logged.

    Raises:
        DifferentProcessesError: The process holds shards of parameters, whose norms need all processes.
    """
    world = loop.process_group
    if not isinstance(world, Alone) or world.reason is None:
        return arguments
    if any(map(is_sharded, loop.module.parameters())):
        raise DifferentProcessesError(f"{world.reason}, and each holds shards of the parameters only")
    changes = [name for name, is_set in (("clip", arguments.clip), ("on_explosion", arguments.acts)) if is_set]
    off = f", without {' and '.join(changes)}, since weights may have to stay equal" if changes else ""
    logger.warning("gradexplode: %s, so that this process measures its own gradients%s", world.reason, off)
    return replace(arguments, clip=None, responses=(Warn(),)) if changes else arguments


def begin_together(world: ProcessGroup, arguments: Arguments, error: Exception | None) -> None:
    """Raise an error on all processes if one of them has failed, or if their arguments differ; a collective call.

    Args:
        world: The processes of the run.
        arguments: The monitor's arguments on this process.
        error: The error of this process, None without one.

    Raises:
        ProcessFailedError: Another process has failed.
        DifferentProcessesError: The arguments differ between processes.
    """
    if world.size == 1:
        if error is not None:
            raise error
        return
    settings = _settings(arguments)
    numbers = [float(error is not None), *(zlib.crc32(repr(one).encode()) for one in settings.values())]
    gathered = world.gather(np.array(numbers, dtype=np.float64))
    if error is not None:
        raise error
    failed = np.flatnonzero(gathered[:, 0])
    if len(failed):
        raise ProcessFailedError(f"the monitor of rank {failed[0]} has failed")
    differ = [name for name, each in zip(settings, gathered[:, 1:].T, strict=True) if (each != each[0]).any()]
    if differ:
        raise DifferentProcessesError(
            f"{' and '.join(differ)} must be the same on all processes, but differ between them"
        )


def _settings(arguments: Arguments) -> dict[str, Any]:
    """Return the settings that must be the same on all processes, by the name of the argument."""
    return {
        "detectors": sorted(one.sign for one in arguments.detectors),
        "clip": type(arguments.clip).__name__,
        "on_explosion": [type(one).__name__ for one in arguments.responses],
        "diagnose": arguments.diagnose,
    }
