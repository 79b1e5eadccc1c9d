"""Training of a case, and its outcome, which is measured independently of the monitor."""

from __future__ import annotations

import importlib
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer, seed_everything

from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.loops import train_in_loop
from benchmarks.diagnosis.probe import Probe, has_finite_weights
from benchmarks.scenarios.recording import RecordedStep, Recording
from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records.diagnosis import Diagnosis

for _name in ("replay", "experiments.experiments"):
    # Replays have more time than in a run, so that the results do not depend on the load of the machine.
    vars(importlib.import_module(f"lightning_gradexplode.diagnose.replay.{_name}"))["SECONDS"] = 120.0


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome of one run.

    Args:
        score: How bad the trained module is, NaN if its weights are not finite.
        fault: The first batch with a loss, gradient or weight that is not finite, None if there was none.
        losses: The loss of each backward pass.
        norms: L2 norm of the gradients of each optimizer step, before any clipping.
        seconds: Wall-clock time of the training.
    """

    score: float
    fault: int | None
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    seconds: float

    def is_good(self, case: type[Case]) -> bool:
        """Return whether the module is trained as well as the case expects of a cured run."""
        return self.score <= case.good

    def failed(self, case: type[Case]) -> bool:
        """Return whether a value was not finite during the run, or the trained module is bad."""
        return self.fault is not None or not self.is_good(case)


def prepare(case: type[Case], changes: dict[str, Any]) -> Case:
    """Build a case with settings, from its seed."""
    torch.set_num_threads(1)
    seed_everything(case.seed, verbose=False)
    return case(**changes)


def train(module: Case, callbacks: Sequence[Callback] = (), **options: Any) -> Ending:
    """Train a case as it is, without the monitor unless it is among the callbacks.

    Args:
        module: The case.
        callbacks: Called before the probe.
        options: Arguments of the Trainer that replace the case's own.
    """
    return _train(module, callbacks, None, options)[0]


def train_monitored(
    module: Case,
    callbacks: Sequence[Callback] = (),
    log_every_n_steps: int = 1,
    reads_late: bool = False,
    **monitor: Any,
) -> tuple[Ending, Diagnosis | None]:
    """Train a case under the monitor, in the loop that the case names.

    Args:
        module: The case.
        callbacks: Called before the monitor.
        log_every_n_steps: Interval at which Lightning's Trainer logs; other loops log at the monitor's default.
        reads_late: Whether the monitor treats tensors as if they were on an accelerator, whose numbers arrive after the
            update.
        monitor: Arguments of the monitor.
    """
    with _reading_late() if reads_late else nullcontext():
        return _train(module, callbacks, {"report": False, **monitor}, {"log_every_n_steps": log_every_n_steps})


@contextmanager
def _reading_late() -> Iterator[None]:
    is_on_host = reading.is_on_host
    vars(reading)["is_on_host"] = lambda tensor: False
    try:
        yield
    finally:
        vars(reading)["is_on_host"] = is_on_host


def train_recorded(module: Case) -> tuple[Ending, list[RecordedStep]]:
    """Train a case, and return all that can be measured of its optimizer steps."""
    recording = Recording()
    ending, _ = _train(module, (), {**recording.arguments, "diagnose": False}, {"log_every_n_steps": 1})
    return ending, recording.steps


def _train(
    module: Case, callbacks: Sequence[Callback], monitor: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[Ending, Diagnosis | None]:
    probe = Probe()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        if module.host == "lightning":
            own = None if monitor is None else GradientExplosionMonitor(**monitor)
            _fit(module, [*callbacks, *([] if own is None else [own]), probe], options)
            diagnosis = None if own is None else own.diagnosis()
        else:
            diagnosis = train_in_loop(module, callbacks, monitor, probe)
        seconds = time.perf_counter() - begin
        module.eval()
        with torch.no_grad():
            score = module.score() if has_finite_weights(module) else math.nan
    return Ending(score, probe.fault, tuple(probe.losses), tuple(probe.norms), seconds), diagnosis


def _fit(module: Case, callbacks: Sequence[Callback], options: Mapping[str, Any]) -> None:
    trainer = Trainer(
        **{
            "max_steps": module.steps,
            "max_epochs": -1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **module.options,
            **options,
            "callbacks": callbacks,
        }
    )
    trainer.fit(module, module.loader())
