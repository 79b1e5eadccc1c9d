"""Training loops in each of several processes, which check every step against the run on one process.

Run by ``torchrun`` as ``worker.py KIND OUT``; each process writes what its monitor has found to ``OUT/<rank>.json``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Where it is first imported once a process group exists, its default arguments keep the group for ever.
import torch.distributed.nn.functional
from torch import Tensor, nn

from lightning_gradexplode import FabricWatch, GradientWatch
from tests.hosts.loops import batches, exact_norm, loss_of, network

STEPS = 6
MAX_NORM = 0.05


def reference() -> Iterator[float]:
    """Yield the float64 norm of each step, before clipping, of the same training on one process."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        yield exact_norm(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()


def watched_loop(
    model: Any,
    optimizer: Any,
    watch: GradientWatch,
    backward: Callable[[Tensor], None],
    clip: Callable[[], Any],
    no_sync: Callable[[], Any],
    accumulate: int = 2,
) -> list[float]:
    """Train on this process's share of each batch, in micro-batches; return the errors of the norms."""
    rank, world = dist.get_rank(), dist.get_world_size()
    errors = []
    for step, (batch, truth) in enumerate(zip(batches(STEPS), reference(), strict=True)):
        optimizer.zero_grad()
        parts = batch.chunk(world)[rank].chunk(accumulate)
        for index, part in enumerate(parts):
            with nullcontext() if index + 1 == accumulate else no_sync():
                loss = loss_of(model, part) / accumulate
                watch.loss(loss)
                backward(loss)
        clip()
        optimizer.step()
        assert watch.last is not None
        assert watch.last.grad_norm is not None
        assert watch.last.step == step
        errors.append(abs(watch.last.grad_norm - truth) / truth)
    return errors


def clipped_loop(model: Any, optimizer: Any, watch: GradientWatch, no_sync: Callable[[], Any]) -> list[float]:
    """Train with a loop that clips by norm; return the errors of the norms."""
    return watched_loop(
        model,
        optimizer,
        watch,
        lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        lambda: nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM),
        no_sync,
    )


def ddp(out: Path, **arguments: Any) -> tuple[GradientWatch, list[float]]:
    """Train with ``DistributedDataParallel``."""
    raw = network()
    model = nn.parallel.DistributedDataParallel(raw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = GradientWatch(model, optimizer, log_dir=out, log_every_n_steps=1, **arguments)
    return watch, clipped_loop(model, optimizer, watch, model.no_sync)


def sharded_network() -> Any:
    """Return the network with shards of its parameters on each process."""
    from torch.distributed.fsdp import fully_shard  # in torch 2.6 and later

    model: Any = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def fsdp2(out: Path, **arguments: Any) -> tuple[GradientWatch, list[float]]:
    """Train with ``fully_shard``."""
    model = sharded_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = GradientWatch(model, optimizer, log_dir=out, log_every_n_steps=1, **arguments)
    return watch, clipped_loop(model, optimizer, watch, nullcontext)


def fabric(out: Path, **arguments: Any) -> tuple[GradientWatch, list[float]]:
    """Train with Fabric's strategy for ``DistributedDataParallel``."""
    from lightning.fabric import Fabric

    nodes = int(os.environ.get("NUM_NODES", "1"))
    runs = Fabric(accelerator="cpu", strategy="ddp", devices=int(os.environ["LOCAL_WORLD_SIZE"]), num_nodes=nodes)
    runs.launch()
    raw = network()
    model, optimizer = runs.setup(raw, torch.optim.SGD(raw.parameters(), lr=0.05))
    watch = FabricWatch(runs, model, optimizer, log_dir=out, **arguments)
    errors = watched_loop(
        model,
        optimizer,
        watch,
        runs.backward,
        lambda: runs.clip_gradients(model, optimizer, max_norm=MAX_NORM),
        lambda: runs.no_backward_sync(model),
    )
    return watch, errors


def transformers(out: Path, **arguments: Any) -> tuple[Any, list[float]]:
    """Train with the Trainer of Hugging Face; the truth is that of hooks on the reduced gradients."""
    import transformers as hf

    from lightning_gradexplode import GradientExplosionTrainerCallback
    from tests.hosts.test_transformers import language_model, sentences

    model = language_model()
    monitor = GradientExplosionTrainerCallback(**arguments)
    truths: list[float] = []
    recorded: list[float] = []

    class Clipped(hf.Trainer):  # type: ignore[misc]
        def _clip_grad_norm(self, model: Any) -> Any:
            truths.append(exact_norm(model.parameters()))
            return super()._clip_grad_norm(model)

    class Reads(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert monitor.last is not None
            assert monitor.last.grad_norm is not None
            recorded.append(monitor.last.grad_norm)

    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_grad_norm": MAX_NORM, "max_steps": STEPS}
    args = hf.TrainingArguments(
        str(out), use_cpu=True, report_to=[], per_device_train_batch_size=2, logging_steps=1, disable_tqdm=True,
        **settings,
    )  # fmt: skip
    Clipped(model=model, args=args, train_dataset=sentences(64), callbacks=[monitor, Reads()]).train()
    return monitor, [abs(one - truth) / truth for one, truth in zip(recorded, truths, strict=True)]


def lightning(out: Path, **arguments: Any) -> tuple[Any, list[float]]:
    """Train with Lightning's own launcher, which was started once for each machine."""
    from pytorch_lightning import LightningModule, Trainer

    from lightning_gradexplode import GradientExplosionMonitor
    from lightning_gradexplode.testing import ExplodingRegression

    network: Any = type("Network", (ExplodingRegression, LightningModule), {})(0.1)
    monitor = GradientExplosionMonitor(**arguments)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", devices=1, num_nodes=2, strategy="ddp", default_root_dir=out, callbacks=[monitor],
        max_steps=STEPS, enable_model_summary=False, **quiet,
    )  # fmt: skip
    trainer.fit(network)
    assert trainer.world_size == 2
    assert monitor.last is not None
    assert monitor.last.step == STEPS - 1
    return monitor, [0.0]


def poisoned(out: Path, model: Any = None, **arguments: Any) -> tuple[GradientWatch, list[float]]:
    """Train where one process's batch has a NaN; all processes hold the same update back."""
    model = nn.parallel.DistributedDataParallel(network()) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = GradientWatch(model, optimizer, log_dir=out, on_explosion="skip")
    for step, batch in enumerate(batches(STEPS)):
        if step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            batch[2, 1] = float("nan")
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(bool(one.isfinite().all()) for one in model.parameters())
    return watch, []


def poisoned_shards(out: Path, **arguments: Any) -> tuple[GradientWatch, list[float]]:
    """Train in the same way with ``fully_shard``."""
    return poisoned(out, sharded_network())


def rooted(out: Path, **arguments: Any) -> tuple[GradientWatch, list[float]]:
    """Train with a root whose slope at one row of one process's batch is infinite, while each loss is finite."""

    def loss_of_root(model: nn.Module, batch: Tensor) -> Tensor:
        root: Tensor = (model(batch) * batch[:, :1]).abs().sqrt()
        return root.mean()

    model = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, log_dir=out, on_explosion="skip", step=loss_of_root)
    for step, batch in enumerate(batches(STEPS)):
        if step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            batch[5, 0] = 0.0
        optimizer.zero_grad()
        watch.batch(batch)
        loss = loss_of_root(model, batch)
        assert loss.isfinite()
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return watch, []


def run(kind: str, out: Path) -> None:
    """Run a loop and write what it was."""
    arguments = {} if kind in ("poisoned", "poisoned_shards", "rooted") else {"report": "always"}
    watch, errors = globals()[kind](out, **arguments)
    if isinstance(watch, GradientWatch):
        watch.close()
    diagnosis = watch.diagnosis()
    content = {
        "errors": errors,
        "failed": watch.failed,
        "findings": [[one.step, one.sign] for one in watch.findings],
        "diagnosis": None if diagnosis is None else diagnosis.as_dict(),
        "report": str(watch.report_folder) if watch.report_folder else None,
    }
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(content))
    dist.barrier()


def main(kinds: list[str], out: Path) -> None:
    """Run loops, one after the other, each with a folder of its own."""
    warnings.simplefilter("ignore")
    if kinds != ["lightning"]:
        dist.init_process_group("gloo")
    for kind in kinds:
        (out / kind).mkdir(exist_ok=True)
        run(kind, out / kind)
    # The threads of the group end with it only if nothing holds it, as a model does. If one of them released a tensor
    # of a collective while the interpreter ends, the process would be aborted.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))
