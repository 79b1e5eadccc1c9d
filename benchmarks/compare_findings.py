"""Compare findings, clip values and responses of two versions: ``python -m benchmarks.compare_findings``.

The scenarios are trained, the installed package evaluates their recordings, and the results are written to a file
(``--write``) or compared with one (``--against``). The reference of version 0.1.0 is made from a checkout of it, into
which this file is copied::

    git worktree add ../v01 1172781 && cp benchmarks/compare_findings.py ../v01/benchmarks/
    (cd ../v01 && PYTHONPATH=$PWD python -m benchmarks.compare_findings --write /tmp/reference.json.gz)
    python -m benchmarks.compare_findings --against /tmp/reference.json.gz

Both versions train the same runs by themselves; a run whose measured numbers differ says so in place of its findings.
Responses act on CRITICAL findings and nothing else, so theirs are the steps with one, and whether it came before the
update, where an update can be skipped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_gradexplode import AutoPolicy, Severity, default_detectors

FOLDER = "benchmarks.scenarios" if find_spec("benchmarks.scenarios") else "benchmarks.zoo"
"""Where the scenarios are; in 0.1.0 they had another name."""

FAMILIES = import_module(FOLDER).FAMILIES
recorded = import_module(f"{FOLDER}.recording").recorded
replay = import_module(f"{FOLDER}.replay").replay

BEFORE_UPDATE = {"nonfinite-loss", "nonfinite-gradient", "diverging-loss", "gradient-growth"}
"""Signs that can be CRITICAL and are detected before the update."""


def evaluated(run: Any) -> dict[str, Any]:
    """Return the results of a version for one run, as plain values for JSON.

    Returns:
        The measured numbers, as sums of logarithms; ``[step, sign, severity, where]`` of each finding; the clip value
        of ``clip="auto"`` at each step, to five digits; ``[step, before the update]`` of each response.
    """
    findings = [finding for _, found in replay(run, default_detectors) for finding in found]
    critical = [finding for finding in findings if finding.severity is Severity.CRITICAL]
    policies: dict[int, AutoPolicy] = {}
    clips = []
    for step in run.steps:
        policy = policies.setdefault(step.before.optimizer, AutoPolicy())
        clips.append(_digits(policy.threshold(step.before)))
    return {
        "steps": len(run.steps),
        "measured": [_total(getattr(step.before, field) for step in run.steps) for field in ("loss", "grad_norm")],
        "findings": [[one.step, one.sign, one.severity.name, one.where] for one in findings],
        "clip": clips,
        "responses": sorted({(one.step, one.sign in BEFORE_UPDATE) for one in critical}),
    }


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _total(values: Any) -> float:
    sizes = [math.log10(abs(value)) for value in values if value and math.isfinite(value)]
    return float(f"{sum(sizes):.6g}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences between two versions for one run, one per line."""
    if old["steps"] != new["steps"] or old["measured"] != new["measured"]:
        return [f"measured otherwise: {old['steps']} steps {old['measured']}, now {new['steps']} {new['measured']}"]
    lines = []
    if old["clip"] != new["clip"]:
        clips = enumerate(zip(old["clip"], new["clip"], strict=True))
        step, was, now = next((step, was, now) for step, (was, now) in clips if was != now)
        lines.append(f"clip value: {was} at optimizer step {step}, now {now}")
    old_findings, new_findings = (Counter(tuple(finding) for finding in one["findings"]) for one in (old, new))
    for sign in sorted({finding[1] for finding in old_findings | new_findings}):
        gone = sorted(finding for finding in (old_findings - new_findings) if finding[1] == sign)
        come = sorted(finding for finding in (new_findings - old_findings) if finding[1] == sign)
        if gone or come:
            lines.append(f"{sign}: {_listed('no longer', gone)}{'; ' if gone and come else ''}{_listed('new', come)}")
    if [list(one) for one in old["responses"]] != [list(one) for one in new["responses"]]:
        lines.append(f"responses: at {_steps(old['responses'])}, now at {_steps(new['responses'])}")
    return lines


def _listed(word: str, findings: Sequence[tuple[int, str, str, str | None]]) -> str:
    if not findings:
        return ""
    step, _, severity, where = findings[0]
    return f"{len(findings)} {word}, the first {severity} at {step} in {where}"


def _steps(responses: Sequence[Sequence[Any]]) -> str:
    first = ", ".join(f"{step}{'' if early else ' (after the update)'}" for step, early in responses[:3])
    return f"{len(responses)} steps ({first}{', ...' if len(responses) > 3 else ''})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the reference, or print the differences by scenario and by kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each family")
    purpose = parser.add_mutually_exclusive_group(required=True)
    purpose.add_argument("--write", type=Path, help="write what this version finds, as gzipped JSON")
    purpose.add_argument("--against", type=Path, help="compare with what another version wrote")
    options = parser.parse_args(arguments)
    reference = {} if options.against is None else json.loads(gzip.decompress(options.against.read_bytes()))
    found: dict[str, Any] = {}
    kinds: Counter[str] = Counter()
    for family in FAMILIES:
        for seed in range(options.seeds):
            name = f"{family.name}-{seed}"
            found[name] = json.loads(json.dumps(evaluated(recorded(family, seed))))
            if name in reference:
                lines = differences(reference[name], found[name])
                kinds.update(line.partition(":")[0] for line in lines)
                print("".join(f"{name:34} {line}\n" for line in lines), end="")
    if options.write is not None:
        options.write.write_bytes(gzip.compress(json.dumps(found).encode()))
        return
    compared = reference.keys() & found.keys()
    print(f"{len(compared)} runs compared, {len(found) - len(compared)} without a reference")
    for kind, count in kinds.most_common():
        print(f"  {kind}: differs in {count} runs")


if __name__ == "__main__":
    main()
