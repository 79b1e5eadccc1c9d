"""Choose the detectors' constants on all kinds of training but one, and test them on that one, for each kind in turn.

``python -m benchmarks.constants`` tries a few values of each constant, the others at their defaults, over the recorded
scenarios. For each kind it selects the values that are best on all other kinds, and evaluates with them the runs of the
kind that was left out. The best values have the fewest wrong results (missed runs and false alarms), then the fewest
healthy runs with a warning, then the longest lead; of equal values, the default. The figures printed last are those of
kinds that the constants were not chosen on. The rules themselves were developed on these families.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

from benchmarks.detection import HEADER, Verdict, evaluate, print_warnings, summary
from benchmarks.scenarios import FAMILIES
from benchmarks.scenarios.recording import recorded
from lightning_gradexplode import Detector, default_detectors
from lightning_gradexplode.detect import DivergingLoss, GradientGrowth, GradientSpike, LargeUpdate, WeightGrowth


@dataclass(frozen=True)
class Constant:
    """A constant of a detector, and the values that are tried."""

    detector: type[Detector]
    name: str
    values: tuple[float, ...]

    @property
    def default(self) -> float:
        """The value that the detector has by default."""
        return float(getattr(self.detector(), self.name))


CONSTANTS = (
    Constant(DivergingLoss, "limit", (3.0, 4.0, 6.0)),
    Constant(DivergingLoss, "confirmed", (5.0, 10.0, 20.0)),
    Constant(DivergingLoss, "sudden", (16.0, 32.0, 64.0)),
    Constant(GradientGrowth, "far", (30.0, 100.0, 300.0)),
    Constant(GradientGrowth, "factor", (5.0, 10.0, 20.0)),
    Constant(GradientSpike, "factor", (4.0, 8.0, 16.0)),
    Constant(WeightGrowth, "limit", (5.0, 8.0, 12.0)),
    Constant(WeightGrowth, "confirmed", (7.0, 10.0, 15.0)),
    Constant(WeightGrowth, "lost", (30.0, 40.0, 60.0)),
    Constant(LargeUpdate, "limit", (0.1, 0.3, 1.0)),
)
"""The constants that decide what is CRITICAL or a WARNING, each varied by about a factor of two."""

Setting = dict[Constant, float]


def detectors(setting: Setting) -> list[Detector]:
    """Build the default detectors with some constants set."""
    chosen = []
    for detector in default_detectors():
        for constant, value in setting.items():
            if type(detector) is constant.detector:
                setattr(detector, constant.name, value)
        chosen.append(detector)
    return chosen


def cost(verdicts: Sequence[Verdict]) -> tuple[int, int, float]:
    """Return how bad verdicts are: runs with a wrong result, healthy runs with a warning, and the lead, negative."""
    wrong = sum(bool(one.alarms) if one.healthy else one.explodes and one.lead is None for one in verdicts)
    warned = sum(one.healthy and bool(one.warnings) for one in verdicts)
    leads = [min(one.lead, 20) for one in verdicts if one.lead is not None]
    return wrong, warned, -round(mean(leads), 1) if leads else 0.0


def best(constant: Constant, tried: dict[float, list[Verdict]], left_out: str) -> float:
    """Return the value of a constant that is best on all kinds but one."""

    def rank(value: float) -> tuple[int, int, float, bool]:
        kept = [verdict for verdict in tried[value] if verdict.family.kind != left_out]
        return (*cost(kept), value != constant.default)

    return min(constant.values, key=rank)


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose, test, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each family")
    options = parser.parse_args(arguments)
    runs = [(family, recorded(family, seed)) for family in FAMILIES for seed in range(options.seeds)]
    usual = [evaluate(*run) for run in runs]
    print(f"{'':28} wrong  warned   lead (mean, each at most 20)")
    tried: dict[Constant, dict[float, list[Verdict]]] = {}
    for constant in CONSTANTS:
        tried[constant] = {}
        for value in constant.values:
            make = partial(detectors, {constant: value})
            is_default = value == constant.default
            tried[constant][value] = usual if is_default else [evaluate(*run, detectors=make) for run in runs]
            wrong, warned, lead = cost(tried[constant][value])
            label = f"{constant.detector.sign} {constant.name}={value:g}{' (default)' if is_default else ''}"
            print(f"{label:44} {wrong:5} {warned:6} {-lead:6}", flush=True)
    chosen: Counter[str] = Counter()
    tested: list[Verdict] = []
    for kind in dict.fromkeys(family.kind for family in FAMILIES):
        setting = {constant: best(constant, tried[constant], kind) for constant in CONSTANTS}
        chosen.update(f"{one.detector.sign} {one.name}={value:g}" for one, value in setting.items())
        make = partial(detectors, setting)
        tested += [evaluate(family, run, detectors=make) for family, run in runs if family.kind == kind]
    kinds = len({family.kind for family in FAMILIES})
    print(f"\nChosen on all kinds but one, of {kinds}:")
    for label, count in chosen.most_common():
        print(f"  {label}: {count} times")
    print(f"\nOn the kinds left out\n{HEADER}\n{summary('gradexplode', tested)}")
    print_warnings(tested)
    for verdict in tested:
        if (verdict.explodes and verdict.lead is None) or (verdict.healthy and verdict.alarms):
            what = "missed" if verdict.explodes else f"false alarm at {verdict.alarms[0]}"
            print(f"  {verdict.family.kind}: {verdict.family.name}, seed {verdict.run.seed}: {what}")


if __name__ == "__main__":
    main()
