"""Unusual training loops, one after the other, in one of several processes, which compares each step with the truth.

Run as ``odd_worker.py OUT NAME...`` with the variables of ``torchrun`` set. The monitor is made to believe that all
tensors lie on an accelerator, so that the processes exchange there and numbers arrive late.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Where it is first imported once a process group exists, its default arguments keep the group for ever.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradexplode import GradientWatch, ZScoreClip
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records import StepRecord

STEPS = 6


def network() -> nn.Sequential:
    """Build a network whose shards come out uneven."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Linear(3, 1))


class Tied(nn.Module):
    """Two layers share their weights, and one is used on the first process only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.rare = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, values: Tensor) -> Tensor:
        """Use them."""
        result: Tensor = self.second(self.first(values))
        return result + self.rare(values) if dist.get_rank() == 0 else result


def true_norm(module: nn.Module) -> float:
    """Return the norm of all gradients in float64, of whole ones where they are sharded; a collective."""
    gradients: list[Any] = [one.grad for one in module.parameters() if one.grad is not None]
    wholes = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in gradients]
    return float(sum(float(one.double().square().sum()) for one in wholes) ** 0.5)


def norm_of(record: StepRecord | None) -> dict[int, float]:
    """Return the norm of a record by the number of its step."""
    return {} if record is None or record.grad_norm is None else {record.step: record.grad_norm}


def trained(
    module: Any,
    inner: nn.Module,
    accumulate: int = 1,
    scale: float = 1.0,
    steps: int = STEPS,
    before_step: Callable[[], Any] = lambda: None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train for a few steps, on batches of different sizes, and return the errors of the norms of all steps.

    On devices, `last` is the step before until the processes have agreed on a step in the exchange of the next one.
    """
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    watch = GradientWatch(module, optimizer, report=False, log_every_n_steps=0, diagnose=False, **arguments)
    dtype = next(inner.parameters()).dtype
    truths: list[float] = []
    norms: dict[int, float] = {}
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            torch.manual_seed(100 * step + 10 * part + dist.get_rank())
            with nullcontext() if part == accumulate - 1 else module.no_sync():
                loss = module(scale * torch.randn(3 + 2 * dist.get_rank(), 4, dtype=dtype)).square().mean()
                watch.loss(loss)
                loss.backward()
        truths.append(true_norm(inner))
        before_step()
        optimizer.step()
        watch.state_dict()  # reads the numbers of the step
        norms |= norm_of(watch.last)
    watch.close()
    norms |= norm_of(watch.last)
    errors = [abs(norms[step] - truth) / max(truth, 1e-9) for step, truth in enumerate(truths)]
    return {"errors": errors, "failed": watch.failed}


def sharded(module: Any, mesh: Any = None) -> Any:
    """Shard a network."""
    from torch.distributed.fsdp import fully_shard

    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def accumulated() -> dict[str, Any]:
    """Accumulate over three micro-batches without synchronization, with tied and rarely used weights."""
    inner = Tied()
    return trained(DistributedDataParallel(inner, find_unused_parameters=True), inner, accumulate=3, clip=0.1)


def moved() -> dict[str, Any]:
    """Replace data and gradient of a parameter in the middle of the run, as a move between devices does."""
    inner = network()

    def move() -> None:
        weight = next(inner.parameters())
        assert weight.grad is not None
        weight.data, weight.grad = weight.data.clone(), weight.grad.clone()

    return trained(DistributedDataParallel(inner), inner, before_step=move)


def clipped_by_the_loop() -> dict[str, Any]:
    """Shards that the loop clips itself."""
    module = sharded(network())
    return trained(module, module, before_step=lambda: nn.utils.clip_grad_norm_(module.parameters(), 0.01))


def partly_frozen() -> dict[str, Any]:
    """Shards of which some get no gradient, clipped on the device."""
    module = network()
    module[0].requires_grad_(False)
    return trained(sharded(module), module, clip=ZScoreClip(0.5, warmup=2))


def made_on_meta() -> dict[str, Any]:
    """Shards that got their memory after they were made."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1))
    sharded(module).to_empty(device="cpu")
    for layer in module:
        layer.reset_parameters()  # type: ignore[operator]
    return trained(module, module)


def zero_in_double() -> dict[str, Any]:
    """Shards in float64, one of which gets a gradient of zero."""
    module = sharded(network().double())
    return trained(module, module, scale=0.0)


def hybrid() -> dict[str, Any]:
    """Replicas of shards, clipped on the device."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    module = sharded(network(), mesh)
    return trained(module, module, clip=0.05)


def joined() -> dict[str, Any]:
    """Train with fewer batches on the first process."""
    inner = network()
    module = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    watch = GradientWatch(module, optimizer, report=False)
    with module.join():
        for _ in range(2 + 2 * dist.get_rank()):
            optimizer.zero_grad()
            loss = module(torch.randn(2, 4)).square().mean()
            watch.loss(loss)
            loss.backward()
            optimizer.step()
    watch.close()
    return {"errors": [], "failed": watch.failed}


def differing() -> dict[str, Any]:
    """Train with a response on the second process only; the monitor is off, and no process waits for another one."""
    module = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    response = "skip" if dist.get_rank() else "warn"
    watch = GradientWatch(module, optimizer, report=False, on_explosion=response)
    for _ in range(2):
        loss = module(torch.randn(2, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
    watch.close()
    return {"errors": [], "failed": watch.last is not None or not watch.failed}


def averaged() -> dict[str, Any]:
    """Train with gradients that the loop itself averages, which is logged, once, on the first process."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lightning_gradexplode").addHandler(handler)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    watch = GradientWatch(module, optimizer, report=False)
    for _ in range(2):
        loss = module(torch.randn(2, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        for one in module.parameters():
            dist.all_reduce(one.grad)
        optimizer.step()
    watch.close()
    is_said = sum("averages gradients" in line for line in said) == (dist.get_rank() == 0)
    return {"errors": [], "failed": watch.failed or not is_said}


def grouped() -> dict[str, Any]:
    """Train a network in each half of the processes, for longer in the second half."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = dist.get_rank() // 2
    inner = network()
    return trained(DistributedDataParallel(inner, process_group=halves[half]), inner, steps=STEPS + half)


def run_each(out: Path, names: list[str], loops: dict[str, Any]) -> None:
    """Run the loops, and write what was found."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: loops[name]() for name in names}
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    gc.collect()  # a group that nothing holds ends its threads here, and not while the interpreter ends
    dist.destroy_process_group()


if __name__ == "__main__":
    reading.is_on_host = lambda tensor: False  # type: ignore[assignment]
    run_each(Path(sys.argv[1]), sys.argv[2:], globals())
