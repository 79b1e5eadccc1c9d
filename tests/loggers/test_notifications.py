"""Notifications through apprise, received by a small server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.notifications import VARIABLE
from lightning_gradexplode.records import Cause, Diagnosis, Severity, StepRecord
from tests.loggers.steps import finding

pytest.importorskip("apprise")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:apprise")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Return what a webhook that the environment names gets."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Write nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(VARIABLE, f"json://127.0.0.1:{http.server_port}/hook")
    yield got
    http.shutdown()
    http.server_close()
    thread.join()


def test_alerts_and_diagnoses_are_sent(received: list[dict[str, Any]]) -> None:
    """From the alert level on, once an incident; scalars and other findings are not."""
    loggers = LoggerCollection([])
    loggers.log_batch([StepRecord(step=1, grad_norm=1.0)], [()])
    loggers.finding(finding(Severity.WARNING), "clip", begins_incident=True)
    loggers.finding(finding(Severity.CRITICAL), "clip it", begins_incident=True)
    loggers.finding(finding(Severity.CRITICAL), "clip it")
    loggers.diagnosis(Diagnosis(41, "It grew.", "h.3", 40, (Cause("depth", "h.3", (), 0.8),), ("clip it",)), 41)
    alert, diagnosis = received
    assert alert["title"] == "gradexplode CRITICAL: gradient-growth"
    assert alert["type"] == "failure"
    assert "Do: Clip it." in alert["message"]
    assert "It grew." in diagnosis["message"]


def test_an_address_that_is_none_costs_the_notifications_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One message of ours, in which the address and its secrets are not repeated."""
    monkeypatch.setenv(VARIABLE, "nonsense-with-a-secret")
    LoggerCollection([]).log_batch([StepRecord(step=1, grad_norm=1.0)], [()])
    (message,) = [one.getMessage() for one in caplog.records if one.name == "lightning_gradexplode"]
    assert "notifications failed" in message
    assert "secret" not in message
