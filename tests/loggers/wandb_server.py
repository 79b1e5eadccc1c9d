"""A small W&B server on loopback: as much of its GraphQL as automations and saved views need."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FEATURES = (
    "AUTOMATION_EVENT_RUN_METRIC",
    "AUTOMATION_EVENT_RUN_METRIC_CHANGE",
    "AUTOMATION_EVENT_RUN_STATE",
    "AUTOMATION_ACTION_NO_OP",
    "QUERY_AUTOMATIONS_ON_ENTITY",
)

PROJECT = {"__typename": "Project", "id": "UHJvamVjdDox", "name": "digits", "entityName": "team"}
SLACK = {"__typename": "SlackIntegration", "id": "U2xhY2s6MQ==", "teamName": "us", "channelName": "alerts"}
QUIET = {"__typename": "SlackIntegration", "id": "U2xhY2s6Mg==", "teamName": "us", "channelName": "quiet"}
WEBHOOK = {"__typename": "GenericWebhookIntegration", "id": "SG9vazox", "name": "pager", "urlEndpoint": "http://x.org"}


class WandbServer:
    """What the server holds, and what it was asked.

    Args:
        features: Names of the features that it says it has.
    """

    def __init__(self, features: tuple[str, ...] = FEATURES) -> None:
        self.features = features
        self.automations: dict[str, dict[str, Any]] = {}
        self.inputs: list[tuple[str, dict[str, Any]]] = []
        self.unknown: list[str] = []

    def mutations(self, kind: str) -> list[dict[str, Any]]:
        """Return the inputs of the mutations of a kind, in order."""
        return [given for name, given in self.inputs if name == kind]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Answer a query; None where the operation is not known."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else ""
        if name in ("Viewer", "GetViewer", "GetDefaultEntity"):
            return {"viewer": {"id": "VXNlcjox", "entity": "team", "username": "me", "name": "me", "flags": "{}"}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": [{"name": one, "isEnabled": True} for one in self.features]}}
        if name == "GetProject":
            known = variables["name"] == "digits" and variables["entity"] == "team"
            extra = {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            return {"project": {**PROJECT, **extra} if known else None}
        if name == "IntegrationsByEntity":
            return {"entity": {"integrations": _page([SLACK, QUIET, WEBHOOK])}}
        if name == "GetEntityAutomations":
            return {"scope": {"triggers": _page([*self.automations.values()])}}
        if name == "GetEntityAutomationsLegacy":
            project = {"__typename": "Project", "triggers": [*self.automations.values()]}
            return {"scope": {"projects": _page([project])}}
        if name in ("CreateAutomation", "UpdateAutomation"):
            return {"result": {"trigger": self._save(name, variables["input"])}}
        if name == "UpsertView2":
            self.inputs.append((name, variables))
            return {"upsertView": {"view": {"id": "VXNlclZpZXc6MQ==", "name": variables["name"]}, "inserted": True}}
        self.unknown.append(name)
        return None

    def _save(self, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        self.inputs.append((kind, given))
        known = self.automations.get(given.get("id", ""), {})
        merged = {**known.get("given", {}), **{key: value for key, value in given.items() if value is not None}}
        identity = given.get("id") or f"VHJpZ2dlcjo{len(self.automations)}"
        self.automations[identity] = {
            "__typename": "Trigger",
            "id": identity,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "name": merged["name"],
            "description": merged["description"],
            "enabled": merged["enabled"],
            "scope": PROJECT,
            "event": {
                "__typename": "FilterEventTriggeringCondition",
                "eventType": merged["triggeringEventType"],
                "filter": merged["eventFilter"],
            },
            "action": _action(merged["triggeredActionConfig"]),
            "given": merged,
        }
        return self.automations[identity]


def _action(config: dict[str, Any]) -> dict[str, Any]:
    if sent := config.get("notificationActionInput"):
        return {
            "__typename": "NotificationTriggeredAction",
            "integration": next(one for one in (SLACK, QUIET) if one["id"] == sent["integrationID"]),
            **{key: sent[key] for key in ("title", "message", "severity")},
        }
    if sent := config.get("genericWebhookActionInput"):
        return {
            "__typename": "GenericWebhookTriggeredAction",
            "integration": WEBHOOK,
            "requestPayload": sent["requestPayload"],
        }
    return {"__typename": "NoOpTriggeredAction", "noOp": True}


def _page(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": node} for node in nodes]}


@contextmanager
def serving(server: WandbServer) -> Iterator[str]:
    """Serve on loopback, and return the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":  # wandb's telemetry
                self.send_error(404)
                return
            asked = json.loads(body)
            data = server.answer(asked["query"], asked.get("variables") or {})
            body = json.dumps({"data": data} if data is not None else {"errors": [{"message": "unknown"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
