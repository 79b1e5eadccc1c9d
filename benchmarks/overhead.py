"""The time that the monitor adds to an optimizer step: ``python -m benchmarks.overhead`` prints three tables.

Functions that only read the gradients are timed in one run, in turn, each right after the backward pass. Clipping
changes the run, so that it is timed in separate runs, and so are whole steps. Times differ between machines and change
within minutes; compare the ratios to torch's ``clip_grad_norm_``. ``--sizes`` draws the cost against the number of
parameters, and ``--device cuda`` measures on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.utilities import grad_norm
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from wandb.integration.torch.wandb_torch import TorchHistory

from benchmarks import overhead_cuda
from benchmarks.overhead_models import Model, models, transformer
from benchmarks.overhead_timing import TimedClipping, TimedMonitor, Timings, WholeSteps
from lightning_gradexplode import GradientExplosionMonitor

SIZES = (120, 200, 376, 640, 1184)
"""Widths of transformers of 1, 3, 10, 30 and 100 million parameters."""
LARGE_STEPS = 45
"""Steps of the largest of them, each of which takes a second; of the others in proportion to their widths."""
CLIP, READ = "clip_grad_norm_", "one read (aminmax)"
DEFAULTS, OFTEN = "monitor, defaults (log every 50th)", "monitor, log every 10th"
HISTOGRAMS = "monitor, histograms at every step"
TURNS = 3
"""Number of functions of which one is timed at each step: the monitor, one pass over the gradients, the clip."""
SETTLED = 8
"""Turns after which the monitor looks at the weights no more often than in a long run."""
RARE = 15
"""What takes long is timed at every fifteenth step, after the bare read."""


class Others(pl.Callback):
    """Other functions of gradients, timed right before the optimizer's step; none of them changes the gradients.

    Whoever reads the gradients first pays for bringing them into the processor's cache. So at each step only one is
    timed, the first to read them, in turn; at every third step that is the monitor.

    Args:
        timings: Where the seconds go.
        folder: Where the summary writer writes to.
        rare: Whether to time what takes long as well.
    """

    def __init__(self, timings: Timings, folder: str, rare: bool = True) -> None:
        self.timings = timings
        self.rare = rare
        self.writer = SummaryWriter(folder)
        self.watch = TorchHistory()  # type: ignore[no-untyped-call]

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Call the function that is due at this step."""
        parameters = list(module.parameters())
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        step = trainer.global_step
        if step % TURNS == 1:
            self.timings.time(READ, lambda: [torch.aminmax(one) for one in gradients.values()])
        elif step % TURNS == 2:
            self.timings.time(CLIP, lambda: nn.utils.clip_grad_norm_(parameters, 1e9))
        if self.rare and step % RARE == 1:
            self.timings.time("grad_norm() + log_dict", lambda: module.log_dict(grad_norm(module, norm_type=2)))
            self.timings.time("SummaryWriter.add_histogram", lambda: self._histograms(gradients, step))
            self.timings.time("wandb.watch(log_freq=1)", lambda: self._watch(gradients))

    def _histograms(self, gradients: dict[str, torch.Tensor], step: int) -> None:
        for name, gradient in gradients.items():
            self.writer.add_histogram(name, gradient, step)

    def _watch(self, gradients: dict[str, torch.Tensor]) -> None:
        """Call the hooks of ``wandb.watch`` as in the backward pass, offline."""
        for name, gradient in gradients.items():
            self.watch.log_tensor_stats(gradient, f"gradients/{name}")  # type: ignore[no-untyped-call]
        assert wandb.run is not None
        wandb.run.log({})


def fit(model: Model, steps: int, folder: str, callbacks: list[pl.Callback], **trainer: Any) -> None:
    """Train a model for some steps, with a TensorBoard logger."""
    gc.collect()  # what was imported so far is looked through once, and not in the middle of what is timed
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=callbacks,
        logger=pl.loggers.TensorBoardLogger(folder),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(model, model.batches(steps))


def measure(model: Model, steps: int) -> Timings:
    """Train a model in several runs, and return all times."""
    timings = Timings()
    with tempfile.TemporaryDirectory() as folder:
        wandb.init(mode="offline", dir=folder, project="overhead")
        run = Timings()
        fit(model, steps, folder, [Others(run, folder), TimedMonitor(run, OFTEN, turns=TURNS, log_every_n_steps=10)])
        timings.merge(run)
        run = Timings()
        monitor = TimedMonitor(run, DEFAULTS, turns=TURNS, log_every_n_steps=50)
        fit(model, 2 * steps, folder, [Others(run, folder, rare=False), monitor])
        timings.merge(run)
        wandb.finish()
        for name, callbacks, clip in (
            ("whole step, no callback", [], None),
            ("whole step, Trainer(gradient_clip_val=1.0)", [], 1.0),
            ("whole step, monitor with defaults", [GradientExplosionMonitor(report=False, log_every_n_steps=50)], None),
        ):
            run = Timings()
            fit(model, steps // 2, folder, [*callbacks, WholeSteps(run, name)], gradient_clip_val=clip)
            timings.merge(run)
        run = Timings()
        every = {"log_every_n_steps": 1, "histogram_every_n_steps": 1}
        fit(model, steps // 4, folder, [TimedMonitor(run, HISTOGRAMS, **every)])
        timings.merge(run)
        for binds, value in (("binds", 1e-3), ("does not bind", 1e9)):
            for _ in range(2):
                run, hooks = Timings(), Timings()
                name = f"Trainer(gradient_clip_val=...), {binds}"
                fit(model, steps // 2, folder, [TimedClipping(run, name)], gradient_clip_val=value)
                monitor = TimedMonitor(hooks, "hooks", log_every_n_steps=10, clip=value)
                name = f"monitor, defaults, clip=..., {binds}"
                fit(model, steps // 2, folder, [monitor, TimedClipping(run, name, monitor)])
                timings.merge(run)
    return timings


def show(name: str, model: Model, timings: Timings, console: Console) -> None:
    """Print one model's table."""
    tensors = list(model.parameters())
    size = sum(tensor.numel() for tensor in tensors) / 1e6
    table = Table("per optimizer step", title=f"{name}: {size:.2f}M parameters in {len(tensors)} tensors")
    for column in ("median ms", "mean ms", "median / clip", "mean / clip"):
        table.add_column(column, justify="right")
    clip = timings[CLIP]
    for what, seconds in timings.items():
        middle, mean = statistics.median(seconds), statistics.fmean(seconds)
        table.add_row(
            what,
            f"{middle * 1e3:.3f}",
            f"{mean * 1e3:.3f}",
            f"{middle / statistics.median(clip):.2f}",
            f"{mean / statistics.fmean(clip):.2f}",
        )
    console.print(table)


def draw_sizes(steps: int, path: Path, console: Console) -> None:
    """Measure transformers of 1 to 100 million parameters, and draw the cost of a step against their size."""
    from matplotlib import pyplot

    sizes, costs = [], dict[str, list[float]]()
    for width in SIZES:
        timings, model = Timings(), transformer(width, length=1)
        with tempfile.TemporaryDirectory() as folder:
            monitor = TimedMonitor(timings, "monitor, defaults", turns=TURNS, log_every_n_steps=10)
            fit(
                model,
                min(steps, LARGE_STEPS * SIZES[-1] // width),
                folder,
                [Others(timings, folder, rare=False), monitor],
            )
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        for name, seconds in timings.items():
            costs.setdefault(name, []).append(statistics.median(seconds[SETTLED:]) * 1e3)
        row = ", ".join(f"{name} {cost[-1]:.2f} ms" for name, cost in costs.items())
        console.print(f"{sizes[-1] / 1e6:.1f}M parameters: {row}")
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, cost in costs.items():
        axes.loglog(sizes, cost, marker="o", label=name)
    axes.set(xlabel="parameters", ylabel="ms per optimizer step (median)")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)
    console.print(f"drawn to {path}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", nargs="*", default=list(models()), choices=list(models()))
    parser.add_argument("--sizes", type=Path, metavar="FILE", help="draw the cost against the size of the model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a GPU, and torch finds none")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for namespace in ("pytorch_lightning", "lightning_gradexplode", "wandb"):
        logging.getLogger(namespace).setLevel(logging.ERROR)
    console = Console(width=110)
    if arguments.device == "cuda":
        overhead_cuda.measure(console)
        return
    console.print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}")
    if arguments.sizes:
        draw_sizes(min(arguments.steps, 90), arguments.sizes, console)
        return
    for name in arguments.models:
        model = models()[name]()
        show(name, model, measure(model, arguments.steps), console)


def processor() -> str:
    """Return the name of the machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
