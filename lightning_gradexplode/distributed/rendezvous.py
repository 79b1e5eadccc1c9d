"""Which processes measure together, agreed on once, before the first collective.

A collective of the monitor may only be called if all processes call it. Whether they will is not known at first: a
script may add a monitor on rank 0 only, or train another model on each process. The processes therefore register in
the store by which ``torch.distributed`` has connected them, and the first one that has the outcome writes it there.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from lightning_gradexplode.distributed.process_group import ALONE, Alone, ConnectedProcesses, Processes
from lightning_gradexplode.distributed.shard_layout import ranks_of_shards
from lightning_gradexplode.records.log import logger

MAX_SECONDS = 120.0
"""Time to wait for the monitors of the other processes, whose loggers or data may take long to begin."""

SECONDS_AFTER_ONE_ALONE = 10.0
"""The same after a monitor for which others did not come."""

SECONDS_TO_LOG = 8.0
"""Time after which that wait is logged."""

EXCHANGE_SECONDS = 300.0
"""Time to wait in an exchange for a process that computes the same steps: half of torch's default for NCCL.

A process that has left a step out may wait in a collective of the training for the one that waits for it, and that
must not end first, since it ends the run.
"""

INDEPENDENT_SECONDS = 120.0
"""The same where the processes may train independently of one another, so that some may take no more steps."""

_TOGETHER = "together"
_OTHER_MODELS = "the models of the processes differ"


def join(module: nn.Module, device: torch.device, group: Any = None, reduces: bool = True) -> Alone | Processes:
    """Return the processes with which this one measures; waits for them, at most `MAX_SECONDS`.

    Args:
        module: The network that is trained.
        device: Device of its gradients.
        group: The process group that trains it, None for all processes.
        reduces: Whether the gradients are known to be reduced over the processes within the backward pass, or sharded.
    """
    distributed: Any = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    try:
        return _join(module, device, group, reduces)
    except RuntimeError as error:  # such as that of a store that is gone
        reason = f"the monitors of the processes could not be connected ({str(error)[:80]})"
        return Alone(reason, distributed.get_rank())


def _join(module: nn.Module, device: torch.device, group: Any, reduces: bool) -> Alone | Processes:
    distributed: Any = torch.distributed
    members = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    if group is None:
        members = ranks_of_shards(module) or members
    size, rank = len(members), members.index(distributed.get_rank())
    if size == 1:
        return ALONE
    store = _default_store()
    if store is None:  # such as with MPI
        return Processes(size, device, group, members[0])
    model = fingerprint(module, with_weights=not reduces)
    common = distributed.PrefixStore(f"gradexplode/{zlib.crc32(repr(members).encode())}", store)
    own, seconds = _current(distributed.PrefixStore(model if reduces else "any", common), rank)
    # Where processes need one another, no other one waits for what they may not have.
    common.add("needed", reduces)
    reason = meet(own, size, model, seconds, lambda: not reduces and common.add("needed", 0) > 0)
    common.add("needed", -reduces)
    if reason is not None:
        return Alone(reason, members[rank])
    if (reduces and device.type != "cpu") or not distributed.is_gloo_available():
        if group is None and size < distributed.get_world_size():
            group = distributed.new_group(members, use_local_synchronization=True)
        return Processes(size, device, group, members[0])
    seconds = EXCHANGE_SECONDS if reduces else INDEPENDENT_SECONDS
    store = distributed.PrefixStore("connections", own)
    backend = distributed.ProcessGroupGloo(store, rank, size, timedelta(seconds=seconds))
    return ConnectedProcesses(size, backend, members[0], seconds)


def _current(store: Any, rank: int) -> tuple[Any, float]:
    """Return the store of the rendezvous that a process comes to, and for how long it may wait there for the others.

    It is the latest one, unless that is over. After one to which some did not come, the wait is short.

    Args:
        store: The store of all rendezvous.
        rank: Rank of the process.
    """
    number = int(store.compare_set("number", "", "1").decode())
    latest = torch.distributed.PrefixStore(str(number), store)  # type: ignore[attr-defined]
    outcome = latest.get("outcome").decode() if latest.check(["outcome"]) else ""
    if outcome and (outcome != _OTHER_MODELS or latest.check([f"rank {rank}"])):
        number = int(store.compare_set("number", str(number), str(number + 1)).decode())
        latest = torch.distributed.PrefixStore(str(number), store)  # type: ignore[attr-defined]
    latest.set(f"rank {rank}", "")
    return latest, MAX_SECONDS if outcome in ("", _TOGETHER) else min(SECONDS_AFTER_ONE_ALONE, MAX_SECONDS)


def meet(
    store: Any,
    size: int,
    model: str,
    seconds: float,
    gives_up: Callable[[], bool] = lambda: False,
) -> str | None:
    """Return why the processes do not measure together, None if they do; the same on all that call this, ever.

    Args:
        store: A store in which nothing else is kept.
        size: Number of processes.
        model: What is equal on processes that train the same model.
        seconds: Time to wait for the others.
        gives_up: Returns whether to wait no longer.
    """
    if store.compare_set("model", "", model).decode() != model:
        store.compare_set("outcome", "", _OTHER_MODELS)
    present, began, is_logged = store.add("present", 1), time.monotonic(), False
    pause = 0.002
    while present < size and not store.check(["outcome"]):
        waited = time.monotonic() - began
        if waited > seconds or gives_up():
            break
        if waited > SECONDS_TO_LOG and not is_logged:
            is_logged = True
            logger.warning(WAITING, size - present, seconds - waited)
        time.sleep(pause)
        pause = min(1.5 * pause, 0.1)
        present = store.add("present", 0)
    outcome = _TOGETHER if present == size else f"{size - present} of {size} processes have no monitor"
    decided: str = store.compare_set("outcome", "", outcome).decode()
    return None if decided == _TOGETHER else decided


WAITING = (
    "gradexplode: the monitor waits for those of %d other processes; each process has to construct one, with the same "
    "arguments; it begins without them in %.0f s"
)


def fingerprint(module: nn.Module, with_weights: bool) -> str:
    """Return a number that differs between networks of other parameters.

    Args:
        module: The network.
        with_weights: Whether it differs between networks of other weights, too.
    """
    digest = 0
    for name, parameter in module.named_parameters():
        is_lazy = nn.parameter.is_lazy(parameter)
        digest = zlib.crc32(repr((name, "lazy" if is_lazy else tuple(parameter.shape))).encode(), digest)
        if with_weights and not is_lazy and not parameter.is_meta:
            digest = zlib.crc32(repr(parameter.detach().reshape(-1)[:8].tolist()).encode(), digest)
    return str(digest)


def _default_store() -> Any:
    """Return the store by which the processes have found each other; None if it is not known.

    ``torch.distributed`` has no public way to it.
    """
    find = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    return None if find is None else find()
