"""Sentences about an incident, used by console, page, loggers and command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_gradexplode.records.diagnosis import Cause, Diagnosis
from lightning_gradexplode.records.evidence import Attempt
from lightning_gradexplode.records.finding import Finding, Severity
from lightning_gradexplode.records.text import sentence, step_count


def headline(findings: Iterable[Finding]) -> Finding | None:
    """Return the finding that names an incident: the first one of the worst severity."""
    return max(findings, key=lambda finding: finding.severity, default=None)


def title(diagnosis: Diagnosis, findings: Iterable[Finding]) -> str:
    """Return the title of an incident: severity, step and sign of its headline."""
    finding = headline(findings)
    if finding is None:
        return f"Incident at step {diagnosis.step}"
    return f"{finding.severity.name} at step {finding.step}: {finding.sign}"


def verdict(diagnosis: Diagnosis | None, findings: Iterable[Finding]) -> str:
    """Return the state of a run in a word: ``exploding``, ``warning`` or ``healthy``."""
    worst = max((finding.severity for finding in findings), default=Severity.INFO)
    if worst is Severity.CRITICAL:
        return "exploding"
    return "warning" if worst is Severity.WARNING or diagnosis is not None else "healthy"


def cause_title(cause: Cause) -> str:
    """Return kind, place and confidence of a cause."""
    confidence = f" ({cause.confidence:.0%})" if cause.confidence else ""
    return f"{cause.kind}{cause.location}{confidence}"


def began(diagnosis: Diagnosis) -> int:
    """Return the step of the first sign of an incident."""
    return diagnosis.step if diagnosis.since is None else min(diagnosis.since, diagnosis.step)


def since(diagnosis: Diagnosis, findings: Iterable[Finding]) -> str:
    """Return the step since which there were signs of an incident, as text.

    Args:
        diagnosis: Its diagnosis.
        findings: Its findings.
    """
    first, finding = began(diagnosis), headline(findings)
    if finding is None or finding.severity < Severity.CRITICAL:
        return f"step {first}"
    if first >= finding.step:
        return f"step {finding.step}, the first sign of the incident"
    return f"step {first}, {step_count(finding.step - first)} before the first critical finding"


def place(diagnosis: Diagnosis) -> str:
    """Return the place where an incident began, as text."""
    return diagnosis.where or "no single place stands out"


def remedies(diagnosis: Diagnosis) -> list[str]:
    """Return the remedies as sentences or blocks of code."""
    return [sentence(remedy) for remedy in diagnosis.remedies]


def advice_of(diagnosis: Diagnosis) -> str:
    """Return the first cause with its first evidence, and the first remedy, one per line."""
    causes = [": ".join([cause_title(cause), *cause.evidence[:1]]) for cause in diagnosis.causes[:1]]
    return "\n".join([f"Why: {one}" for one in causes] + [f"Do: {one}" for one in remedies(diagnosis)[:1]])


def actions(attempts: Sequence[Attempt]) -> list[str]:
    """Return the actions of the responses, one sentence each; consecutive repeats are counted."""
    runs: list[list[Attempt]] = []
    for attempt in attempts:
        if runs and runs[-1][-1].action == attempt.action:
            runs[-1].append(attempt)
        else:
            runs.append([attempt])
    return [_action(run) for run in runs]


def done(attempts: Sequence[Attempt], responses: Sequence[str] = ()) -> str:
    """Return the actions of the responses in one sentence, or the reason why there were none.

    Args:
        attempts: The actions.
        responses: Names of the configured responses that act; empty if the monitor only warns.
    """
    if attempts:
        return "; ".join(actions(attempts))
    if responses:
        return f"{', '.join(responses)} logged no action"
    return 'nothing: on_explosion is "warn"'


def _action(run: Sequence[Attempt]) -> str:
    last = run[-1]
    when = f"step {last.step}" if run[0].step == last.step else f"steps {run[0].step} to {last.step}"
    times = f", {len(run)} times" if len(run) > 1 else ""
    outcome = {True: " (it helped)", False: " (it did not help)", None: ""}[last.helped]
    return f"{when}{times}: {last.detail or last.action}{outcome}"
