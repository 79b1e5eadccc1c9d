"""The heat map of gradient norms as an image, for loggers that show images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.report.charts import Mark
from lightning_gradexplode.report.rows import Rows, color_range, label, positive_logs

Pixels = npt.NDArray[np.uint8]

COLORS = np.array(
    [(0, 34, 78), (53, 69, 109), (102, 105, 112), (149, 142, 118), (200, 184, 102), (254, 232, 56)], dtype=np.float64
)
"""Colors from small to large norms, with increasing lightness."""

NONFINITE = (216, 27, 96)
"""Color of norms that are NaN or infinite: pink, as on the page in light colors."""


def colored(norms: FloatArray) -> tuple[Pixels, float, float]:
    """Return a color for each norm, by its logarithm.

    Args:
        norms: L2 norms, shape ``(steps, rows)``.

    Returns:
        Colors of shape ``(rows, steps, 3)``, and the decimal logarithms at the two ends of the scale.
    """
    logs = positive_logs(norms)
    low, high = color_range(logs)
    place = np.clip((np.nan_to_num(logs, nan=low) - low) / (high - low), 0.0, 1.0)
    pixels = _palette(place)
    pixels[~np.isfinite(norms)] = NONFINITE
    return pixels.transpose(1, 0, 2), low, high


def draw(steps: Sequence[int], rows: Rows, marks: Sequence[Mark]) -> Pixels:
    """Return the heat map with the names of its rows, a frame around the marked row, and lines at steps.

    Args:
        steps: The steps, ascending.
        rows: The rows.
        marks: Events; the first sign and the first critical finding are drawn.

    Returns:
        An RGB image, shape ``(height, width, 3)``.
    """
    from PIL import Image, ImageDraw, ImageFont

    cells, low, high = colored(rows.norms.T)
    column_width = int(np.clip(900 // max(len(steps), 1), 1, 24))
    row_height = int(np.clip(560 // max(len(rows.names), 1), 8, 28))
    table = np.repeat(np.repeat(cells, row_height, axis=0), column_width, axis=1)
    height, width = table.shape[:2]
    font = ImageFont.load_default()
    names = [label(name, 44) for name in rows.names]
    left = int(max((font.getlength(name) for name in names), default=0)) + 16
    picture = Image.new("RGB", (max(left + width + 20, left + 420), height + 84), "white")
    picture.paste(Image.fromarray(table), (left, 28))
    pen = ImageDraw.Draw(picture)
    pen.text((left, 4), "L2 norm of the gradients before clipping, parameter by step", fill="black", font=font)
    for place in rows.labeled(every=max(1, -(-11 // row_height))):
        at = (left - 8 - font.getlength(names[place]), 28 + place * row_height + row_height / 2 - 6)
        pen.text(at, names[place], fill="#b3101f" if place == rows.marked else "black", font=font)
    for place in range(0, len(steps), max(1, -(-len(steps) * 60 // max(width, 1)))):
        pen.text((left + place * column_width, 32 + height), str(int(steps[place])), fill="black", font=font)
    if rows.marked is not None:
        top = 28 + rows.marked * row_height
        pen.rectangle((left - 1, top - 1, left + width, top + row_height), outline="#b3101f", width=2)
    for mark in marks:
        if mark.is_line and len(steps) and steps[0] <= mark.step <= steps[-1]:
            x = left + int(np.searchsorted(np.asarray(steps), mark.step)) * column_width
            pen.line((x, 20, x, 28 + height), fill="#b3101f", width=2 if mark.kind == "critical" else 1)
    _draw_scale(picture, pen, font, left, height, (low, high))
    return np.asarray(picture, dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    """Return an RGB image of shape ``(height, width, 3)`` encoded as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def _palette(place: FloatArray) -> Pixels:
    anchors = np.linspace(0.0, 1.0, len(COLORS))
    return np.stack([np.interp(place, anchors, channel) for channel in COLORS.T], axis=-1).astype(np.uint8)


def _draw_scale(picture: Any, pen: Any, font: Any, left: int, height: int, ends: tuple[float, float]) -> None:
    from PIL import Image

    bar = 170
    strip = np.repeat(_palette(np.linspace(0.0, 1.0, bar))[None], 10, axis=0)
    picture.paste(Image.fromarray(strip), (left, height + 54))
    pen.text((left, height + 66), f"1e{ends[0]:+.1f}", fill="black", font=font)
    pen.text((left + bar - 30, height + 66), f"1e{ends[1]:+.1f}", fill="black", font=font)
    pen.rectangle((left + bar + 24, height + 54, left + bar + 34, height + 64), fill=NONFINITE)
    pen.text((left + bar + 40, height + 53), "NaN or infinite", fill="black", font=font)
