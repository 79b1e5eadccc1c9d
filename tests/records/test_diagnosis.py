"""A diagnosis on the console, and in plain values by a schema that a reader of ``diagnosis.json`` can hold it to."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from lightning_gradexplode.records import CAUSE_KINDS, Cause, Diagnosis
from lightning_gradexplode.records.diagnosis_schema import diagnosis_schema

FOUND = Diagnosis(
    step=12,
    what="At step 12 the loss is NaN.",
    where="batch[0], row 5",
    since=9,
    causes=(
        Cause("nonfinite-input", "batch[0], row 5", ("`batch[0]` holds 1 NaN element.",), 0.97, ("look at row 5",)),
        Cause("learning-rate", None, (), 0.2, ()),
    ),
    remedies=("look at row 5",),
)
KINDS: dict[str, type] = {"string": str, "object": dict, "array": list, "null": type(None)}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a value fits a schema of the few words that this one uses."""
    types = schema.get("type", [])
    for one in [types] if isinstance(types, str) else types:
        number = isinstance(value, int if one == "integer" else (int, float)) and not isinstance(value, bool)
        if number if one in ("integer", "number") else isinstance(value, KINDS[one]):
            break
    else:
        if types:
            return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, list) and len(value) < schema.get("minItems", 0):
        return False
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        return False
    if isinstance(value, dict):
        if not set(schema["required"]) <= set(value):
            return False
        return all(fits(value[name], part) for name, part in schema["properties"].items())
    return not isinstance(value, list) or all(fits(one, schema["items"]) for one in value)


def test_plain_values_fit_the_schema() -> None:
    """As they are read from a file, too."""
    assert fits(FOUND.as_dict(), diagnosis_schema())
    assert fits(json.loads(json.dumps(FOUND.as_dict(), allow_nan=False)), diagnosis_schema())
    json.dumps(diagnosis_schema(), allow_nan=False)


@pytest.mark.parametrize(
    ("key", "value"), [("step", "12"), ("step", None), ("causes", []), ("version", 0), ("where", 3), ("remedies", [1])]
)
def test_what_does_not_fit_the_schema_is_refused(key: str, value: object) -> None:
    """So that the test above shows something."""
    assert not fits({**FOUND.as_dict(), key: value}, diagnosis_schema())


def test_the_schema_lists_every_kind() -> None:
    """A reader can rely on the kinds that are documented."""
    kind = diagnosis_schema()["properties"]["causes"]["items"]["properties"]["kind"]
    assert tuple(kind["enum"]) == CAUSE_KINDS


def test_a_diagnosis_is_printed_with_rich() -> None:
    """What happened, each cause with its confidence and evidence, and what to do; names in brackets stay."""
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=100, record=True, file=io.StringIO())
    console.print(FOUND)
    console.print(FOUND.causes[0])
    text = console.export_text()
    for words in ("Incident at step 12", "since step 9", "97% nonfinite-input in batch[0], row 5", "20% learning-rate",
                  "\u2022 batch[0] holds 1 NaN element.", "1. Look at row 5"):  # fmt: skip
        assert words in text
    assert text.count("nonfinite-input") == 2


def test_rich_is_imported_only_where_a_diagnosis_is_printed() -> None:
    """A run without a terminal pays nothing for it."""
    code = "import sys, lightning_gradexplode.records; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_alternative_of_little_confidence_is_faint() -> None:
    """It is in the list of causes, and left out where there is room for few words."""
    assert [one.is_faint for one in FOUND.causes] == [False, True]


@pytest.mark.parametrize(
    ("kind", "where", "expected"),
    [
        ("nonfinite-input", "batch[0], row 5", "nonfinite-input in batch[0], row 5"),
        ("learning-rate-jump", "the learning rate at step 40", "learning-rate-jump at step 40"),
        ("depth", None, "depth"),
    ],
)
def test_a_place_follows_the_kind_without_repeating_it(kind: str, where: str | None, expected: str) -> None:
    """As in the console, the page and the loggers."""
    cause = Cause(kind, where, (), 0.7)
    assert cause.kind + cause.location == expected
    assert f"{expected} (" in Diagnosis(1, "", where, None, (cause,), ()).markdown()
