"""A run that explodes within seconds, and the same one with clipping."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.testing import ExplodingRegression, RecordingLogger

STEPS = 60
LEARNING_RATE = 2.6
"""A little above the largest rate that converges."""


def run(folder: Path) -> Iterator[str]:
    """Train twice, and return lines that say how it went.

    Args:
        folder: Where the reports are written.
    """
    results = {}
    for name, clip in (("without clipping", None), ('clip="auto"', "auto")):
        yield f"{name}: {STEPS} steps at a learning rate of {LEARNING_RATE}"
        results[name] = _train(folder / name.split("=")[0].replace(" ", "-"), clip)
    rows = dict.fromkeys(row for result in results.values() for row in result)
    yield f"{'':26}" + "".join(f"{name:20}" for name in results)
    for row in rows:
        yield f"{row:26}" + "".join(f"{result[row]:20}" for result in results.values())
    pages = sorted(folder.rglob("index.html"))
    yield f"Report: {pages[0]}" if pages else "No report was written."


def _train(folder: Path, clip: Any) -> dict[str, str]:
    namespace = _namespace()
    network = type("Network", (ExplodingRegression, namespace.LightningModule), {})
    logger, monitor = RecordingLogger(), GradientExplosionMonitor(clip=clip, report=folder, log_every_n_steps=1)
    namespace.seed_everything(0, verbose=False)
    quiet = logging.getLogger(f"{namespace.__name__}.utilities.rank_zero")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = namespace.Trainer(
                max_steps=STEPS,
                logger=logger,
                callbacks=[monitor],
                accelerator="cpu",
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
            )
            trainer.fit(network(LEARNING_RATE))
    finally:
        quiet.setLevel(level)
    critical = [finding.step for finding in monitor.findings if finding.severity.name == "CRITICAL"]
    norms = [value for _, value in logger.values("gradexplode/grad_norm")]
    loss = monitor.last.loss if monitor.last is not None else None
    return {
        "first critical finding": f"step {critical[0]}" if critical else "none",
        "largest gradient norm": f"{max((one for one in norms if math.isfinite(one)), default=math.nan):.3g}",
        "last loss": "" if loss is None else f"{loss:.3g}",
    }


def _namespace() -> Any:
    """Return the namespace of Lightning that is installed."""
    try:
        return importlib.import_module("lightning.pytorch")
    except ModuleNotFoundError:
        return importlib.import_module("pytorch_lightning")
