"""How often the detectors call a loss diverging that only wanders: ``python -m benchmarks.wandering``.

Synthetic series of losses and gradient norms without an explosion, judged as those of a run with weights that do not
change much. `DivergingLoss.wander` was chosen on series of the first three kinds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.diagnosis.__main__ import print_table
from lightning_gradexplode import Finding, Severity, StepRecord, default_detectors
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import FloatArray

STEPS = 1500

_TIME = np.arange(STEPS)

Series = Callable[[np.random.Generator], tuple[FloatArray, FloatArray]]


def correlated(random: np.random.Generator, noise: FloatArray | None = None, correlation: float = 0.98) -> FloatArray:
    """Return numbers of variance one that are correlated from step to step.

    Args:
        random: The source of the noise.
        noise: Other noise of variance one, shape ``(STEPS,)``; None is normal noise.
        correlation: The correlation of two numbers that are one step apart.
    """
    noise = random.standard_normal(STEPS) if noise is None else noise
    values = np.zeros(STEPS)
    for step in range(1, STEPS):
        values[step] = correlation * values[step - 1] + math.sqrt(1 - correlation**2) * noise[step]
    return values


def _follows(random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    loss = correlated(random)
    return loss, np.exp(1.2 * loss)


def _noise(random: np.random.Generator, spread: float = 0.2) -> FloatArray:
    factors: FloatArray = np.exp(spread * random.standard_normal(STEPS))
    return factors


SERIES: dict[str, Series] = {
    "correlation 0.98, gradients vary tenfold": lambda r: (correlated(r), np.exp(correlated(r))),
    "correlation 0.98, gradients follow the loss": _follows,
    "correlation 0.98, heavy tails": lambda r: (
        correlated(r, r.standard_t(3, STEPS) / math.sqrt(3)),
        np.exp(correlated(r)),
    ),
    "random walk": lambda r: (np.cumsum(0.1 * r.standard_normal(STEPS)), np.exp(correlated(r))),
    "no correlation, heavy tails": lambda r: (r.standard_t(2, STEPS), np.exp(r.standard_t(3, STEPS))),
    "restarts": lambda r: (
        0.2 + 2 * np.exp(-(_TIME % 300) / 8) + 0.02 * r.standard_normal(STEPS),
        np.where(_TIME % 300 < 20, 4.5, 1.0) * _noise(r, 0.3),
    ),
    "curriculum": lambda r: (
        0.5 * (1 + 0.0015 * _TIME) + 0.05 * r.standard_normal(STEPS),
        (1 + 0.004 * _TIME) * _noise(r, 0.3),
    ),
    "new data, gradients 15 times as large": lambda r: (
        np.where(_TIME < 500, 1, 3) + 0.1 * r.standard_normal(STEPS),
        np.where(_TIME < 500, 1, 15) * _noise(r),
    ),
    "weight of the loss raised a hundredfold": lambda r: (
        np.where(_TIME < 500, 1, 100) * (0.5 * _noise(r)),
        np.where(_TIME < 500, 1, 100) * _noise(r, 0.3),
    ),
    "period that starts at its minimum": lambda r: (
        1.2 - np.cos(_TIME / 100) + 0.05 * r.standard_normal(STEPS),
        np.exp(-1.3 * np.cos(_TIME / 100)) * _noise(r),
    ),
}


def findings(losses: FloatArray, norms: FloatArray) -> list[Finding]:
    """Return what the default detectors find in a series."""
    detectors, found = DetectorSet(default_detectors()), list[Finding]()
    for step, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True)):
        each = {"grad_norm": np.array([norm])}
        record = StepRecord(
            step,
            parameters=("weight",),
            loss=loss,
            grad_norm=norm,
            learning_rate=1e-3,
            nonfinite_count=0,
            per_parameter=each,
        )
        found += detectors.check_before_update(record)
        if detectors.needs_weights or detectors.needs_start:
            weights = 100.0 + 1e-3 * step
            record = replace(record, weight_norm=weights, weight_norm_before=weights, weight_count=10_000)
        if step % 50 == 49:
            weights = 100.0 + 1e-3 * step
            record = replace(record, weight_norm_before=weights, update_ratio=1e-5)
        found += detectors.check_after_update(record)
    return found


def row(name: str, runs: int) -> list[str]:
    """Return the row of a kind of series: its runs with a CRITICAL finding, and findings per 1,000 steps."""
    seen = [findings(*SERIES[name](np.random.default_rng(seed))) for seed in range(runs)]
    critical = [sum(one.severity is Severity.CRITICAL for one in found) for found in seen]
    warnings = sum(one.severity is Severity.WARNING for found in seen for one in found)
    per_thousand = 1000 / (runs * STEPS)
    alarmed = sum(count > 0 for count in critical)
    return [name, f"{alarmed} of {runs}", f"{per_thousand * sum(critical):.2f}", f"{per_thousand * warnings:.2f}"]


def main() -> None:
    """Print a table of all kinds of series."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8, help="number of series of each kind")
    runs = parser.parse_args().runs
    head = ["Series", "Runs with a CRITICAL finding", "CRITICAL per 1,000 steps", "WARNING per 1,000 steps"]
    print_table([head, *(row(name, runs) for name in SERIES)])


if __name__ == "__main__":
    main()
