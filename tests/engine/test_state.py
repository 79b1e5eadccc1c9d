"""States of earlier versions, in the present layout."""

from __future__ import annotations

from lightning_gradexplode.engine.state import upgraded


def test_the_diagnosis_of_0_2_0_was_a_part_of_the_evidence() -> None:
    """It is found under the name of its own, and other states are as they were."""
    shown = {"shown": {"step": 7}}
    state = {"version": 2, "evidence": {"kind": "EvidenceCollector", "state": shown}, "optimizers": []}
    now = upgraded(state)
    assert now["diagnosis"] == {"kind": "Diagnoses", "state": shown}
    assert {name: now[name] for name in state} == state
    present = {"version": 2, "diagnosis": {"kind": "Diagnoses", "state": {}}}
    assert upgraded(present) == present
