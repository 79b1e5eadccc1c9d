"""Events and actions of the alert rules for Weights & Biases, which are automations there."""

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
"""What is sent to a webhook in addition to the rule's name; W&B replaces the expressions in braces."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One rule.

    Args:
        name: A few words; the project's name is put before it, so that the name is unique in the entity.
        level: ``"ERROR"`` or ``"WARN"``.
        text: The text of the notification.
        event: Builds the event from a project's scope.
        needs: A name of ``wandb.automations``; versions without it do not get the rule.
    """

    name: str
    level: Literal["ERROR", "WARN"]
    text: str
    event: Callable[[Any], Any]
    needs: str = "OnRunMetric"


def _above(metric: str, threshold: float) -> Callable[[Any], Any]:
    """Return a function that builds the event of a metric at or above a threshold; W&B has no condition for NaN."""

    def event(scope: Any) -> Any:
        automations = automations_module()
        return automations.OnRunMetric(
            scope=scope, filter=automations.RunEvent.metric(f"{PREFIX}/{metric}").max(1) >= threshold
        )

    return event


def _tenfold_norm(scope: Any) -> Any:
    automations = automations_module()
    # A z-score over a window that contains the value cannot exceed (n - 1) / sqrt(n): 5.3 for 30 values.
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
        "A critical finding: the run will not recover by itself.",
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
        "The weights change by a tenth of their norm or more in one step; a thousandth is usual.",
        _above("update_ratio", 0.1),
    ),
    AlertRule("the run failed", "ERROR", "The run failed or crashed.", _failed_run, needs="OnRunState"),
)
"""The rules.

W&B runs an automation at most once a day for each run, so that no rule is triggered by harmless events, such as an
overflow with a gradient scaler. The severity is always finite, so that its rule also applies if a norm is NaN.
"""


def known_rules() -> list[AlertRule]:
    """Return the rules that the installed wandb supports."""
    automations = automations_module()
    return [rule for rule in RULES if hasattr(automations, rule.needs)]


def automations_module() -> Any:
    """Return ``wandb.automations``; untyped, since it accepts other arguments than its annotations state.

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
    """Return the action of a rule.

    Args:
        rule: The rule.
        integration: ``"slack"`` or ``"webhook"``, and the id of the integration; None for no action.
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
