"""The time of several kernels for the norms of gradients: ``python -m benchmarks.norm_kernels``.

One kernel is timed after each backward pass, so that no other one has read the gradients into the processor's cache.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.overhead import processor
from benchmarks.overhead_models import Model, models
from benchmarks.overhead_timing import Timings
from lightning_gradexplode.measure.norm_plan import NormPlan
from lightning_gradexplode.measure.norms import measure_norms, start_norms

NORM = torch.linalg.vector_norm


class Kernels(pl.Callback):
    """Times one kernel a step.

    Args:
        timings: Where the seconds go.
        model: Whose gradients are measured.
    """

    def __init__(self, timings: Timings, model: Model) -> None:
        plan = NormPlan(list(model.parameters()))
        self.timings = timings
        self.kernels: dict[str, Callable[[list[Tensor]], Any]] = {
            "one read (aminmax)": lambda gradients: [torch.aminmax(one) for one in gradients],
            "ours, knowing the parameters": lambda gradients: start_norms(gradients, (), plan).norms(),
            "ours, knowing nothing": lambda gradients: measure_norms(gradients),
            "_foreach_norm in float32": lambda gradients: torch.stack(torch._foreach_norm(gradients)).numpy(),
            "vector_norm in float64": lambda gradients: torch.stack(
                [NORM(one, dtype=torch.float64) for one in gradients]
            ).numpy(),
        }

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Time the next kernel."""
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        name = list(self.kernels)[trainer.global_step % len(self.kernels)]
        self.timings.time(name, lambda: self.kernels[name](gradients))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    table = Table("median ms", *models())
    medians = []
    for build in models().values():
        timings, model = Timings(), build()
        pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[Kernels(timings, model)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, model.batches(arguments.steps))
        medians.append({name: f"{statistics.median(seconds) * 1e3:.2f}" for name, seconds in timings.items()})
    for name in medians[0]:
        table.add_row(name, *[one[name] for one in medians])
    console = Console(width=110)
    console.print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    main()
