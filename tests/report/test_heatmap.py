"""The heat map of gradient norms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lightning_gradexplode.measure.parameter_names import by_module
from lightning_gradexplode.report.heatmap import COLORS, DECADES, NONFINITE, colored, draw, grouped, png


def test_larger_norms_have_later_colors() -> None:
    """Colors go from the first one to the last one with the logarithm, and what is not finite has its own."""
    norms = np.array([[1.0, 10.0], [100.0, 1000.0], [np.inf, np.nan]])
    pixels, low, high = colored(norms)
    assert pixels.shape == (2, 3, 3)
    assert (low, high) == (0.0, 3.0)
    assert tuple(pixels[0, 0]) == tuple(COLORS[0])
    assert tuple(pixels[1, 1]) == tuple(COLORS[-1])
    assert tuple(pixels[0, 2]) == tuple(pixels[1, 2]) == NONFINITE


@pytest.mark.parametrize(
    "norms",
    [
        np.zeros((3, 2)),
        np.full((2, 2), np.nan),
        np.full((4, 1), 1e30),
        np.array([[1e-30, 1e30]]),
        np.array([[0.0, 5.0]]),
    ],
    ids=["zeros", "NaN", "one value", "tiny and huge", "zero and five"],
)
def test_any_norms_have_a_scale(norms: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """The scale's ends are finite and apart, and not too far apart."""
    _, low, high = colored(norms)
    assert 1.0 <= high - low <= DECADES


def test_parameters_of_a_module_share_a_row_where_there_are_many() -> None:
    """Norms of a module are those of its parameters together."""
    names = [f"block.{block}.{layer}.{kind}" for block in range(30) for layer in "ab" for kind in ("weight", "bias")]
    rows, norms = grouped(names, np.full((2, len(names)), 3.0, dtype=np.float32), rows=40)
    assert rows == [f"block.{block}" for block in range(30)]
    np.testing.assert_allclose(norms, 6.0)
    few, same = grouped(names[:3], np.array([[1.0, 2.0, np.nan]]), rows=40)
    assert few == names[:3]
    np.testing.assert_array_equal(same, [[1.0, 2.0, np.nan]])


def test_groups_of_names() -> None:
    """Every name is in one group, in order; the outermost modules are never put together."""
    names = [f"m{place}.weight" for place in range(50)]
    assert list(by_module(names, 10)) == [f"m{place}" for place in range(50)]
    assert by_module([], 10) == {}
    groups = by_module(["a.x.w", "a.x.b", "a.y.w", "c"], 3)
    assert groups == {"a.x": [0, 1], "a.y": [2], "c": [3]}


def test_a_picture_comes_back_from_its_png() -> None:
    """Any reader sees the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_the_place_where_it_began_is_marked() -> None:
    """The frame around the first bad cell is in its row, and the line of the first sign in its column."""
    steps, names = np.arange(20), [f"layer.{place}.weight" for place in range(10)]
    norms = np.ones((20, 10))
    plain = draw(steps, names, norms, None, None)
    marked = draw(steps, names, norms, 15, "layer.3.weight")
    line = draw(steps, names, norms, 15, "layer.9.weight")
    assert plain.shape == marked.shape
    assert (marked != plain).any()
    rows = np.flatnonzero((marked != line).any(axis=(1, 2)))
    assert rows.min() < rows.max()
