"""Detection of explosions by the monitor and by rules of other tools: ``python -m benchmarks.detection``.

Small runs, some seeds of each family, are trained and recorded once, and then evaluated (`benchmarks.scenarios`).

- A run is caught in time if the first alarm comes no later than one step after the run is lost. Alarms before the step
  at which a fault is injected do not count as caught, but as alarms of healthy steps, unless the run is lost before.
- A false alarm is an alarm in a run that stayed healthy.
- The lead is the number of steps from the first alarm to the step at which the run is lost, as the median over the runs
  caught, and again over the slow ones. A run is slow if more than five steps lie between that step and the last one
  before the fault is injected, or with a loss within one unit of its start (`benchmarks.scenarios.probe`) and weights
  below three times their start.
- The monitor's alarms are CRITICAL findings. Its warnings are counted separately: those of healthy runs that are
  reported, that is once per incident, the steps at which their condition holds, and the share of a slow growth that has
  passed at the first warning.

The rules were developed on these families. ``--untouched`` evaluates other ones, which no rule was changed for: the
families of `benchmarks.rescue` and half of the newest set, whose other half is ``--studied``. ``--held-out`` evaluates
the held-out families.
``python -m benchmarks.constants`` evaluates constants on kinds that they were not chosen on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median, stdev

from benchmarks.other_packages import PACKAGES
from benchmarks.other_rules import RULES, Rule
from benchmarks.scenarios import (
    COUNTED,
    EVERYDAY,
    EVERYDAY_COUNTED,
    FALLING,
    FAMILIES,
    FRESH,
    FURTHER_KINDS,
    HELD_OUT,
    LATER,
    LATEST,
    NEWEST,
    PLANS_AND_NOISE,
    STUDIED,
    UNSEEN,
    UNTOUCHED,
    Family,
)
from benchmarks.scenarios.recording import RecordedRun, measuring_code, recorded
from benchmarks.scenarios.replay import complete, replay
from lightning_gradexplode import Detector, Finding, Severity, default_detectors
from lightning_gradexplode.engine.incidents import IncidentTracker

OURS = "gradexplode"
SLOW = 5
"""Growth in more steps than these is slow."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule made of one run.

    Args:
        family: The run's family.
        run: The run.
        alarms: Steps at which the rule alarmed.
        critical: Our own CRITICAL findings, oldest first.
        warnings: Steps at which we had a finding of at least WARNING.
        reported: Steps of the findings of at least WARNING that the monitor reports: those that are new to their
            incident, or make it worse (`engine.incidents`).
    """

    family: Family
    run: RecordedRun
    alarms: tuple[int, ...]
    critical: tuple[Finding, ...] = ()
    warnings: tuple[int, ...] = ()
    reported: tuple[int, ...] = ()

    @property
    def begins(self) -> int:
        """The step from which on alarms are about the explosion: 0 if the run was lost before the planted trouble."""
        lost = self.run.outcome.lost
        return self.family.begins if lost is not None and lost >= self.family.begins else 0

    @property
    def explodes(self) -> bool:
        """Whether the run was lost."""
        return self.run.outcome.label == "explodes"

    @property
    def healthy(self) -> bool:
        """Whether the run stayed healthy."""
        return self.run.outcome.label == "healthy"

    @property
    def first(self) -> int | None:
        """The first alarm that is about the explosion."""
        return next((step for step in self.alarms if step >= self.begins), None)

    @property
    def lead(self) -> int | None:
        """Steps from the first alarm to the loss of the run; None if it was not caught in time."""
        lost = self.run.outcome.lost
        if lost is None or self.first is None or self.first > lost + 1:
            return None
        return lost - self.first

    @property
    def is_slow(self) -> bool:
        """Whether the growth from calm to the loss of the run took more than `SLOW` steps."""
        lost = self.run.outcome.lost
        return lost is not None and lost - self._last_calm_step(lost) > SLOW

    @property
    def share_passed(self) -> float:
        """Share of the growth, from calm to the loss of the run, that has passed at the first warning, else 1."""
        lost = self.run.outcome.lost
        first = next((step for step in self.warnings if step >= self.begins), None)
        if lost is None or first is None:
            return 1.0
        calm = self._last_calm_step(lost)
        return min(1.0, max(0, first - calm) / (lost - calm))

    def _last_calm_step(self, lost: int) -> int:
        """Return the last step at which neither loss nor weights had left their start, or before the fault."""
        return max(last_calm_step(self.run, lost), self.begins - 1)

    @property
    def calm_steps(self) -> int:
        """Number of steps at which nothing was wrong."""
        if self.healthy:
            return 1 + max(step.before.step for step in self.run.steps)
        return self.begins if self.explodes else 0

    @property
    def calm_alarms(self) -> int:
        """Number of alarms at steps at which nothing was wrong."""
        return len({step for step in self.alarms if step < self.calm_steps})

    @property
    def names_the_module(self) -> bool | None:
        """Whether the first critical finding that names a place names the planted one; None if none does."""
        planted, named = self.family.where, self.named
        if planted is None or named is None:
            return None
        return named == planted or named.startswith(planted + ".")

    @property
    def named(self) -> str | None:
        """The place that the first critical finding names that names any."""
        return next((f.where for f in self.critical if f.where is not None and f.step >= self.begins), None)


def last_calm_step(run: RecordedRun, lost: int) -> int:
    """Return the last step before the run was lost at which neither loss nor weights had left their start; else -1."""
    records = [record for record in complete(run) if record.step <= lost]
    losses = [record.loss for record in records if record.loss is not None and math.isfinite(record.loss)]
    weights = {record.optimizer: record.weight_norm_before for record in reversed(records)}
    if not losses:
        return -1
    start = losses[0]
    unit = max(abs(start), stdev(losses[:3]) if len(losses) > 2 else 0.0)
    last: dict[int, bool] = {}
    for record in records:
        level, norm = weights[record.optimizer], record.weight_norm
        large = level is not None and norm is not None and not norm <= 3 * level
        far = record.loss is not None and not abs(record.loss - start) <= unit
        last[record.step] = last.get(record.step, True) and not large and not far
    return max((step for step, calm in last.items() if calm), default=-1)


def evaluate(
    family: Family,
    run: RecordedRun,
    weights_every: int = 50,
    detectors: Callable[[], Sequence[Detector]] = default_detectors,
) -> Verdict:
    """Return the findings of the monitor's detectors in a run."""
    steps = [found for _, found in replay(run, detectors, weights_every)]
    findings = [finding for found in steps for finding in found]
    critical = tuple(finding for finding in findings if finding.severity is Severity.CRITICAL)
    warnings = tuple(sorted({finding.step for finding in findings if finding.severity >= Severity.WARNING}))
    incidents = IncidentTracker()
    news = [finding for found in steps for finding in incidents.add(found) if finding.severity >= Severity.WARNING]
    reported = tuple(finding.step for finding in news)
    return Verdict(family, run, tuple(finding.step for finding in critical), critical, warnings, reported)


def evaluate_rule(family: Family, run: RecordedRun, rule: type[Rule]) -> Verdict:
    """Return the alarms of another tool's rule in a run."""
    rules: defaultdict[int, Rule] = defaultdict(rule)
    alarms = [record.step for record in complete(run) if rules[record.optimizer].alarms(record)]
    return Verdict(family, run, tuple(alarms))


def summary(name: str, verdicts: Sequence[Verdict]) -> str:
    """Return one line of the table: a rule over many runs."""
    lost = [verdict for verdict in verdicts if verdict.explodes]
    well = [verdict for verdict in verdicts if verdict.healthy]
    leads = [verdict.lead for verdict in lost if verdict.lead is not None]
    steps = sum(verdict.calm_steps for verdict in verdicts)
    rate = 1000 * sum(verdict.calm_alarms for verdict in verdicts) / steps if steps else 0.0
    false = sum(bool(verdict.alarms) for verdict in well)
    slow = [verdict.lead for verdict in lost if verdict.lead is not None and verdict.is_slow]
    return (
        f"{name:28} {len(leads):4} of {len(lost):3} {false:6} of {len(well):3} {rate:12.1f} "
        f"{_median(leads):>10} {_median(slow):>6} of {len(slow)}"
    )


def _median(leads: Sequence[int]) -> str:
    return f"{median(leads):g}" if leads else "-"


HEADER = f"{'':28} {'caught in time':>11} {'false alarms':>13} {'per 1000':>9} {'lead':>10} {'if slow':>9}"


def print_table(title: str, verdicts: dict[str, list[Verdict]]) -> None:
    """Print the line of every rule."""
    print(f"\n{title}\n{HEADER}")
    for name, of_rule in verdicts.items():
        print(summary(name, of_rule))


def matched(verdicts: Sequence[Verdict], most: int) -> tuple[int, list[Verdict]]:
    """Return a rule that waits for further alarms until no more than some healthy runs have a false alarm.

    Args:
        verdicts: What the rule made of all runs.
        most: Number of healthy runs that may have an alarm.

    Returns:
        The number of alarms in a run from which on it counts as alarmed, and the verdicts by that.
    """
    alarms = sorted((len(one.alarms) for one in verdicts if one.healthy), reverse=True)
    needed = 1 + alarms[most] if most < len(alarms) else 1
    return needed, [replace(one, alarms=one.alarms[needed - 1 :]) for one in verdicts]


def print_matched(verdicts: dict[str, list[Verdict]]) -> None:
    """Print the table again, with each rule made to wait until no more than one healthy run in ten has an alarm."""
    most = sum(one.healthy for one in verdicts[OURS]) // 10
    rules = {name: matched(of_rule, most) for name, of_rule in verdicts.items()}
    print_table(
        f"At no more than {most} false alarms: a run counts as alarmed from so many alarms on",
        {name if needed == 1 else f"{name}, {needed} alarms": found for name, (needed, found) in rules.items()},
    )


def print_warnings(verdicts: Sequence[Verdict]) -> None:
    """Print how many warnings healthy runs have, and how early those of slow explosions are."""
    well = [verdict for verdict in verdicts if verdict.healthy]
    steps, warned = sum(one.calm_steps for one in well), sum(len(one.warnings) for one in well)
    runs = sum(bool(one.warnings) for one in well)
    rate, told = (1000 * count / max(steps, 1) for count in (warned, sum(len(one.reported) for one in well)))
    print(f"\nWarnings reported: {told:.2f} per 1,000 healthy steps, in {runs} of {len(well)} healthy runs")
    print(f"Steps at which a warning holds: {rate:.2f} per 1,000 healthy steps")
    shares = [one.share_passed for one in verdicts if one.is_slow]
    if shares:
        print(f"At the first warning {median(shares):.0%} of the growth has passed (median of {len(shares)} slow runs)")


def by_name(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts on families that may be printed one by one: those that are not only counted."""
    return [verdict for verdict in verdicts if verdict.family not in COUNTED]


def print_families(verdicts: Sequence[Verdict]) -> None:
    """Print what our detectors made of every family that is not only counted."""
    verdicts = by_name(verdicts)
    print("\nOur detectors, family by family (lost at / first alarm by sign, of each seed)")
    for family in dict.fromkeys(verdict.family for verdict in verdicts):
        of_family = [verdict for verdict in verdicts if verdict.family is family]
        labels = [verdict.run.outcome.label for verdict in of_family]
        caught = sum(verdict.lead is not None for verdict in of_family)
        false = sum(verdict.healthy and bool(verdict.alarms) for verdict in of_family)
        count = f"caught {caught}/{labels.count('explodes')}" if family.expected == "explodes" else f"false {false}"
        as_built = f"{labels.count(family.expected)}/{len(labels)} as built"
        print(f"{family.kind:22} {family.expected:8} {family.name:32} {as_built} {count:10} {_details(of_family)}")


def _details(verdicts: Sequence[Verdict]) -> str:
    parts = []
    for verdict in verdicts:
        if not verdict.explodes and not verdict.alarms:
            continue
        lost = "-" if verdict.run.outcome.lost is None else verdict.run.outcome.lost
        first = next((f for f in verdict.critical if f.step == verdict.first), None)
        seen = f"{first.step} {first.sign}" if first else "never"
        early = f", {verdict.calm_alarms} early" if verdict.explodes and verdict.calm_alarms else ""
        parts.append(f"{lost}/{seen}{early}")
    return "; ".join(parts)


def print_places(verdicts: Sequence[Verdict]) -> None:
    """Print how often the first finding with a place names the planted module."""
    planted = [verdict for verdict in verdicts if verdict.family.where is not None and verdict.lead is not None]
    named = sum(verdict.names_the_module is True for verdict in planted)
    nowhere = sum(verdict.names_the_module is None for verdict in planted)
    print(f"\nThe planted module is named in {named} of {len(planted)} caught runs ({nowhere} name no place)")
    for family in dict.fromkeys(verdict.family for verdict in by_name(planted)):
        names = [verdict.named or "-" for verdict in planted if verdict.family is family]
        print(f"  {family.name:30} planted in {family.where}, named {', '.join(names)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the runs that are not recorded yet, evaluate all rules, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each family")
    parser.add_argument("--first-seed", type=int, default=0, help="the first seed")
    chosen = parser.add_mutually_exclusive_group()
    for flag, of_flag, text in (
        ("--untouched", (*FRESH, *NEWEST, *UNTOUCHED), "families that no rule was changed for"),
        ("--everyday", EVERYDAY, "the half of the everyday families that rules were changed for"),
        ("--counted", EVERYDAY_COUNTED, "the other half of these"),
        ("--studied", STUDIED, "the other half of the newest set"),
        ("--later", LATER, "families written for clipping, counted only"),
        ("--latest", LATEST, "families with noisy losses, written for clipping, counted only"),
        ("--plans", PLANS_AND_NOISE, "plans and noise of ordinary trainings, counted only"),
        ("--further", FURTHER_KINDS, "ordinary trainings and slow explosions of further kinds"),
        ("--unseen", UNSEEN, "further kinds, committed before any finding in them was computed"),
        ("--falling", FALLING, "losses that fall to a lower bound, or without one"),
        ("--held-out", HELD_OUT, "the held-out families"),
    ):
        chosen.add_argument(flag, dest="chosen", action="store_const", const=of_flag, default=FAMILIES, help=text)
    parser.add_argument("--kind", help="only families of this kind")
    parser.add_argument("--family", default="", help="only families whose names contain this text")
    parser.add_argument("--weights-every", type=int, default=50, help="the monitor's log_every_n_steps")
    parser.add_argument("--no-others", action="store_true", help="only the monitor's detectors")
    parser.add_argument("--fresh", action="store_true", help="train all runs again")
    options = parser.parse_args(arguments)
    others = () if options.no_others else (*RULES, *PACKAGES)
    verdicts: dict[str, list[Verdict]] = {OURS: [], **{rule.name: [] for rule in others}}
    families = [f for f in options.chosen if options.family in f.name and options.kind in (None, f.kind)]
    for family in families:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            if sys.stderr.isatty():
                print(f"\r\033[K{family.name} {seed}", end="", file=sys.stderr, flush=True)
            run = recorded(family, seed, options.fresh)
            verdicts[OURS].append(evaluate(family, run, options.weights_every))
            for rule in others:
                verdicts[rule.name].append(evaluate_rule(family, run, rule))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print_families(verdicts[OURS])
    print_table("All families", verdicts)
    print_matched(verdicts)
    print_warnings(verdicts[OURS])
    print_places(verdicts[OURS])
    old = sum(verdict.run.measured_by != measuring_code() for verdict in verdicts[OURS])
    if old:
        print(f"{old} runs were recorded before a change of lightning_gradexplode/measure; --fresh trains all again")


if __name__ == "__main__":
    main()
