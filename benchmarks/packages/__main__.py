"""Train with packages that are installed, and print what the monitor finds: ``python -m benchmarks.packages``.

``pip install chemprop darts datasets diffusers gluonts gpytorch opacus pytorch-forecasting pytorch-ignite
pytorch-optimizer schedulefree scvi-tools sentence-transformers skorch stable-baselines3 torch_geometric torchdiffeq
transformers`` installs all of them. Names of trainings as arguments: only these, for example ``Closures``.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from benchmarks.packages import engines, forecasts, loops, optimizers, science
from benchmarks.packages.training import Training, digest
from lightning_gradexplode import Severity

TRAININGS: tuple[type[Training], ...] = (
    forecasts.NBeats,
    forecasts.TemporalConvolutions,
    forecasts.Lstm,
    forecasts.Transformer,
    forecasts.DeepAr,
    forecasts.TemporalFusion,
    forecasts.NBeatsOfForecasting,
    science.MessagePassing,
    science.CellCounts,
    science.GraphConvolutions,
    loops.LanguageModel,
    loops.Diffusion,
    loops.Ppo,
    loops.Dqn,
    science.VariationalProcess,
    science.Adjoint,
    engines.Closures,
    engines.Accumulation,
    engines.SentencePairs,
    optimizers.SharpnessAware,
    optimizers.ScheduleFree,
    optimizers.PrivateGradients,
)


def row(training: Training, fault: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return what the monitor tells of a training with a fault."""
    trained = training.run(fault, is_monitored=True)
    diagnosis = trained.monitor.diagnosis()
    cause = None if diagnosis is None else diagnosis.causes[0]
    first = "no diagnosis" if cause is None else f"{cause.kind} ({cause.confidence:.0%})"
    result = "right" if cause is not None and cause.kind in kinds else "unknown" if "unknown" in first else "wrong"
    return training.name, fault, result if cause is not None else "none", first, (diagnosis and diagnosis.where) or ""


def healthy_row(training: Training) -> tuple[str, ...]:
    """Return whether a training without a fault is the same with the monitor, and what that finds."""
    plain, monitored = training.run("", is_monitored=False), training.run("", is_monitored=True)
    same = "bit-identical" if digest(plain.module) == digest(monitored.module) else "DIFFERENT"
    found = [one for one in monitored.monitor.findings if one.severity >= Severity.WARNING]
    return training.name, "", same, ", ".join(f"{one.severity.name} {one.sign}" for one in found), ""


def main(names: Sequence[str] = ()) -> None:
    """Train all, or those with the given names, and print a table."""
    table = Table("Training", "Fault", "Result", "First cause, or findings without a fault", "Where")
    for kind in [one for one in TRAININGS if not names or one.__name__ in names]:
        training = kind()
        try:
            version(training.package)
        except PackageNotFoundError:
            table.add_row(training.name, "", "not installed", "", "")
            continue
        table.add_row(*healthy_row(training))
        for fault, kinds in training.all_faults().items():
            table.add_row(*row(training, fault, kinds))
    Console(width=160).print(table)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # some packages write checkpoints to the current folder
        main(sys.argv[1:])
        os.chdir(tempfile.gettempdir())
