"""The cost of a step by the number of parameters, tensors and processes: ``python -m benchmarks.overhead_plot FILE``.

Parameters and tensors: the monitor with its defaults, torch's ``clip_grad_norm_`` and one bare read of all gradients
are timed in turn in the same run, each the first to read the gradients of its step. Processes: the messages of so many
processes are made here and combined by one of them; what the network takes is not in it.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.overhead import CLIP, READ, SETTLED, TURNS, Others, fit, processor
from benchmarks.overhead_models import Model, transformer
from benchmarks.overhead_timing import TimedMonitor, Timings
from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.distributed.shard_layout import ShardLayout
from lightning_gradexplode.records import FloatArray

MONITOR = "monitor, defaults"
WIDTHS = (120, 200, 376)
"""Widths of transformers of 1, 3 and 10 million parameters, in 72 tensors."""
LAYERS = (8, 25, 80, 250)
"""Layers of two tensors with 32 x 32 weights."""
PROCESSES = (2, 4, 8, 16, 32, 64)
SHARDED = {"replicated parameters (DDP)": 0, "150 sharded parameters": 150, "1200 sharded parameters": 1200}


class Imitated:
    """A process group in which all processes send the same values as this one.

    Args:
        size: Number of processes.
    """

    device = torch.device("cpu")

    def __init__(self, size: int) -> None:
        self.size = size

    def gather(self, values: FloatArray) -> FloatArray:
        """Return the values repeated for each process."""
        return np.tile(values, (self.size, 1))

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Return the values repeated for each process."""
        return values.repeat(self.size)

    def leave(self, message: FloatArray) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def of_model(model: Model, steps: int) -> dict[str, float]:
    """Return the median of the milliseconds of a step of a model, by timed function."""
    timings = Timings()
    with tempfile.TemporaryDirectory() as folder:
        monitor = TimedMonitor(timings, MONITOR, turns=TURNS, log_every_n_steps=10)
        fit(model, steps, folder, [Others(timings, folder, rare=False), monitor])
    return {name: 1e3 * statistics.median(timings[name][SETTLED:]) for name in (MONITOR, CLIP, READ)}


def of_exchange(processes: int, parameters: int, turns: int = 200) -> float:
    """Return the median of milliseconds that packing, unpacking and combining the messages of a step take."""
    world = Imitated(processes)
    exchange, shards = StepExchange(world), ShardLayout(world, np.ones(parameters) if parameters else None)
    norms = torch.rand(parameters, dtype=torch.float64)
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        gathered = exchange.start(torch.tensor(0.5), 0, True, norms)
        shared = exchange.finish(gathered.numpy(), 0)
        if parameters:
            shards.finite_norms(shared.packed)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def draw(path: Path, panels: Sequence[tuple[str, Sequence[int], Mapping[str, Sequence[float]]]]) -> None:
    """Draw panels in a row, with logarithmic axes.

    Args:
        path: The file.
        panels: Of each what its horizontal axis is, the numbers there, and the milliseconds by what is done.
    """
    from matplotlib import pyplot

    figure, every = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), layout="constrained", squeeze=False)
    for axes, (label, numbers, costs) in zip(every[0], panels, strict=True):
        for name, cost in costs.items():
            axes.loglog(numbers, cost, marker="o", label=name)
        axes.set(xlabel=label, ylabel="ms per optimizer step (median)")
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def measured(models: Sequence[Model], steps: int) -> dict[str, list[float]]:
    """Return the milliseconds of several models, by timed function."""
    costs: dict[str, list[float]] = {}
    for model in models:
        for name, milliseconds in of_model(model, steps).items():
            costs.setdefault(name, []).append(milliseconds)
    return costs


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="where to draw to: .svg, .png or .pdf")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for namespace in ("pytorch_lightning", "lightning_gradexplode", "wandb"):
        logging.getLogger(namespace).setLevel(logging.ERROR)
    console = Console(width=140)
    console.print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}")
    wide = [transformer(width, length=1) for width in WIDTHS]
    deep = [Model([nn.Linear(32, 32) for _ in range(layers)], 32) for layers in LAYERS]
    panels = [
        ("parameters", [sum(map(Tensor.numel, model.parameters())) for model in wide], measured(wide, arguments.steps)),
        ("tensors of 32 x 32", [2 * layers for layers in LAYERS], measured(deep, arguments.steps)),
        (
            "processes, imitated, without the network",
            PROCESSES,
            {name: [of_exchange(size, count) for size in PROCESSES] for name, count in SHARDED.items()},
        ),
    ]
    for label, numbers, costs in panels:
        for name, cost in costs.items():
            row = ", ".join(f"{number}: {one:.3f}" for number, one in zip(numbers, cost, strict=True))
            console.print(f"{label}, {name}, ms: {row}")
    draw(arguments.file, panels)
    console.print(f"drawn to {arguments.file}")


if __name__ == "__main__":
    main()
