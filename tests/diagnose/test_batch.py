"""What the fields of a batch are for, and how they are named."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.batch import inputs, place_of, rows_of, targets
from lightning_gradexplode.records import Evidence, LossTerm, Replay
from tests.diagnose.evidence import batch, field, labels, operand


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("[0]", "[1]"), ["[1]"]),
        (("image", "label"), ["label"]),
        (("target", "input"), ["target"]),
        (("input_ids", "attention_mask", "labels"), ["labels"]),
        (("image", "mask"), ["mask"]),
        (("batch",), []),
    ],
)
def test_targets_are_known_by_name_or_place(names: tuple[str, ...], expected: list[str]) -> None:
    """Targets are recognized by their names; in a tuple the last field is the target."""
    evidence = Evidence(0, 0, batch=batch(*(field(name) for name in names)))
    assert [one.name for one in targets(evidence)] == expected


def test_what_a_loss_takes_is_the_target_whatever_its_name() -> None:
    """A field with the elements that the loss function took is the target."""
    cover = field("cover", least=0.0, greatest=97.0)
    term = LossTerm("mse_loss", (operand(shape=(16, 8)), operand(None, 0.0, 97.0, shape=(16, 8))))
    evidence = Evidence(0, 0, batch=batch(cover, field("image")), replay=Replay("finite", losses=(term,)))
    assert targets(evidence) == [cover]
    assert [one.name for one in inputs(evidence)] == ["image"]


def test_the_inputs_of_an_autoencoder_are_inputs() -> None:
    """The only field of a batch is no target, even if the loss takes it."""
    only = field("[0]")
    term = LossTerm("mse_loss", (operand(shape=(16, 8)), operand(None, -3.0, 3.0, shape=(16, 8))))
    evidence = Evidence(0, 0, batch=batch(only), replay=Replay("finite", losses=(term,)))
    assert targets(evidence) == []
    assert inputs(evidence) == [only]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("[0]", "batch[0]"),
        ("image", 'batch["image"]'),
        ("labels.boxes", 'batch["labels"]["boxes"]'),
        ("[1].mask", 'batch[1]["mask"]'),
        ("batch", "batch"),
    ],
)
def test_a_field_is_written_as_in_code(name: str, code: str) -> None:
    """The place of a field is an expression that the user can copy."""
    assert place_of(labels(name)) == code


def test_rows_are_listed_up_to_six() -> None:
    """Many rows are counted."""
    assert rows_of([5]) == "row 5"
    assert rows_of([1, 4, 9]) == "rows 1, 4 and 9"
    assert rows_of(range(10)) == "rows 0, 1, 2, 3, 4, 5 and 4 more"


@pytest.mark.parametrize("taken", [True, False])
def test_the_only_field_of_a_graph_is_a_target_if_a_loss_took_it_as_one(taken: bool) -> None:
    """It is no autoencoder whose target is its input."""
    names = ["target of huber_loss"] if taken else ["input of net.0"]
    evidence = Evidence(0, 0, batch=batch(*(field(name) for name in names)))
    assert [one.name for one in targets(evidence)] == (names if taken else [])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("float32", "int64", "float32", "int64"), ['["a"][1]', '["b"][1]']),  # two loaders, as in a CombinedLoader
        (("float32", "float32", "int64", "int64"), ['["b"][0]', '["b"][1]']),  # two inputs, and two targets
        (("float32", "float32", "float32", "float32"), ['["b"][0]', '["b"][1]']),  # it is not known which
    ],
)
def test_each_of_several_loaders_has_its_own_targets(kinds: tuple[str, ...], expected: list[str]) -> None:
    """The inputs of the second one are no targets of the first."""
    names = ('["a"][0]', '["a"][1]', '["b"][0]', '["b"][1]')
    fields = [field(name, dtype=kind) for name, kind in zip(names, kinds, strict=True)]
    evidence = Evidence(0, 0, batch=batch(*fields))
    assert [one.name for one in targets(evidence)] == expected
