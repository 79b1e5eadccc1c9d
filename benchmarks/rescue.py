"""Number of exploding runs that are saved: ``python -m benchmarks.rescue`` trains the scenarios with remedies.

Every run has the same batches, the same start and the same number of steps, whatever the remedy. It counts as saved if
its weights are finite and its loss at the end (median of the last twenty steps) keeps 90 % of the improvement of the
same run with a hand-tuned learning rate: the best of eight factors on the first seed. Families that no rate improves
are left out. The healthy families are the control: there a remedy must leave the final loss where it is, within two
percent. The figures are given separately for kinds of training that the constants of ``clip="auto"`` were chosen on
(`CHOSEN_ON`) and for kinds that were left out.

Runs are kept on disk (``benchmarks/.cache``) until the code they come from changes; ``--jobs`` trains in parallel.
``--sample 3`` takes every third family of each side: exploding or healthy, of kinds chosen on or left out. ``--fresh``,
``--newest``, ``--later``, ``--latest``, ``--further`` and ``--unseen`` take other families, of kinds that the others
do not have; with ``A`` or ``B`` they take every second of these kinds, in the order of their names.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch.optim import Optimizer

import lightning_gradexplode
from benchmarks import clippers
from benchmarks.scenarios import FAMILIES, FRESH, FURTHER_KINDS, HALVES, LATER, LATEST, NEWEST, UNSEEN, Family, half
from benchmarks.scenarios.family import Setup
from benchmarks.scenarios.module import Adversaries
from benchmarks.scenarios.probe import losses_before
from benchmarks.scenarios.recording import fit
from lightning_gradexplode import GradientExplosionMonitor

CACHE = Path(__file__).parent / ".cache" / "rescue"

REMEDIES: dict[str, Callable[[], list[Callback]]] = {
    "no remedy": lambda: [],
    "clip 1.0": lambda: [clippers.Constant()],
    "AutoClip": lambda: [clippers.AutoClip()],
    "ZClip": lambda: [clippers.ZClip()],
    "ZClip alone": lambda: [clippers.ZClipAlone()],
    'clip="auto"': lambda: [GradientExplosionMonitor(clip="auto", report=False, diagnose=False)],
    '"auto", ["skip", "rollback"]': lambda: [
        GradientExplosionMonitor(clip="auto", on_explosion=["skip", "rollback"], report=False, diagnose=False)
    ],
}
OURS = tuple(name for name in REMEDIES if "auto" in name and name != "AutoClip")

FACTORS = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-7)
"""Factors of the learning rate of which the best one is the hand-tuned rate."""

CHOSEN_ON = frozenset(
    [
        *("adversarial", "bad batches", "classification", "convolution", "curvature", "depth", "half precision"),
        *("language", "no floor", "recurrent", "regression", "schedule", "slips", "undefined operations", "values"),
        *("variational", "diffusion", "distillation", "flows", "policy gradients", "preferences", "warm restarts"),
        *("batch sizes", "classes in turn", "few parameters", "local steps", "one cycle", "recommenders"),
        *("weights of losses by plan", "word vectors", "autoregression"),
    ]
)
"""Kinds of families on which the constants of ``clip="auto"`` were chosen."""

FURTHER = {"newest": NEWEST, "later": LATER, "latest": LATEST, "further": FURTHER_KINDS, "unseen": UNSEEN}
"""Families of kinds that the others do not have, by the option that takes them."""


KEPT = 0.9
"""Share of the improvement of the hand-tuned run that a saved run reaches."""

NOT_SAVABLE = {
    "loss_falls_for_ever": "the loss has no lower bound, so that it is lowest in a run that explodes",
    "penalty_with_wrong_sign": "the loss rewards large weights without a bound",
    "critic_without_limit": "the critic's loss has no floor",
    "generator_too_fast": "the critic's loss has no floor",
    "noise_on_the_weights": "the weights are made larger beside the optimizer, at every step",
    "ascent": "every gradient points uphill",
    "inputs_drift": "inputs and targets grow without a bound, and the loss with them",
    "bootstrapped_values": "the expected step leads away from the solution at any learning rate",
    "values_above_themselves": "the expected step leads away from the solution at any learning rate",
}
"""Exploding families that no remedy of gradients and steps can save, and why."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of one run.

    Args:
        start: Loss of the untrained network, median of eight batches.
        final: Median loss of the last twenty steps, NaN if the weights are not finite.
    """

    start: float
    final: float

    @property
    def improvement(self) -> float:
        """Decrease of the loss, NaN if the run is lost."""
        return self.start - self.final

    def is_saved(self, tuned: Ending) -> bool:
        """Return whether this run reached most of the improvement of the hand-tuned run."""
        return tuned.improvement > 0 and self.improvement >= KEPT * tuned.improvement


class _Losses(Callback):
    """Records the losses, and ends a run with non-finite weights if no response can restore them."""

    def __init__(self, hopeless_at_nan: bool) -> None:
        self.hopeless_at_nan = hopeless_at_nan
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Record the loss, or the metric of the task where the loss cannot show the damage."""
        self.losses.append(float(pl_module.last_damage))  # type: ignore[arg-type]
        if self.hopeless_at_nan and not math.isfinite(self.losses[-1]) and not _finite(pl_module):
            trainer.should_stop = True


def train(family: Family, seed: int, remedy: str, factor: float = 1.0) -> Ending:
    """Train one run, with a remedy and a factor of its learning rate."""
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    setup = family.build(seed)
    _scale_learning_rate(setup, factor)
    start = [loss for loss in losses_before(setup.module, setup.batches[:8]) if math.isfinite(loss)]
    losses = _Losses(remedy not in OURS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(setup.module, setup.batches, [*REMEDIES[remedy](), losses], setup.trainer)
    final = median(losses.losses[-20:]) if _finite(setup.module) else math.nan
    if any(math.isnan(loss) for loss in losses.losses[-5:]):
        final = math.nan
    return Ending(median(start) if start else math.nan, final)


def _scale_learning_rate(setup: Setup, factor: float) -> None:
    module = setup.module
    if isinstance(module, Adversaries):
        module.rates = (module.rates[0] * factor, module.rates[1] * factor)
    make = module.optimizer

    def scaled(*args: Any) -> Optimizer:
        optimizer = make(*args)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        return optimizer

    module.optimizer = scaled


def _finite(module: LightningModule) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


Job = tuple[str, int, str, float]
"""Name of the family, seed, remedy and factor of the learning rate."""


def ending(job: Job) -> Ending:
    """Return a run from the cache; it is trained if it is missing or if its code has changed."""
    name, seed, remedy, factor = job
    family = next(
        family
        for family in (*FAMILIES, *FRESH, *NEWEST, *LATER, *LATEST, *FURTHER_KINDS, *UNSEEN)
        if family.name == name
    )
    path = CACHE / f"{name}-{seed}-{_slug(remedy)}-{factor:g}-{_source(family, remedy)}.json"
    if path.exists():
        return Ending(**json.loads(path.read_text()))
    logging.disable(logging.CRITICAL)
    found = train(family, seed, remedy, factor)
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{name}-{seed}-{_slug(remedy)}-{factor:g}-????????????.json"):
        old.unlink()
    path.write_text(json.dumps(asdict(found)))
    return found


def _slug(remedy: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in remedy)


@cache
def _source(family: Family, remedy: str) -> str:
    """Return a file name that depends on the code of a run."""
    here = Path(__file__).parent
    files = [here / "scenarios" / name for name in ("family.py", "module.py", "data.py", "recording.py")]
    files += [Path(inspect.getfile(family.build))]
    if remedy in OURS:
        package = Path(inspect.getfile(lightning_gradexplode)).parent
        files += sorted(
            file for file in package.rglob("*.py") if file.parent.name not in ("loggers", "report", "diagnose")
        )
    elif REMEDIES[remedy]():
        files += [here / "clippers.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Results:
    """Results of runs, trained in parallel.

    Args:
        jobs: Number of processes.

    Attributes:
        known: The results of the runs that were trained.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self.known: dict[Job, Ending] = {}

    def need(self, wanted: Iterable[Job]) -> None:
        """Train the runs that are missing."""
        missing = sorted({job for job in wanted if job not in self.known})
        if self._jobs == 1:
            found: Iterable[Ending] = map(ending, missing)
        else:
            with ProcessPoolExecutor(self._jobs) as pool:
                found = list(pool.map(ending, missing))
        self.known.update(zip(missing, found, strict=True))

    def __getitem__(self, job: Job) -> Ending:
        """Return the result of a run."""
        if job not in self.known:
            self.need([job])
        return self.known[job]


def tuned_factor(results: Results, family: Family) -> float:
    """Return the factor of the learning rate with the lowest final loss on the first seed."""
    tried = {factor: results[family.name, 0, "no remedy", factor].final for factor in FACTORS}
    return min(tried, key=lambda factor: tried[factor] if math.isfinite(tried[factor]) else math.inf)


def number(value: float) -> str:
    """Return a loss as a short text."""
    return f"{value:.3g}" if math.isfinite(value) else "lost"


def rescue_rows(results: Results, families: Sequence[Family], seeds: range, remedies: Sequence[str]) -> list[list[str]]:
    """Return a row for each family: how many runs each remedy saved, and the median of their final losses."""
    rows = []
    for family in families:
        factor = tuned_factor(results, family)
        tuned = [results[family.name, seed, "no remedy", factor] for seed in seeds]
        row = [family.name, number(median(one.start for one in tuned)), _cell(tuned, tuned)]
        row += [_cell([results[family.name, seed, remedy, 1.0] for seed in seeds], tuned) for remedy in remedies]
        rows.append(row)
    return rows


def _cell(endings: Sequence[Ending], tuned: Sequence[Ending]) -> str:
    saved = [one.final for one, best in zip(endings, tuned, strict=True) if one.is_saved(best)]
    return f"{len(saved)}" + (f" ({number(median(saved))})" if saved else "")


def saved_by(results: Results, families: Sequence[Family], seeds: range, remedy: str) -> int:
    """Count the runs that a remedy saved."""
    count = 0
    for family in families:
        factor = tuned_factor(results, family)
        for seed in seeds:
            tuned = results[family.name, seed, "no remedy", factor]
            count += results[family.name, seed, remedy, 1.0].is_saved(tuned)
    return count


def can_be_saved(results: Results, family: Family) -> bool:
    """Return whether a hand-tuned learning rate improves the first seed."""
    return results[family.name, 0, "no remedy", tuned_factor(results, family)].improvement > 0


def change(results: Results, family: Family, seeds: range, remedy: str) -> float:
    """Return by what share a remedy changed the final loss of a healthy family, the median over seeds.

    Losses below a millionth of the start count as that: there they are noise of the numbers.
    """
    shares = []
    for seed in seeds:
        plain, held = results[family.name, seed, "no remedy", 1.0], results[family.name, seed, remedy, 1.0]
        floor = 1e-6 * abs(plain.start)
        difference = max(held.final, floor) - max(plain.final, floor) if plain.final > 0 else held.final - plain.final
        size = max(abs(plain.final), floor)
        if size == 0:  # nothing to learn from the start on, as of a copy that is distilled
            shares.append(math.inf if difference > 0 else 0.0)
        else:
            shares.append(difference / size if math.isfinite(difference) else math.inf)
    return median(shares)


def main(arguments: Sequence[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--families", nargs="*", help="names of families; all if not given")
    parser.add_argument("--remedies", nargs="*", help="names of remedies; all if not given")
    parser.add_argument("--sample", type=int, default=1, help="take every so many families of each side; 1 for all")
    parser.add_argument("--fresh", action="store_true", help="take the families that were written for this program")
    for name in FURTHER:
        parser.add_argument(f"--{name}", choices=[*HALVES], help=f"take this half of the {name} families, or both")
    options = parser.parse_args(arguments)
    seeds, remedies = range(options.seeds), options.remedies or [*REMEDIES]
    families: Sequence[Family] = FRESH if options.fresh else FAMILIES
    for name, further in FURTHER.items():
        if getattr(options, name):
            families = half(further, getattr(options, name))
    chosen = [family for family in families if not options.families or family.name in options.families]
    ill = [family for family in chosen if family.expected == "explodes" and family.name not in NOT_SAVABLE]
    well = [family for family in chosen if family.expected == "healthy"]
    ill, well = _sample(ill, options.sample), _sample(well, options.sample)
    results = Results(options.jobs)
    results.need((family.name, 0, "no remedy", factor) for family in ill for factor in FACTORS)
    results.need((f.name, s, r, 1.0) for f in [*ill, *well] for s in seeds for r in {*remedies, "no remedy"})
    results.need((family.name, seed, "no remedy", tuned_factor(results, family)) for family in ill for seed in seeds)
    ill = [family for family in ill if can_be_saved(results, family)]
    for title, left_out in (("Kinds that constants were chosen on", False), ("Kinds that were left out", True)):
        some_ill, some_well = (
            [one for one in group if (one.kind not in CHOSEN_ON) == left_out] for group in (ill, well)
        )
        print(f"\n{title}\n")
        if some_ill:
            _print_saved(results, some_ill, seeds, remedies)
        if some_well:
            _print_hurt(results, some_well, seeds, [remedy for remedy in remedies if remedy != "no remedy"])


def _sample(families: Sequence[Family], every: int) -> list[Family]:
    """Return every n-th family of the kinds on which constants were chosen, and of the held-out kinds."""
    near = [family for family in families if family.kind in CHOSEN_ON]
    far = [family for family in families if family.kind not in CHOSEN_ON]
    return [*near[::every], *far[::every]]


def _print_saved(results: Results, families: Sequence[Family], seeds: range, remedies: Sequence[str]) -> None:
    print(f"Runs saved, of {len(seeds)} seeds (median of their final losses)\n")
    _print_table(["family", "start", "tuned rate", *remedies], rescue_rows(results, families, seeds, remedies))
    total = len(families) * len(seeds)
    for remedy in remedies:
        count = saved_by(results, families, seeds, remedy)
        print(f"{remedy:32} saves {count:4} of {total} ({count / total:.0%})")


def _print_hurt(results: Results, families: Sequence[Family], seeds: range, remedies: Sequence[str]) -> None:
    print(f"\nHealthy families: change of the final loss, median of {len(seeds)} seeds; above 2 % is hurt\n")
    changes = {family.name: [change(results, family, seeds, remedy) for remedy in remedies] for family in families}
    _print_table(["family", *remedies], [[name, *(f"{one:+.1%}" for one in row)] for name, row in changes.items()])
    for place, remedy in enumerate(remedies):
        hurt = sum(row[place] > 0.02 for row in changes.values())
        print(f"{remedy:32} hurts {hurt:3} of {len(families)} families")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
