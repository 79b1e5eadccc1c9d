"""The rows of the heat map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.records import Evidence, History, ModuleFacts, ParameterFacts, Replay, RunFacts
from lightning_gradexplode.report.rows import Rows, find_place, label, rows
from tests.report import examples


def history_of(names: list[str], norms: list[float]) -> History:
    """Return one step with a norm for each parameter."""
    return History(np.array([7]), {}, tuple(names), np.array([norms], dtype=np.float32))


def evidence_of(names: list[str], executed: tuple[str, ...] = ()) -> Evidence:
    """Return evidence of parameters, and of the order in which their modules were executed."""
    parameters = tuple(ParameterFacts(name, (1,), module=name.rpartition(".")[0]) for name in names)
    modules = tuple(ModuleFacts(name, "Linear") for name in executed)
    return Evidence(7, 7, run=RunFacts(modules, bool(executed), parameters))


def test_rows_are_in_the_order_of_execution() -> None:
    """A parameter that is registered first but used last is the last row."""
    names = ["scale", "head.weight", "body.weight", "body.bias"]
    found = rows(history_of(names, [1.0, 2.0, 3.0, 4.0]), evidence_of(names, ("body", "head", "")), None)
    assert found.names == ("body.weight", "body.bias", "head.weight", "scale")
    assert found.norms[:, 0].tolist() == [3.0, 4.0, 2.0, 1.0]
    assert found.is_executed


def test_rows_are_in_the_order_of_execution_of_the_replay() -> None:
    """The order comes from the replay if the run's facts lack it; without both it is that of registration."""
    names = ["b.weight", "a.weight"]
    evidence = Evidence(7, 7, replay=Replay("finite", execution_order=("a", "b")))
    assert rows(history_of(names, [1.0, 2.0]), evidence, None).names == ("a.weight", "b.weight")
    unknown = rows(history_of(names, [1.0, 2.0]), Evidence(7, 7), None)
    assert unknown.names == tuple(names)
    assert not unknown.is_executed


@pytest.mark.parametrize("count", [5, 75, 1000])
def test_the_parameter_at_fault_has_a_row_of_its_own(count: int) -> None:
    """However many parameters there are, its row is marked and holds its norms and no others."""
    names = list(examples.names_of(count))
    random = np.random.default_rng(0)
    norms = random.uniform(0, 1, count).tolist()
    marked = names[2 * count // 3]
    found = rows(history_of(names, norms), evidence_of(names), marked)
    assert found.marked is not None
    assert found.names[found.marked] == marked
    assert found.norms[found.marked, 0] == pytest.approx(norms[names.index(marked)])
    assert len(found.names) <= 122
    assert len(set(found.names)) == len(found.names)
    assert np.sqrt(np.square(found.norms).sum()) == pytest.approx(np.linalg.norm(norms))


def test_a_network_of_48_blocks_has_more_than_a_few_rows() -> None:
    """Neighbours are put together, not the whole trunk."""
    names = [f"trunk.h.{block}.{layer}.{kind}" for block in range(48) for layer in "abcdef" for kind in ("w", "b")]
    found = rows(history_of(names, [1.0] * len(names)), evidence_of(names), None)
    assert 80 <= len(found.names) <= 120


def test_a_module_marks_its_first_parameter() -> None:
    """A place that names a module, or nothing that is in the network."""
    names = ["a.weight", "b.0.weight", "b.0.bias"]
    history, evidence = history_of(names, [1.0, 2.0, 3.0]), evidence_of(names)
    assert rows(history, evidence, "b").marked == 1
    assert rows(history, evidence, "batch field image").marked is None
    assert rows(history, evidence, None).marked is None


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [
        ("a.weight", 20, "a.weight"),
        ("h.0 to 3 (12 parameters)", 20, "h.0 to 3"),
        ("blocks.3.projection_of_the_encoder.weight", 38, "blocks.3.projection\u2026the_encoder.weight"),
        ("model.layers.10.self_attn.q_proj.weight", 37, "model.layers.10.sel\u2026ttn.q_proj.weight"),
        ("trunk.h.12.attention.weight", 16, "\u2026ttention.weight"),
    ],
)
def test_labels_of_neighbors_differ(name: str, letters: int, expected: str) -> None:
    """The longest parts of a name are abbreviated, so that the number of a layer remains; then only the end is kept."""
    assert label(name, letters) == expected
    assert len(expected) <= letters


def test_the_marked_row_is_labeled_without_its_neighbors() -> None:
    """Of ten rows every third one has a label; one next to the marked has none, so that labels do not overlap."""
    table = Rows(tuple("abcdefghij"), np.zeros((10, 1)), 4, True)
    assert table.labeled(every=3) == [0, 4, 9]
    assert replace(table, marked=None).labeled(every=3) == [0, 3, 6, 9]


def test_a_module_is_not_mistaken_for_one_whose_name_begins_alike() -> None:
    """The first parameter of ``layer1`` is meant, and none of ``layer10``."""
    assert find_place(["layer10.weight", "layer1.weight", "layer1.bias"], "layer1") == 1
    assert find_place(["layer10.weight"], "layer1") is None
