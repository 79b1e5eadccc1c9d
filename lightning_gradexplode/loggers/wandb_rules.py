"""Alert rules for Weights & Biases: automations on the metrics that the monitor logs, and on the state of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Severity

if TYPE_CHECKING:
    from wandb.automations import Automation

PROJECT_ID, INTEGRATION_ID = "<id of the project>", "<id of the integration>"
"""Stand in a dry run for what only the server knows."""

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


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """What became of a rule.

    Args:
        name: The automation's name in W&B.
        outcome: ``"created"``, ``"updated"`` or ``"unchanged"``.
        event: The kind of event, such as ``"RUN_METRIC_CHANGE"``.
    """

    name: str
    outcome: Literal["created", "updated", "unchanged"]
    event: str


def _above(metric: str, threshold: float) -> Callable[[Any], Any]:
    """Return what builds the event of a metric at or above a threshold; W&B has no test for NaN."""

    def event(scope: Any) -> Any:
        automations = _automations_module()
        return automations.OnRunMetric(
            scope=scope, filter=automations.RunEvent.metric(f"{PREFIX}/{metric}").max(1) >= threshold
        )

    return event


def _tenfold_norm(scope: Any) -> Any:
    automations = _automations_module()
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
    automations = _automations_module()
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


def alert_rules(
    project: str, entity: str | None = None, *, slack: bool | str = False, webhook: str | None = None
) -> list[AppliedRule]:
    """Create the alert rules as automations of a W&B project, or update those of an earlier call.

    A second call changes nothing. A rule that was disabled in the app stays disabled; and where neither Slack nor a
    webhook is asked for, an existing rule keeps its action, and a new one gets none: it only shows in the project's
    page of automations, where an action can be chosen.

    Args:
        project: The project; it has to exist.
        entity: The team or user that owns it; None for the account's default.
        slack: Send to the entity's first Slack integration, or to the one of this channel.
        webhook: Call the entity's webhook integration of this name.

    Raises:
        ValueError: The project or the integration does not exist, or both Slack and a webhook are asked for.
        ImportError: The installed wandb has no automations on metrics.
        wandb.errors.Error: The server cannot be reached, or refuses.
    """
    import wandb

    _check(slack, webhook)
    rules = _rules()
    api = wandb.Api()
    entity = entity or api.default_entity
    scope = _scope(api, project, entity)
    integration = _integration(api, entity, slack, webhook)
    present = {one.name: one for one in _existing(api, entity, scope.id)}
    return [_apply(api, rule, project, scope, integration, present) for rule in rules]


def existing_alert_rules(project: str, entity: str | None = None) -> list[Automation]:
    """Return the alert rules in a project that `alert_rules` has created.

    Raises:
        ValueError: The project does not exist.
        ImportError: The installed wandb has no automations on metrics.
        wandb.errors.Error: The server cannot be reached.
    """
    import wandb

    names = {_full_name(rule, project) for rule in _rules()}
    api = wandb.Api()
    entity = entity or api.default_entity
    return [one for one in _existing(api, entity, _scope(api, project, entity).id) if one.name in names]


def alert_rule_requests(project: str, *, slack: bool | str = False, webhook: str | None = None) -> list[dict[str, Any]]:
    """Return the rules as `alert_rules` would create them; no server is asked, so that ids are left open.

    Raises:
        ValueError: Both Slack and a webhook are asked for.
        ImportError: The installed wandb has no automations on metrics.
    """
    _check(slack, webhook)
    scope = _automations_module().ProjectScope(id=PROJECT_ID, name=project)
    integration = ("slack" if slack else "webhook", INTEGRATION_ID) if slack or webhook else None
    return [
        {
            "name": _full_name(rule, project),
            "description": rule.text,
            "event": json.loads(rule.event(scope).model_dump_json()),
            "action": json.loads(_action(rule, integration).model_dump_json()),
        }
        for rule in _rules()
    ]


def _rules() -> list[AlertRule]:
    """Return the rules that the installed wandb knows."""
    automations = _automations_module()
    return [rule for rule in RULES if hasattr(automations, rule.needs)]


def _automations_module() -> Any:
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


def _apply(
    api: Any,
    rule: AlertRule,
    project: str,
    scope: Any,
    integration: tuple[str, str] | None,
    present: dict[str, Automation],
) -> AppliedRule:
    name, event, action = _full_name(rule, project), rule.event(scope), _action(rule, integration)
    kind = str(event.event_type.value)
    if name not in present:
        api.create_automation(event >> action, name=name, description=rule.text)
        return AppliedRule(name, "created", kind)
    changes: dict[str, Any] = {"event": event, "description": rule.text}
    if integration is not None:
        changes["action"] = action
    if _matches(present[name], changes):
        return AppliedRule(name, "unchanged", kind)
    api.update_automation(present[name], **changes)
    return AppliedRule(name, "updated", kind)


def _matches(automation: Automation, changes: dict[str, Any]) -> bool:
    """Return whether a saved automation is as the changes would make it."""
    event = changes["event"]
    same = automation.description == changes["description"] and automation.event.event_type == event.event_type
    same = same and _numbers_and_words(automation.event.filter) == _numbers_and_words(event.filter)
    if "action" in changes:
        saved, wanted = automation.action, changes["action"]
        same = same and saved.action_type == wanted.action_type
        same = same and getattr(getattr(saved, "integration", None), "id", None) == wanted.integration_id
        names = ("title", "message", "severity", "request_payload")
        same = same and all(getattr(saved, one, None) == getattr(wanted, one, None) for one in names)
    return bool(same)


def _numbers_and_words(value: Any) -> Any:
    """Return a filter as plain values without what is empty, however it is wrapped and encoded."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except ValueError:
            return value
        return _numbers_and_words(decoded) if isinstance(decoded, (dict, list)) else value
    if isinstance(value, dict):
        plain = {key: _numbers_and_words(one) for key, one in value.items()}
        return {key: one for key, one in plain.items() if one not in (None, [], {}, {"$and": []})}
    return [_numbers_and_words(one) for one in value] if isinstance(value, list) else value


def _full_name(rule: AlertRule, project: str) -> str:
    return f"{PREFIX} {project}: {rule.name}"


def _action(rule: AlertRule, integration: tuple[str, str] | None) -> Any:
    automations = _automations_module()
    if integration is None:
        return automations.DoNothing()
    kind, identity = integration
    if kind == "slack":
        return automations.SendNotification(
            integration_id=identity, title=f"{PREFIX}: {rule.name}", message=rule.text, severity=rule.level
        )
    payload = {"rule": rule.name, "level": rule.level, **PAYLOAD}
    return automations.SendWebhook(integration_id=identity, request_payload=payload)


def _check(slack: bool | str, webhook: str | None) -> None:
    if slack and webhook:
        raise ValueError("slack and webhook exclude each other: an automation has one action")


def _scope(api: Any, project: str, entity: str | None) -> Any:
    found = api.project(project, entity)
    try:
        return _automations_module().ProjectScope(id=found.id, name=project)
    except Exception as error:
        raise ValueError(f"project {entity}/{project} was not found; it exists from its first run on") from error


def _existing(api: Any, entity: str | None, scope_id: str) -> Iterator[Automation]:
    return (one for one in api.automations(entity) if one.scope.id == scope_id)


def _integration(api: Any, entity: str | None, slack: bool | str, webhook: str | None) -> tuple[str, str] | None:
    if slack:
        channels = {one.channel_name: one.id for one in reversed([*api.slack_integrations(entity=entity)])}
        wanted = next(reversed(channels), None) if slack is True else slack.removeprefix("#")
        if wanted not in channels:
            what = "Slack integration" if slack is True else f"Slack integration with channel {slack}"
            raise ValueError(f"{entity} has no {what}; integrations are connected in a team's settings in the W&B app")
        return "slack", channels[wanted]
    if webhook:
        hooks = {one.name: one.id for one in api.webhook_integrations(entity=entity)}
        if webhook not in hooks:
            raise ValueError(f"{entity} has no webhook {webhook!r}; there are: {', '.join(sorted(hooks)) or 'none'}")
        return "webhook", hooks[webhook]
    return None
