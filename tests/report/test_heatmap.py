"""The heat map of gradient norms as a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.report.charts import Mark
from lightning_gradexplode.report.heatmap import COLORS, NONFINITE, colored, draw, png
from lightning_gradexplode.report.rows import Rows


def test_larger_norms_have_later_colors() -> None:
    """Colors go from the first one to the last one with the logarithm, and what is not finite has its own."""
    norms = np.array([[1.0, 10.0], [100.0, 1000.0], [np.inf, np.nan]])
    pixels, low, high = colored(norms)
    assert pixels.shape == (2, 3, 3)
    assert (low, high) == (0.0, 3.0)
    assert tuple(pixels[0, 0]) == tuple(COLORS[0])
    assert tuple(pixels[1, 1]) == tuple(COLORS[-1])
    assert tuple(pixels[0, 2]) == tuple(pixels[1, 2]) == NONFINITE


def test_colors_differ_by_their_lightness() -> None:
    """The colors differ in brightness, for print and for people who distinguish few colors."""
    lightness = COLORS @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > 15).all()


@pytest.mark.parametrize(
    "norms",
    [np.zeros((3, 2)), np.full((2, 2), np.nan), np.full((4, 1), 1e30), np.array([[1e-30, 1e30]])],
    ids=["zeros", "NaN", "one value", "tiny and huge"],
)
def test_any_norms_have_a_scale(norms: FloatArray) -> None:
    """The scale's ends are finite and apart, and not too far apart."""
    _, low, high = colored(norms)
    assert 1.0 <= high - low <= 8.0


def test_a_picture_comes_back_from_its_png() -> None:
    """Another decoder reads the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_the_place_where_it_began_is_marked() -> None:
    """A frame is around the row of the marked, and a line at the first sign."""
    steps, names = list(range(20)), tuple(f"layer.{place}.weight" for place in range(10))
    norms = np.ones((10, 20))
    plain = draw(steps, Rows(names, norms, None, True), [])
    framed = draw(steps, Rows(names, norms, 3, True), [])
    other = draw(steps, Rows(names, norms, 9, True), [])
    marked = draw(steps, Rows(names, norms, None, True), [Mark(15, "since", "first sign")])
    assert plain.shape == framed.shape == marked.shape
    assert (framed != other).any()
    changed = np.flatnonzero((marked != plain).any(axis=(0, 2)))
    assert 0 < len(changed) < 10
