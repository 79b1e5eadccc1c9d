"""Alert rules of W&B, sent to a small server on loopback."""

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

WITHOUT_ZSCORE = tuple(name for name in FEATURES if not name.endswith("ZSCORE"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Give a server that the wandb package takes for W&B."""
    one = WandbServer()
    with serving(one) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_SILENT", "true")
        yield one


def filters(requests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Give what is watched for, by metric."""
    found = {}
    for request in requests:
        (inner,) = json.loads(request["eventFilter"])["run_metric_filter"].values()
        found[inner["name"]] = inner
    return found


def test_rules_are_created(server: WandbServer) -> None:
    """Four automations on the contract's metrics, in the project, with the thresholds that the issue names."""
    applied = alert_rules("digits", "team", slack=True)
    assert [rule.outcome for rule in applied] == ["created"] * 4
    created = server.mutations("CreateAutomation")
    watched = filters(created)
    assert set(watched) == {
        f"gradexplode/{name}" for name in ("severity", "nonfinite_count", "grad_norm", "update_ratio")
    }
    severity = watched["gradexplode/severity"]
    assert (severity["cmp_op"], severity["threshold"], severity["agg_op"]) == ("$gte", 3, "MAX")
    assert (watched["gradexplode/nonfinite_count"]["cmp_op"], watched["gradexplode/nonfinite_count"]["threshold"]) == (
        "$gt",
        0,
    )
    assert watched["gradexplode/update_ratio"]["threshold"] == 0.1
    assert watched["gradexplode/grad_norm"]["change_dir"] == "INCREASE"
    assert created[2]["triggeringEventType"] == "RUN_METRIC_ZSCORE"
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


def test_a_changed_threshold_is_put_right(server: WandbServer) -> None:
    """A rule that says something else than ours is updated, and only that one."""
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


def test_without_zscore_a_relative_change_is_watched_for(server: WandbServer) -> None:
    """On a server that does not know z-scores, also at the second call; once it knows them, the rule is updated."""
    server.features = WITHOUT_ZSCORE
    assert alert_rules("digits", "team")[2].event == "RUN_METRIC_CHANGE"
    assert filters(server.mutations("CreateAutomation"))["gradexplode/grad_norm"]["change_type"] == "RELATIVE"
    assert {rule.outcome for rule in alert_rules("digits", "team")} == {"unchanged"}
    server.features = FEATURES
    updated = alert_rules("digits", "team")[2]
    assert (updated.outcome, updated.event) == ("updated", "RUN_METRIC_ZSCORE")


def test_an_older_server_lists_by_project(server: WandbServer) -> None:
    """A server that cannot list an entity's automations is asked for its projects; nothing is created twice."""
    server.features = tuple(name for name in FEATURES if name != "QUERY_AUTOMATIONS_ON_ENTITY")
    alert_rules("digits", "team")
    assert {rule.outcome for rule in alert_rules("digits", "team")} == {"unchanged"}


@pytest.mark.parametrize("features", [FEATURES, WITHOUT_ZSCORE])
@pytest.mark.parametrize("options", [[], ["--slack"], ["--webhook", "pager"]])
def test_the_dry_run_prints_what_is_sent(
    server: WandbServer, capsys: pytest.CaptureFixture[str], options: list[str], features: tuple[str, ...]
) -> None:
    """Each request that reaches the server was printed, but for the ids that only the server knows."""
    server.features = features
    arguments = ["wandb-rules", "--project", "digits", "--entity", "team", *options]
    assert main([*arguments, "--dry-run"]) == 0
    assert not server.inputs
    printed = capsys.readouterr().out.replace(PROJECT_ID, PROJECT["id"])
    printed = printed.replace(INTEGRATION_ID, WEBHOOK["id"] if "pager" in options else SLACK["id"])
    assert main(arguments) == 0
    for sent in server.mutations("CreateAutomation"):
        assert {key: value for key, value in sent.items() if value is not None} in json.loads(printed)
    assert len(json.loads(printed)) == len(server.mutations("CreateAutomation")) + 1


def test_the_dry_run_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor an account."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert len(alert_rule_requests("digits", slack=True)) == 5


def test_a_channel_of_slack_can_be_chosen(server: WandbServer) -> None:
    """By its name, with or without the sign in front."""
    alert_rules("digits", "team", slack="#quiet")
    for request in server.mutations("CreateAutomation"):
        assert request["triggeredActionConfig"]["notificationActionInput"]["integrationID"] == QUIET["id"]


def test_listing(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "RUN_METRIC_ZSCORE" in lines[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--project", "nowhere"], "nowhere"),
        (["--project", "digits", "--webhook", "nobody"], "pager"),
        (["--project", "digits", "--slack", "nobody"], "nobody"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    server: WandbServer, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """A project, a webhook or a channel that does not exist ends the command with status 1, and nothing is sent."""
    assert main(["wandb-rules", "--entity", "team", *options]) == 1
    told = capsys.readouterr().err
    assert told.startswith("gradexplode: ")
    assert message in told
    assert len(told.splitlines()) == 1
    assert not server.inputs


def test_slack_and_a_webhook_exclude_each_other() -> None:
    """In Python as on the command line."""
    with pytest.raises(ValueError, match="exclude"):
        alert_rules("digits", slack=True, webhook="pager")
