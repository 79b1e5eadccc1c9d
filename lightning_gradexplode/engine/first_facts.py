"""The facts about a run, collected with its first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.process_group import Alone
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.batch_facts import with_first_batch
from lightning_gradexplode.measure.run_facts import collect_run_facts
from lightning_gradexplode.records import RunFacts


def first_facts(loop: TrainingLoop, arguments: Arguments, states: Sequence[OptimizerState], batch: Any) -> RunFacts:
    """Return the facts about a run; if they cannot be collected, this is logged, and none are known.

    Args:
        loop: The training loop.
        arguments: The monitor's arguments.
        states: The optimizers.
        batch: The first batch.
    """
    value, algorithm = loop.clip_setting
    scale, adapts = loop.loss_scale()
    world = loop.process_group
    settings = {
        "scaler": "none" if scale is None else "adaptive" if adapts else "static",
        "processes": world.size,
        "has_unknown_processes": isinstance(world, Alone) and world.reason is not None,
        "batches_per_epoch": loop.batches_per_epoch,
        "accumulate": loop.micro_batches,
        "automatic": loop.is_automatic,
        "clip_val": value,
        "clip_algorithm": algorithm,
        "clip_policy": arguments.clip_name,
        "on_explosion": tuple(type(one).__name__ for one in arguments.responses if not one.only_warns),
        "first_step": loop.step,
        "is_resumed": loop.step > loop.first_step,
        **loop.settings(),
    }
    optimizers = [state.optimizer for state in states]
    facts = collect_or_log(
        "the facts of the run",
        lambda: with_first_batch(collect_run_facts(loop.module, optimizers, settings), batch),
    )
    return RunFacts() if facts is None else facts
