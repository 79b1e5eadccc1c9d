"""What processes tell each other besides the numbers of a step."""

from __future__ import annotations

import itertools

import pytest

from lightning_gradexplode.engine.note import Note

SIGNS = [f"sign-{index:02}" for index in range(40)]
"""More signs than there are detectors."""


@pytest.mark.parametrize("measures_modules", [False, True])
@pytest.mark.parametrize("off", [(), SIGNS[:1], SIGNS[-1:], SIGNS[1::3], SIGNS])
def test_a_note_is_a_number_that_says_the_same(measures_modules: bool, off: list[str]) -> None:
    """The number fits into what the exchange of a step carries, and has all of the note."""
    note = Note(measures_modules, frozenset(off))
    number = note.number(SIGNS)
    assert 0 <= number < 2**50
    assert Note.of_all([number], SIGNS) == note


def test_what_is_off_anywhere_is_off_and_what_all_measure_is_measured() -> None:
    """That is the same whatever the order of the processes."""
    notes = [Note(True, frozenset(SIGNS[:2])), Note(True, frozenset(SIGNS[5:6])), Note(True, frozenset())]
    for some in itertools.permutations(notes):
        numbers = [one.number(SIGNS) for one in some]
        assert Note.of_all(numbers, SIGNS) == Note(True, frozenset([*SIGNS[:2], *SIGNS[5:6]]))
        assert not Note.of_all([*numbers, Note(False, frozenset()).number(SIGNS)], SIGNS).measures_modules
