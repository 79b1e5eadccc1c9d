"""Alert rules for Weights & Biases: what its server shall watch in our metrics, and whom it tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_gradexplode.detect.weights import LargeUpdate
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Severity

if TYPE_CHECKING:
    from wandb.automations import Automation

PROJECT_ID, INTEGRATION_ID = "<id of the project>", "<id of the integration>"
"""Stand in a dry run for what only the server knows."""

PAYLOAD = {
    "source": "lightning_gradexplode",
    "event_type": "${event_type}",
    "entity_name": "${entity_name}",
    "project_name": "${project_name}",
}
"""What a webhook gets, besides the rule's name; W&B fills in what stands in braces."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One rule over one of our metrics.

    Args:
        name: A few words; the project's name is put before them, so that the name is unique in the whole entity.
        level: ``"ERROR"`` or ``"WARN"``.
        text: A sentence for those who are told.
        conditions: What W&B shall watch for, as the arguments of its metric filters; where the server does not know
            the first one, the next.
    """

    name: str
    level: Literal["ERROR", "WARN"]
    text: str
    conditions: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """What became of a rule.

    Args:
        name: The automation's name in W&B.
        outcome: ``"created"``, ``"updated"`` or ``"unchanged"``.
        event: The kind of event that the server accepted, such as ``"RUN_METRIC_ZSCORE"``.
    """

    name: str
    outcome: Literal["created", "updated", "unchanged"]
    event: str


def _above(metric: str, threshold: float, operator: str = "$gt", window: int = 1) -> dict[str, Any]:
    """Let the largest of the last values be compared; W&B has no test for NaN, so the metric has to be finite."""
    return {
        "name": f"{PREFIX}/{metric}",
        "agg": "MAX",
        "window": window,
        "cmp": operator,
        "threshold": threshold,
    }


RULES = (
    AlertRule(
        "the run is exploding",
        "ERROR",
        "A critical finding: left alone, the run will not recover.",
        (_above("severity", int(Severity.CRITICAL), "$gte"),),
    ),
    AlertRule(
        "gradients are not finite",
        "ERROR",
        "NaN or infinite gradient elements. With a gradient scaler a few early ones are normal.",
        (_above("nonfinite_count", 0),),
    ),
    AlertRule(
        "the gradient norm leaps",
        "WARN",
        "The gradient norm is far above its last values.",
        (
            {"name": f"{PREFIX}/grad_norm", "window": 30, "threshold": 6.0, "change_dir": "INCREASE"},
            {
                "name": f"{PREFIX}/grad_norm",
                "agg": "AVERAGE",
                "window": 1,
                "prior_window": 10,
                "change_type": "RELATIVE",
                "change_dir": "INCREASE",
                "threshold": 9.0,  # ten times the average of the ten values before
            },
        ),
    ),
    AlertRule(
        "updates are too large",
        "WARN",
        "The weights change by more than a tenth in one step; usual is a thousandth.",
        (_above("update_ratio", LargeUpdate().limit),),
    ),
)
"""The rules. Severity and non-finite count are always finite, so they hold when a norm is NaN."""


def alert_rules(
    project: str,
    entity: str | None = None,
    *,
    slack: bool | str = False,
    webhook: str | None = None,
) -> list[AppliedRule]:
    """Create the alert rules as Automations of a W&B project, or bring those of an earlier call up to date.

    A second call changes nothing. A rule that was switched off in the app stays off; and where neither Slack nor a
    webhook is asked for, an existing rule keeps the action that it has, and a new one gets none: it only shows in the
    project's Automations page, where an action can be chosen.

    Args:
        project: The project; it has to exist.
        entity: The team or user that owns it; None takes the account's default.
        slack: Send to the entity's first Slack integration, or to the one of this channel.
        webhook: Call the entity's webhook integration of this name.

    Raises:
        ValueError: The project or the integration does not exist, or both Slack and a webhook are asked for.
        wandb.errors.Error: The server could not be asked, or refused.
    """
    import wandb

    _check(slack, webhook)
    api = wandb.Api()
    entity = entity or api.default_entity
    scope = _scope(api, project, entity)
    integration = _integration(api, entity, slack, webhook)
    present = {one.name: one for one in _automations(api, entity, scope.id)}
    return [_apply(api, rule, project, scope, integration, present) for rule in RULES]


def existing_alert_rules(project: str, entity: str | None = None) -> list[Automation]:
    """List the alert rules that `alert_rules` has created in a project.

    Raises:
        ValueError: The project does not exist.
        wandb.errors.Error: The server could not be asked.
    """
    import wandb

    api = wandb.Api()
    entity = entity or api.default_entity
    names = {_full_name(rule, project) for rule in RULES}
    return [one for one in _automations(api, entity, _scope(api, project, entity).id) if one.name in names]


def alert_rule_requests(project: str, *, slack: bool | str = False, webhook: str | None = None) -> list[dict[str, Any]]:
    """Give what `alert_rules` would send to create the rules; no server is asked, so ids are left open.

    Of a rule that has a second condition for servers that do not know its first one, both are given, in this order.

    Raises:
        ValueError: Both Slack and a webhook are asked for.
    """
    from wandb.automations import ProjectScope
    from wandb.automations._inputs import prepare_to_create

    _check(slack, webhook)
    scope = ProjectScope(id=PROJECT_ID, name=project)
    integration = ("slack" if slack else "webhook", INTEGRATION_ID) if slack or webhook else None
    return [
        prepare_to_create(
            name=_full_name(rule, project),
            description=rule.text,
            event=_event(scope, condition),
            action=_action(rule, integration),
        ).model_dump()
        for rule in RULES
        for condition in rule.conditions
    ]


def _apply(
    api: Any,
    rule: AlertRule,
    project: str,
    scope: Any,
    integration: tuple[str, str] | None,
    present: dict[str, Automation],
) -> AppliedRule:
    from wandb.errors import UnsupportedError

    name = _full_name(rule, project)
    for condition in rule.conditions:
        event = _event(scope, condition)
        kind = str(event.event_type.value)
        try:
            if name not in present:
                api.create_automation(event >> _action(rule, integration), name=name, description=rule.text)
                return AppliedRule(name, "created", kind)
            changes = {"event": event, "description": rule.text}
            if integration is not None:
                changes["action"] = _action(rule, integration)
            if not _differs(present[name], changes):
                return AppliedRule(name, "unchanged", kind)
            api.update_automation(present[name], **changes)
            return AppliedRule(name, "updated", kind)
        except UnsupportedError:
            if condition is rule.conditions[-1]:
                raise
    raise AssertionError("every rule has a condition")


def _differs(automation: Automation, changes: dict[str, Any]) -> bool:
    """Tell whether an update would send anything else than what the server has."""
    from wandb.automations._inputs import prepare_to_update

    return bool(prepare_to_update(automation) != prepare_to_update(automation, **changes))


def _full_name(rule: AlertRule, project: str) -> str:
    return f"{PREFIX} {project}: {rule.name}"


def _event(scope: Any, condition: dict[str, Any]) -> Any:
    kinds = _kinds()
    if "cmp" in condition:
        kind = kinds.MetricThresholdFilter
    else:
        kind = kinds.MetricChangeFilter if "change_type" in condition else kinds.MetricZScoreFilter
    return kinds.OnRunMetric(scope=scope, filter=kind(**condition))


def _action(rule: AlertRule, integration: tuple[str, str] | None) -> Any:
    kinds = _kinds()
    if integration is None:
        return kinds.DoNothing()
    kind, identity = integration
    if kind == "slack":
        return kinds.SendNotification(
            integration_id=identity, title=f"{PREFIX}: {rule.name}", message=rule.text, severity=rule.level
        )
    payload = {"rule": rule.name, "level": rule.level, **PAYLOAD}
    return kinds.SendWebhook(integration_id=identity, request_payload=payload)


def _kinds() -> Any:
    """Give the classes of W&B's automations; untyped, for they take other arguments than their annotations say."""
    from wandb import automations

    return automations


def _check(slack: bool | str, webhook: str | None) -> None:
    if slack and webhook:
        raise ValueError("slack and webhook exclude each other: an automation has one action")


def _scope(api: Any, project: str, entity: str | None) -> Any:
    from wandb.automations import ProjectScope

    found = api.project(project, entity)
    try:
        return ProjectScope(id=found.id, name=project)
    except Exception as error:
        raise ValueError(f"project {entity}/{project} was not found; it exists from its first run on") from error


def _automations(api: Any, entity: str | None, scope_id: str) -> Iterator[Automation]:
    return (one for one in api.automations(entity) if one.scope.id == scope_id)


def _integration(api: Any, entity: str | None, slack: bool | str, webhook: str | None) -> tuple[str, str] | None:
    if slack:
        channels = {one.channel_name: one.id for one in reversed([*api.slack_integrations(entity=entity)])}
        wanted = next(reversed(channels), None) if slack is True else slack.removeprefix("#")
        if wanted not in channels:
            what = "Slack integration" if slack is True else f"Slack integration with channel {slack}"
            raise ValueError(f"{entity} has no {what}; a team's settings in the W&B app is where one is connected")
        return "slack", channels[wanted]
    if webhook:
        hooks = {one.name: one.id for one in api.webhook_integrations(entity=entity)}
        if webhook not in hooks:
            raise ValueError(f"{entity} has no webhook {webhook!r}; there are: {', '.join(sorted(hooks)) or 'none'}")
        return "webhook", hooks[webhook]
    return None
