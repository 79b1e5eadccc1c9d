"""State in checkpoints: each part is saved and restored separately; a state that does not fit is ignored."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.records.state import plain
from lightning_gradexplode.records.text import describe

VERSION = 2
"""Version of the layout of the monitor's state; 1 is that of version 0.1.0 of the package, which had no such key."""


def save_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind and the state of each part, without parts that cannot be saved.

    Args:
        parts: Objects with ``state_dict``, by name.
    """
    saved = {}
    for name, part in parts.items():
        try:
            saved[name] = {"kind": type(part).__qualname__, "state": plain(part.state_dict())}
        except Exception as error:
            saved[name] = {"kind": type(part).__qualname__, "error": describe(error)}
    return saved


def load_parts(parts: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Restore the state of each part.

    A part that fails to load its state gets its previous state back.

    Args:
        parts: Objects with ``state_dict`` and ``load_state_dict``, by name; the latter may return names of parts within
            it that start fresh.
        saved: What `save_parts` returned, or anything else.

    Returns:
        A line for each part whose state does not fit and is not restored.
    """
    lines = []
    for name, part in parts.items():
        entry = saved.get(name) if isinstance(saved, Mapping) else None
        problem = _problem(part, entry)
        if problem is None:
            before = None
            try:
                before = copy.deepcopy(part.state_dict())
                within = part.load_state_dict(entry["state"]) if entry is not None else None
                lines += [f"{name}: {part_within} starts fresh" for part_within in within or ()]
            except Exception as error:
                problem = describe(error)
                if before is not None:
                    part.load_state_dict(before)
        if problem is not None:
            lines.append(f"{name} starts fresh ({problem})")
    return lines


def _problem(part: Any, entry: Any) -> str | None:
    kind = type(part).__qualname__
    if entry is None:
        return "the checkpoint has no state of it"
    if not isinstance(entry, Mapping) or "kind" not in entry:
        return "its state in the checkpoint is damaged"
    if entry["kind"] != kind:
        return f"the checkpoint has the state of {entry['kind']}, this run uses {kind}"
    if "state" not in entry:
        return f"its state could not be saved: {entry.get('error', 'unknown error')}"
    return None


def upgraded(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state of any version of the package in the current layout.

    Args:
        state: The monitor's state from a checkpoint.
    """
    if "version" in state or not state:
        shown = state.get("evidence")  # of which the diagnosis was a part up to version 0.2.0 of the package
        of_diagnosis = {**shown, "kind": "Diagnoses"} if isinstance(shown, Mapping) else None
        return state if of_diagnosis is None else {**state, "diagnosis": of_diagnosis}
    steering = _mapping(state.get("steering"))
    optimizers = [_upgraded_optimizer(_mapping(one)) for one in state.get("optimizers", ())]
    return {
        "version": VERSION,
        "findings": {"kind": "FindingLog", "state": _mapping(state.get("chronicle"))},
        "schedule": {"kind": "LoggingSchedule", "state": {"alert_until": state.get("alert_until", -1)}},
        "responses": {"kind": "ResponseRunner", "state": dict(steering)},
        "diagnosis": {"kind": "Diagnoses", "state": {}},
        "optimizers": optimizers,
    }


def _upgraded_optimizer(state: Mapping[str, Any]) -> dict[str, Any]:
    policy = state.get("policy")
    return {
        "steps": state.get("steps", 0),
        "clipped": state.get("bound", []),
        "detectors": {"kind": "DetectorSet", "state": _mapping(state.get("bank"))},
        **({} if policy is None else {"policy": policy}),
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
