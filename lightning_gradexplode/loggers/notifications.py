"""Notifications without an experiment tracker: Slack, mail, webhooks and others, by ``apprise``."""

from __future__ import annotations

import os

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Diagnosis, Finding, Severity
from lightning_gradexplode.records.text import without_markup

VARIABLE = "GRADEXPLODE_NOTIFY_URLS"
"""Environment variable with the addresses to notify, in apprise's form, separated by spaces."""


class Notifier(LoggerAdapter):
    """Sends alerts, and the diagnosis of an incident, to addresses such as ``slack://...`` or ``mailto://...``.

    Args:
        urls: The addresses, separated by spaces.

    Raises:
        ModuleNotFoundError: ``apprise`` is not installed.
        ValueError: apprise does not support an address.
    """

    takes_histograms = True  # without a message that they are not supported

    def __init__(self, urls: str) -> None:
        super().__init__(self)
        from apprise import Apprise

        self._apprise = Apprise()
        for number, url in enumerate(urls.split(), 1):
            if not self._apprise.add(url):
                # An address contains secrets, so that it is not shown.
                raise ValueError(f"{VARIABLE} must hold addresses that apprise supports; number {number} is none")

    @classmethod
    def from_environment(cls) -> Notifier | None:
        """Build a notifier from the environment; None if the variable is not set."""
        urls = os.environ.get(VARIABLE, "")
        return cls(urls) if urls.strip() else None

    def scalars(self, values: object, step: int) -> None:
        """Drop scalars."""

    def histograms(self, histograms: object, step: int) -> None:
        """Drop histograms."""

    def alert(self, finding: Finding, advice: str = "") -> None:
        """Send the finding, and the advice."""
        kind = "failure" if finding.severity is Severity.CRITICAL else "warning"
        self._send(f"{PREFIX} {finding.severity.name}: {finding.sign}", f"{finding}\n{advice}", kind)

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Send the diagnosis."""
        self._send(f"{PREFIX}: diagnosis of step {diagnosis.step}", without_markup(diagnosis.markdown()), "info")

    def _send(self, title: str, body: str, kind: str) -> None:
        if not self._apprise.notify(body=body, title=title, notify_type=kind):
            raise ConnectionError("a notification could not be sent")
