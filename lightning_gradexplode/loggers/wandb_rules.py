"""Alert rules for Weights & Biases: automations on the metrics that the monitor logs, and on the state of runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_gradexplode.loggers.wandb_events import AlertRule, action_of, automations_module, full_name, known_rules

if TYPE_CHECKING:
    from wandb.automations import Automation

PROJECT_ID, INTEGRATION_ID = "<id of the project>", "<id of the integration>"
"""Placeholders in a dry run for values that only the server has."""


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """The result for one rule.

    Args:
        name: The automation's name in W&B.
        outcome: ``"created"``, ``"updated"`` or ``"unchanged"``.
        event: The kind of event, such as ``"RUN_METRIC_CHANGE"``.
    """

    name: str
    outcome: Literal["created", "updated", "unchanged"]
    event: str


def alert_rules(
    project: str, entity: str | None = None, *, slack: bool | str = False, webhook: str | None = None
) -> list[AppliedRule]:
    """Create the alert rules as automations of a W&B project, or update those of an earlier call.

    A second call with the same arguments changes nothing. A rule that was disabled in the app stays disabled. Without
    `slack` and `webhook`, an existing rule keeps its action and a new one has none: it is listed on the project's page
    of automations, where an action can be chosen.

    Args:
        project: The project; it must exist.
        entity: The team or user that owns it; None for the account's default.
        slack: True to send to the entity's first Slack integration, or the channel of an integration.
        webhook: Name of the webhook integration of the entity that is called.

    Returns:
        The result for each rule.

    Raises:
        ValueError: The project or the integration does not exist, or both `slack` and `webhook` are given.
        ImportError: The installed wandb has no automations on metrics (wandb < 0.21).
        wandb.errors.Error: The server cannot be reached, or refuses the request.
    """
    import wandb

    _check(slack, webhook)
    rules = known_rules()
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

    names = {full_name(rule, project) for rule in known_rules()}
    api = wandb.Api()
    entity = entity or api.default_entity
    return [one for one in _existing(api, entity, _scope(api, project, entity).id) if one.name in names]


def alert_rule_requests(project: str, *, slack: bool | str = False, webhook: str | None = None) -> list[dict[str, Any]]:
    """Return the rules as `alert_rules` would create them, without contacting the server, with placeholders for ids.

    Raises:
        ValueError: Both `slack` and `webhook` are given.
        ImportError: The installed wandb has no automations on metrics.
    """
    _check(slack, webhook)
    scope = automations_module().ProjectScope(id=PROJECT_ID, name=project)
    integration = ("slack" if slack else "webhook", INTEGRATION_ID) if slack or webhook else None
    return [
        {
            "name": full_name(rule, project),
            "description": rule.text,
            "event": json.loads(rule.event(scope).model_dump_json()),
            "action": json.loads(action_of(rule, integration).model_dump_json()),
        }
        for rule in known_rules()
    ]


def _apply(
    api: Any,
    rule: AlertRule,
    project: str,
    scope: Any,
    integration: tuple[str, str] | None,
    present: dict[str, Automation],
) -> AppliedRule:
    name, event, action = full_name(rule, project), rule.event(scope), action_of(rule, integration)
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
    """Return whether the changes would leave a saved automation as it is."""
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
    """Return a filter as plain values, decoded, without empty ones."""
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


def _check(slack: bool | str, webhook: str | None) -> None:
    if slack and webhook:
        raise ValueError("slack and webhook cannot be combined: an automation has one action")


def _scope(api: Any, project: str, entity: str | None) -> Any:
    found = api.project(project, entity)
    try:
        return automations_module().ProjectScope(id=found.id, name=project)
    except Exception as error:
        raise ValueError(f"project {entity}/{project} was not found; a project exists once it has a run") from error


def _existing(api: Any, entity: str | None, scope_id: str) -> Iterator[Automation]:
    return (one for one in api.automations(entity) if one.scope.id == scope_id)


def _integration(api: Any, entity: str | None, slack: bool | str, webhook: str | None) -> tuple[str, str] | None:
    if slack:
        channels = {one.channel_name: one.id for one in reversed([*api.slack_integrations(entity=entity)])}
        wanted = next(reversed(channels), None) if slack is True else slack.removeprefix("#")
        if wanted not in channels:
            what = "Slack integration" if slack is True else f"Slack integration with channel {slack}"
            raise ValueError(f"{entity} has no {what}; connect integrations in the team's settings in the W&B app")
        return "slack", channels[wanted]
    if webhook:
        hooks = {one.name: one.id for one in api.webhook_integrations(entity=entity)}
        if webhook not in hooks:
            raise ValueError(f"{entity} has no webhook {webhook!r}; there are: {', '.join(sorted(hooks)) or 'none'}")
        return "webhook", hooks[webhook]
    return None
