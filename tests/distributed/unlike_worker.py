"""Training loops that are unlike on the processes, or whose gradients are, in one of several processes.

Run as ``unlike_worker.py OUT NAME...`` with the variables of ``torchrun`` set.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.distributed import rendezvous
from lightning_gradexplode.measure import gradients
from tests.distributed.odd_worker import network, run_each, sharded, true_norm

Found = dict[str, Any]


class InfiniteSlope(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the values."""
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return infinity."""
        return gradient * torch.inf


class Lines(logging.Handler):
    """Collects what the monitor logs while it is attached."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> Lines:
        logging.getLogger("lightning_gradexplode").addHandler(self)
        return self

    def __exit__(self, *args: object) -> None:
        logging.getLogger("lightning_gradexplode").removeHandler(self)


def batch(step: int, rank: int | None = None) -> Tensor:
    """Return the batch of a step, another one on each process."""
    torch.manual_seed(100 * step + (dist.get_rank() if rank is None else rank))
    return torch.randn(3, 4)


def weights(module: nn.Module) -> list[float]:
    """Return all weights, of whole tensors where they are sharded; a collective then."""
    held: list[Any] = list(module.parameters())
    wholes = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in held]
    return [number for one in wholes for number in one.detach().flatten().tolist()]


def all_have(value: Any) -> bool:
    """Return whether all processes have the same value; a collective."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return all(repr(one) == repr(value) for one in values)


def train(
    module: Any,
    inner: nn.Module | None = None,
    steps: int = 6,
    loss_of: Callable[[int], Tensor] | None = None,
    watched: bool = True,
    optimizer: Any = None,
    after: Callable[[int, GradientWatch | None], Any] = lambda step, watch: None,
    **arguments: Any,
) -> tuple[GradientWatch | None, list[float]]:
    """Train for a few steps, and return the monitor and the relative errors of its norms, where they are finite."""
    inner = module if inner is None else inner
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01) if optimizer is None else optimizer
    settings = {"report": False, "log_every_n_steps": 1, "diagnose": False, **arguments}
    watch = GradientWatch(module, optimizer, **settings) if watched else None
    errors: list[float] = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = module(batch(step)).square().mean() if loss_of is None else loss_of(step)
        if watch is not None:
            watch.loss(loss)
        loss.backward()
        truth = true_norm(inner)
        optimizer.step()
        if watch is not None and not watch.failed and truth < torch.inf:
            norm = None if watch.last is None else watch.last.grad_norm
            errors.append(abs((norm or 0.0) - truth) / truth)
        after(step, watch)
    if watch is not None:
        watch.close()
    return watch, errors


def found(watch: GradientWatch | None, errors: list[float], *problems: bool) -> Found:
    """Return the errors, and whether the monitor has failed or there are other problems."""
    return {"errors": errors, "failed": any(problems) or (watch is not None and watch.failed)}


def without_monitor() -> list[float]:
    """Return the weights after the same steps without a monitor."""
    inner = network()
    train(DistributedDataParallel(inner), inner, watched=False)
    return weights(inner)


def on_the_first_process_only() -> Found:
    """A monitor that would clip and skip, on the first process only, changes no weight, and logs why."""
    inner = network()
    with Lines() as log:
        is_first = dist.get_rank() == 0
        result = train(DistributedDataParallel(inner), inner, watched=is_first, clip=1e-3, on_explosion="skip")
    is_logged = any("1 of 2 processes have no monitor" in one and "without clip" in one for one in log.lines)
    return found(*result, is_logged != is_first, weights(inner) != without_monitor())


def lost_on_the_process_without() -> Found:
    """The loss of the second process is NaN, of which the monitor of the first one knows nothing: no cause is named."""
    inner = network()
    module = DistributedDataParallel(inner)

    def loss_of(step: int) -> Tensor:
        loss = module(batch(step)).square().mean()
        return torch.as_tensor(loss * torch.nan if (step, dist.get_rank()) == (3, 1) else loss)

    watch, errors = train(module, inner, loss_of=loss_of, watched=dist.get_rank() == 0, diagnose=True)
    diagnosis = None if watch is None else watch.diagnosis()
    kinds = [] if diagnosis is None else [one.kind for one in diagnosis.causes]
    return found(watch, errors, watch is not None and kinds != ["unknown"])


def on_the_second_process_only() -> Found:
    """A monitor on the second process only."""
    inner = network()
    result = train(DistributedDataParallel(inner), inner, watched=dist.get_rank() == 1)
    return found(*result, weights(inner) != without_monitor())


def one_more_on_the_first_process() -> Found:
    """The first process trains a network of its own before the one that both train, which skip the same step."""
    if dist.get_rank() == 0:
        train(nn.Linear(4, 1), steps=2)
    inner = network()
    module = DistributedDataParallel(inner)

    def loss_of(step: int) -> Tensor:
        loss = module(batch(step)).square().mean()
        return torch.as_tensor(loss * torch.nan if (step, dist.get_rank()) == (3, 1) else loss)

    result = train(module, inner, loss_of=loss_of, on_explosion="skip")
    end = weights(inner)
    return found(*result, not all_have(end), end[0] != end[0])


def alone_and_later_together() -> Found:
    """A monitor on the first process only, and later on both, which agree again."""
    inner = network()
    train(DistributedDataParallel(inner), inner, steps=1, watched=dist.get_rank() == 0)
    inner = network()
    module = DistributedDataParallel(inner)

    def loss_of(step: int) -> Tensor:
        loss = module(batch(step)).square().mean()
        return torch.as_tensor(loss * torch.nan if (step, dist.get_rank()) == (3, 1) else loss)

    result = train(module, inner, loss_of=loss_of, on_explosion="skip")
    end = weights(inner)
    return found(*result, not all_have(end), end[0] != end[0])


def begun_in_another_order() -> Found:
    """Two networks with a monitor each, which the second process constructs in the other order."""
    networks = [nn.Linear(4, 1), nn.Linear(4, 2)]
    modules = [DistributedDataParallel(one) for one in networks]
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.01) for one in modules]
    places = [0, 1] if dist.get_rank() == 0 else [1, 0]
    watches = {place: GradientWatch(modules[place], optimizers[place], report=False) for place in places}
    errors = []
    for step in range(3):
        for place in (0, 1):
            optimizers[place].zero_grad()
            loss = modules[place](batch(step)).square().mean()
            watches[place].loss(loss)
            loss.backward()
            truth = true_norm(networks[place])
            optimizers[place].step()
            last = watches[place].last
            errors.append(abs((0.0 if last is None else last.grad_norm or 0.0) - truth) / truth)
    for watch in watches.values():
        watch.close()
    return {"errors": errors, "failed": any(watch.failed for watch in watches.values())}


def left_out_where_the_loss_is_nan() -> Found:
    """The second process leaves out a step, and its next backward pass waits for the first one, which made it."""
    module = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    with Lines() as log, GradientWatch(module, optimizer, report=False) as watch:
        for step in range(5):
            optimizer.zero_grad()
            values = batch(step)
            if step == 2 and dist.get_rank() == 1:
                values[0, 0] = torch.nan
            loss = module(values).square().mean()
            watch.loss(loss)
            loss.backward()
            if torch.isfinite(loss):
                optimizer.step()
            losses.append(loss)
        is_off = watch.failed
    is_said = any("rank 1 leaves out the optimizer step of its batch 2, with a loss of nan" in one for one in log.lines)
    return found(None, [], not is_off, not is_said, len(losses) != 5)


def left_out_on_all_processes() -> Found:
    """A step that all processes leave out is none, and those after it are measured."""
    module = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    norms = []
    with GradientWatch(module, optimizer, report=False) as watch:
        for step in range(5):
            optimizer.zero_grad()
            loss = module(batch(step)).square().mean()
            watch.loss(loss)
            loss.backward()
            if step != 2:
                optimizer.step()
                norms.append(None if watch.last is None else watch.last.grad_norm)
    return found(watch, [], len(set(norms)) != 4)


def broken_at_once() -> Found:
    """The first measurement of shards fails on one process; the monitor of both is off, and both train on."""
    module = sharded(network())
    patch = pytest.MonkeyPatch()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on purpose")

    if dist.get_rank() == 1:
        patch.setattr(gradients.GradientReading, "take", fail)
    watch, _ = train(module, on_explosion="skip")
    patch.undo()
    return found(None, [], watch is None or not watch.failed)


def not_closed() -> Found:
    """A process whose monitor is not closed waits for the others, which wait for it no longer than a limit."""
    rendezvous.INDEPENDENT_SECONDS = 2.0
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    watch = GradientWatch(module, optimizer, report=False)
    for step in range(2 + 2 * dist.get_rank()):
        loss = module(batch(step)).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
    dist.barrier()
    watch.close()
    return found(None, [], watch.failed != (dist.get_rank() == 1))


def independent() -> Found:
    """Each process trains a network of its own, for another number of steps."""
    rank = dist.get_rank()
    module = nn.Sequential(nn.Linear(4, 5 + rank), nn.Linear(5 + rank, 1))
    return found(*train(module, steps=3 + 3 * rank))


def independent_and_alike() -> Found:
    """Networks that begin alike: the process with more steps goes on without the monitor once the other one ends."""
    watch, errors = train(network(), steps=3 + 3 * dist.get_rank())
    return found(None, errors, watch is None or watch.failed != (dist.get_rank() == 1))


def staged() -> Found:
    """Each process trains another part of a network, through which they send activations and gradients."""
    stage = nn.Linear(4, 5) if dist.get_rank() == 0 else nn.Linear(5, 1)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.01)
    watch = GradientWatch(stage, optimizer, report=False, on_explosion="skip", log_every_n_steps=1)
    errors = []
    for step in range(4):
        optimizer.zero_grad()
        middle = stage(batch(step)) if dist.get_rank() == 0 else torch.zeros(3, 5)
        gradient = torch.zeros(3, 5)
        if dist.get_rank() == 0:
            dist.send(middle.detach(), 1)
            dist.recv(gradient, 1)
            middle.backward(gradient)
        else:
            dist.recv(middle, 0)
            loss = stage(middle.requires_grad_()).square().mean()
            watch.loss(loss)
            loss.backward()
            assert middle.grad is not None
            dist.send(middle.grad, 0)
        truth = true_norm(stage)
        optimizer.step()
        watch.state_dict()
        assert watch.last is not None
        errors.append(abs((watch.last.grad_norm or 0.0) - truth) / truth)
    watch.close()
    return found(watch, errors)


def closed_early() -> Found:
    """The second process closes its monitor in mid-run; the first one's is off then, and both train on."""
    inner = network()

    def close(step: int, watch: GradientWatch | None) -> None:
        if watch is not None and step == 2 and dist.get_rank() == 1:
            watch.close()

    train(DistributedDataParallel(inner), inner, after=close)
    return found(None, [], weights(inner) != without_monitor())


def averaged_seldom() -> Found:
    """Local SGD: each process has gradients of its own, and those of one are infinite once; all skip that step."""
    from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as hook

    inner = network()
    module = DistributedDataParallel(inner)
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    own: Any = groups[dist.get_rank()]
    state: Any = hook.PostLocalSGDState(None, own, 1)  # type: ignore[no-untyped-call]
    module.register_comm_hook(state, hook.post_localSGD_hook)

    def loss_of(step: int) -> Tensor:
        result = module(batch(step))
        if (step, dist.get_rank()) == (4, 1):
            result = InfiniteSlope.apply(result)  # type: ignore[no-untyped-call]
        return torch.as_tensor(result.square().mean())

    watch, errors = train(module, inner, steps=7, loss_of=loss_of, on_explosion="skip")
    assert watch is not None
    is_skipped = watch.last is not None and watch.last.skipped_steps == 1
    return found(watch, [one for one in errors if one == one], not is_skipped)


def tensor_parallel() -> Found:
    """Some layers are sharded over the processes, others are whole; clipped as the whole network."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    module = network()
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(module, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    result = train(module, loss_of=lambda step: module(batch(step, rank=0)).square().mean(), clip=0.05)
    whole = network()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.01)
    for step in range(6):
        optimizer.zero_grad()
        whole(batch(step, rank=0)).square().mean().backward()
        nn.utils.clip_grad_norm_(whole.parameters(), 0.05)
        optimizer.step()
    differs = max(abs(one - other) for one, other in zip(weights(module), weights(whole), strict=True)) > 1e-6
    return found(*result, differs)


def sharded_in_halves() -> Found:
    """Each half of the processes trains another network in shards, for another number of steps."""
    from torch.distributed.device_mesh import init_device_mesh

    half = dist.get_rank() // 2
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("half", "shard"))
    module = sharded(nn.Sequential(nn.Linear(4, 5 + half), nn.Linear(5 + half, 1)), mesh["shard"])
    return found(*train(module, steps=3 + half, on_explosion="skip"))


def compressed() -> Found:
    """A communication hook that compresses gradients: the norm is that of what the optimizer gets."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    inner = network()
    module = DistributedDataParallel(inner)
    module.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return found(*train(module, inner, on_explosion="skip"))


def shared_optimizer() -> Found:
    """Each process updates a part of the weights and sends it to the others, also around a step that is skipped."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    inner = network()
    module = DistributedDataParallel(inner)
    optimizer: Any = ZeroRedundancyOptimizer(module.parameters(), torch.optim.Adam, lr=0.01)

    def loss_of(step: int) -> Tensor:
        loss = module(batch(step)).square().mean()
        return torch.as_tensor(loss * torch.nan if (step, dist.get_rank()) == (3, 1) else loss)

    result = train(module, inner, loss_of=loss_of, optimizer=optimizer, on_explosion="skip")
    end = weights(inner)
    return found(*result, not all_have(end), end[0] != end[0])


if __name__ == "__main__":
    rendezvous.MAX_SECONDS = 5.0
    run_each(Path(sys.argv[1]), sys.argv[2:], globals())
