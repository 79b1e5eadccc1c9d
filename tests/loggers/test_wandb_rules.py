"""Alert rules and saved views of W&B, sent to a small server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_gradexplode.cli import main
from lightning_gradexplode.loggers.wandb_rules import (
    INTEGRATION_ID,
    PROJECT_ID,
    alert_rule_requests,
    alert_rules,
    existing_alert_rules,
)
from tests.loggers.wandb_server import FEATURES, PROJECT, QUIET, SLACK, WEBHOOK, WandbServer, serving

# wandb, about a field of its own that it reads itself.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Start a local server that the wandb package uses in place of W&B's."""
    one = WandbServer()
    with serving(one) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_SILENT", "true")
        yield one


def filters(requests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the filters on metrics, by metric."""
    found = {}
    for request in requests:
        metric = json.loads(request["eventFilter"]).get("run_metric_filter")
        if metric:
            (inner,) = metric.values()
            found[inner["name"]] = inner
    return found


def test_rules_are_created_with_documented_thresholds(server: WandbServer) -> None:
    """Three automations on the contract's metrics and one on failed runs, with the documented thresholds."""
    applied = alert_rules("digits", "team", slack=True)
    assert [rule.outcome for rule in applied] == ["created"] * 4
    assert [rule.event for rule in applied] == ["RUN_METRIC", "RUN_METRIC_CHANGE", "RUN_METRIC", "RUN_STATE"]
    created = server.mutations("CreateAutomation")
    watched = filters(created)
    assert set(watched) == {f"gradexplode/{name}" for name in ("severity", "grad_norm", "update_ratio")}
    severity, norm = watched["gradexplode/severity"], watched["gradexplode/grad_norm"]
    assert (severity["cmp_op"], severity["threshold"], severity["agg_op"]) == ("$gte", 3, "MAX")
    assert watched["gradexplode/update_ratio"]["threshold"] == 0.1
    assert (norm["change_type"], norm["change_dir"], norm["change_amount"]) == ("RELATIVE", "INCREASE", 9.0)
    assert (norm["current_window_size"], norm["prior_window_size"]) == (1, 10)
    assert "FAILED" in created[3]["eventFilter"]
    for request in created:
        assert request["scopeID"] == PROJECT["id"]
        assert request["triggeredActionConfig"]["notificationActionInput"]["integrationID"] == SLACK["id"]
    assert not server.unknown


def test_a_second_call_changes_nothing(server: WandbServer) -> None:
    """Neither with nor without an action asked for, and a rule that was switched off stays off."""
    alert_rules("digits", "team", slack=True)
    next(iter(server.automations.values()))["enabled"] = False
    sent = len(server.inputs)
    for slack in (True, False):
        assert {rule.outcome for rule in alert_rules("digits", "team", slack=slack)} == {"unchanged"}
    assert len(server.inputs) == sent


def test_another_action_is_an_update(server: WandbServer) -> None:
    """The same automations get the new action, and stay as enabled as they were."""
    alert_rules("digits", "team")
    first = next(iter(server.automations.values()))
    first["enabled"] = first["given"]["enabled"] = False
    applied = alert_rules("digits", "team", webhook="pager")
    assert [rule.outcome for rule in applied] == ["updated"] * 4
    assert len(server.automations) == 4
    for request in server.mutations("UpdateAutomation"):
        payload = json.loads(request["triggeredActionConfig"]["genericWebhookActionInput"]["requestPayload"])
        assert request["triggeredActionConfig"]["genericWebhookActionInput"]["integrationID"] == WEBHOOK["id"]
        assert payload["rule"] in request["name"]
    assert not first["enabled"]
    assert not next(iter(server.automations.values()))["enabled"]


def test_a_changed_threshold_is_restored(server: WandbServer) -> None:
    """Only a rule with other content is updated."""
    alert_rules("digits", "team")
    first = next(iter(server.automations.values()))
    first["event"]["filter"] = first["event"]["filter"].replace('"threshold":3', '"threshold":2')
    assert [rule.outcome for rule in alert_rules("digits", "team")] == [
        "updated",
        "unchanged",
        "unchanged",
        "unchanged",
    ]
    assert filters(server.mutations("UpdateAutomation"))["gradexplode/severity"]["threshold"] == 3


def test_older_versions_of_wandb_get_the_rules_that_they_support(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without events of run states there are three rules; without automations on metrics an error names the version."""
    from wandb import automations

    monkeypatch.delattr(automations, "OnRunState")
    assert len(alert_rule_requests("digits")) == 3
    monkeypatch.delattr(automations, "OnRunMetric")
    with pytest.raises(ImportError, match=r"alert rules need wandb >= 0\.21, got "):
        alert_rule_requests("digits")


def test_an_older_server_lists_by_project(server: WandbServer) -> None:
    """A server that cannot list an entity's automations is asked for its projects; nothing is created twice."""
    server.features = tuple(name for name in FEATURES if name != "QUERY_AUTOMATIONS_ON_ENTITY")
    alert_rules("digits", "team")
    assert {rule.outcome for rule in alert_rules("digits", "team")} == {"unchanged"}


@pytest.mark.parametrize("options", [[], ["--slack"], ["--webhook", "pager"]])
def test_the_dry_run_prints_what_is_sent(
    server: WandbServer, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """Each rule that reaches the server was printed, with its filter and its action."""
    arguments = ["wandb-rules", "--project", "digits", "--entity", "team", *options]
    assert main([*arguments, "--dry-run"]) == 0
    assert not server.inputs
    printed = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    for rule, sent in zip(printed, server.mutations("CreateAutomation"), strict=True):
        assert (rule["name"], rule["description"]) == (sent["name"], sent["description"])
        assert rule["event"]["event_type"] == sent["triggeringEventType"]
        assert rule["event"]["scope"]["id"] == PROJECT_ID
        metric = json.loads(rule["event"]["filter"]).get("run_metric_filter")
        assert metric == json.loads(sent["eventFilter"]).get("run_metric_filter")
        assert rule["action"].get("integration_id") == (INTEGRATION_ID if options else None)


def test_the_dry_run_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor an account."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert len(alert_rule_requests("digits", slack=True)) == 4


def test_a_channel_of_slack_can_be_chosen(server: WandbServer) -> None:
    """By its name, with or without the sign in front."""
    alert_rules("digits", "team", slack="#quiet")
    for request in server.mutations("CreateAutomation"):
        assert request["triggeredActionConfig"]["notificationActionInput"]["integrationID"] == QUIET["id"]


def test_the_command_lists_only_own_rules(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The command lists our rules with their state and kind; those of others are left out."""
    alert_rules("digits", "team")
    next(iter(server.automations.values()))["enabled"] = False
    foreign = {**next(iter(server.automations.values())), "id": "Zm9yZWlnbg==", "name": "someone else's"}
    server.automations["foreign"] = foreign
    assert len(existing_alert_rules("digits", "team")) == 4
    assert main(["wandb-rules", "--project", "digits", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("off")
    assert "RUN_STATE" in lines[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--project", "nowhere"], "nowhere"),
        (["--project", "digits", "--webhook", "nobody"], "pager"),
        (["--project", "digits", "--slack", "nobody"], "nobody"),
    ],
)
def test_what_is_missing_is_reported_in_one_line(
    server: WandbServer, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """A project, a webhook or a channel that does not exist ends the command with status 1, and nothing is sent."""
    assert main(["wandb-rules", "--entity", "team", *options]) == 1
    told = capsys.readouterr().err
    assert told.startswith("gradexplode: ")
    assert message in told
    assert len(told.splitlines()) == 1
    assert not server.inputs


def test_slack_and_a_webhook_cannot_be_combined() -> None:
    """In Python as on the command line."""
    with pytest.raises(ValueError, match="combined"):
        alert_rules("digits", slack=True, webhook="pager")


@pytest.mark.filterwarnings("ignore:.*")  # those of wandb-workspaces
def test_a_view_is_saved_with_the_metrics_of_the_monitor(
    server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command sends one view whose panels show the monitor's metrics, and prints its address."""
    assert main(["wandb-workspace", "--project", "digits", "--entity", "team"]) == 0
    (view,) = server.mutations("UpsertView2")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "digits", "Gradient explosion")
    (section,) = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    shown = {metric for panel in section["panels"] for metric in panel["config"]["metrics"]}
    assert {"gradexplode/grad_norm", "gradexplode/update_ratio", "gradexplode/severity"} <= shown
    assert "/team/digits?nw=" in capsys.readouterr().out
    assert not server.unknown
