"""The layout of a diagnosis in plain values, as a JSON schema (draft 2020-12)."""

from __future__ import annotations

from typing import Any

from lightning_gradexplode.records.diagnosis import CAUSE_KINDS, SCHEMA_VERSION


def diagnosis_schema() -> dict[str, Any]:
    """Return the JSON schema of `Diagnosis.as_dict`, and of the part of ``diagnosis.json`` with the same keys.

    Its ``version`` is raised whenever a key changes its meaning or goes. Further keys are allowed, since new ones may
    come.
    """
    texts = {"type": "array", "items": {"type": "string"}}
    place = {"type": ["string", "null"]}
    cause = {
        "type": "object",
        "required": ["kind", "where", "evidence", "confidence", "remedies"],
        "properties": {
            "kind": {"type": "string", "enum": list(CAUSE_KINDS)},
            "where": place,
            "evidence": texts,
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "remedies": texts,
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Diagnosis of an incident",
        "type": "object",
        "required": ["version", "step", "since", "what", "where", "causes", "remedies"],
        "properties": {
            "version": {"const": SCHEMA_VERSION},
            "step": {"type": "integer"},
            "since": {"type": ["integer", "null"]},
            "what": {"type": "string"},
            "where": place,
            "causes": {"type": "array", "minItems": 1, "items": cause},
            "remedies": texts,
        },
    }
