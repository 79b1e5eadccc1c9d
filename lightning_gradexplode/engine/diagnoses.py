"""The diagnosis of a run, from the evidence of its latest incident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradexplode.diagnose import diagnose, diagnose_calm
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.evidence import EvidenceCollector
from lightning_gradexplode.records import Attempt, Diagnosis
from lightning_gradexplode.records.plain import from_plain, to_plain


class Diagnoses:
    """Diagnoses a run, and keeps the diagnosis that was shown, with which later output agrees.

    Args:
        evidence: The evidence of the run's incidents.
    """

    def __init__(self, evidence: EvidenceCollector) -> None:
        self._evidence = evidence
        self._shown: Diagnosis | None = None

    def current(self, attempts: Sequence[Attempt] = ()) -> Diagnosis | None:
        """Return the diagnosis of the latest incident; without an incident, of any evident fault, None without one.

        Args:
            attempts: The actions of the responses.
        """
        collected, shown = self._evidence, self._shown
        if not collected.has_incident:
            return shown or collect_or_log("the diagnosis", lambda: diagnose_calm(collected.calm_evidence()))
        found = collect_or_log("the diagnosis", lambda: diagnose(collected.evidence(attempts)))
        if found is None or shown is None or shown.step != found.step or _cause(shown) != _cause(found):
            return found
        return shown  # further findings of the incident do not change a diagnosis that was shown

    def shown(self, diagnosis: Diagnosis) -> None:
        """Keep a diagnosis that was shown, so that later output about its incident agrees with it."""
        self._shown = diagnosis

    def state_dict(self) -> dict[str, Any]:
        """Return the last diagnosis that was shown, in plain values."""
        return {"shown": to_plain(self._shown)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        shown = state.get("shown")
        self._shown = None if shown is None else from_plain(Diagnosis, shown)


def _cause(diagnosis: Diagnosis) -> tuple[str, str | None]:
    """Return kind and place of the first cause."""
    return diagnosis.causes[0].kind, diagnosis.causes[0].where
