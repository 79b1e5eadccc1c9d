"""What the alert rules for Weights & Biases watch, and what they do: events and actions of its automations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Severity

LOWEST_VERSION = "0.21"
"""Lowest version of wandb that has automations on metrics."""

PAYLOAD = {
    "source": "lightning_gradexplode",
    "event_type": "${event_type}",
    "entity_name": "${entity_name}",
    "project_name": "${project_name}",
}
"""What a webhook gets besides the rule's name; W&B replaces what is in braces."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One rule.

    Args:
        name: A few words; the project's name is put in front, so that the name is unique in the whole entity.
        level: ``"ERROR"`` or ``"WARN"``.
        text: A sentence for those who are notified.
        event: Builds the event from a project's scope.
        needs: Name in ``wandb.automations`` that older versions lack; such a rule is left out there.
    """

    name: str
    level: Literal["ERROR", "WARN"]
    text: str
    event: Callable[[Any], Any]
    needs: str = "OnRunMetric"


def _above(metric: str, threshold: float) -> Callable[[Any], Any]:
    """Return what builds the event of a metric at or above a threshold; W&B has no test for NaN."""

    def event(scope: Any) -> Any:
        automations = automations_module()
        return automations.OnRunMetric(
            scope=scope, filter=automations.RunEvent.metric(f"{PREFIX}/{metric}").max(1) >= threshold
        )

    return event


def _tenfold_norm(scope: Any) -> Any:
    automations = automations_module()
    # A z-score over a window that contains the value cannot exceed (n - 1) / sqrt(n): 5.3 of 30 values.
    change = automations.MetricChangeFilter(
        name=f"{PREFIX}/grad_norm",
        agg="AVERAGE",
        window=1,
        prior_window=10,
        change_type="RELATIVE",
        change_dir="INCREASE",
        threshold=9.0,
    )
    return automations.OnRunMetric(scope=scope, filter=change)


def _failed_run(scope: Any) -> Any:
    automations = automations_module()
    return automations.OnRunState(scope=scope, filter=automations.RunEvent.state == "FAILED")


RULES = (
    AlertRule(
        "the run is exploding",
        "ERROR",
        "A critical finding: left alone, the run will not recover.",
        _above("severity", int(Severity.CRITICAL)),
    ),
    AlertRule(
        "the gradient norm leaps",
        "WARN",
        "The gradient norm is ten times the average of its last ten values.",
        _tenfold_norm,
    ),
    AlertRule(
        "updates are too large",
        "WARN",
        "The weights change by a tenth and more in one step; usual is a thousandth.",
        _above("update_ratio", 0.1),
    ),
    AlertRule("the run failed", "ERROR", "The run failed or crashed.", _failed_run, needs="OnRunState"),
)
"""The rules.

W&B runs an automation at most once a day for each run, so that no rule is spent on what may be harmless, such as an
overflow under a gradient scaler. The severity is always finite, so that its rule holds when a norm is NaN.
"""


def known_rules() -> list[AlertRule]:
    """Return the rules that the installed wandb knows."""
    automations = automations_module()
    return [rule for rule in RULES if hasattr(automations, rule.needs)]


def automations_module() -> Any:
    """Return W&B's automations; untyped, since they take other arguments than their annotations say.

    Raises:
        ImportError: The installed wandb has none on metrics.
    """
    import wandb

    try:
        from wandb import automations
    except ImportError:
        automations = None  # type: ignore[assignment]
    if not hasattr(automations, "OnRunMetric"):
        raise ImportError(f"alert rules need wandb >= {LOWEST_VERSION}, got {wandb.__version__}")
    return automations


def full_name(rule: AlertRule, project: str) -> str:
    """Return the name of a rule's automation."""
    return f"{PREFIX} {project}: {rule.name}"


def action_of(rule: AlertRule, integration: tuple[str, str] | None) -> Any:
    """Return what a rule does when it fires.

    Args:
        rule: The rule.
        integration: ``"slack"`` or ``"webhook"``, and the id of the integration; None to do nothing.
    """
    automations = automations_module()
    if integration is None:
        return automations.DoNothing()
    kind, identity = integration
    if kind == "slack":
        return automations.SendNotification(
            integration_id=identity, title=f"{PREFIX}: {rule.name}", message=rule.text, severity=rule.level
        )
    payload = {"rule": rule.name, "level": rule.level, **PAYLOAD}
    return automations.SendWebhook(integration_id=identity, request_payload=payload)
