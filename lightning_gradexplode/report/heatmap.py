"""The heat map of gradient norms, layer by step: one look says where an explosion began."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lightning_gradexplode.measure.parameter_names import by_module
from lightning_gradexplode.records import FloatArray

Pixels = npt.NDArray[np.uint8]

ROWS = 40
"""So many rows are drawn; of models with more parameters, those of a module share one."""

COLORS = np.array(
    [(16, 24, 64), (30, 80, 140), (60, 160, 160), (225, 215, 120), (245, 125, 40), (190, 20, 30)], dtype=np.float64
)
"""From small norms to large ones; norms that are not finite are `NONFINITE`."""

NONFINITE = (255, 0, 220)

DECADES = 8.0
"""The scale spans at most so many powers of ten, from the usual norms up; all above has the last color."""


def grouped(names: Sequence[str], norms: npt.NDArray[Any], rows: int = ROWS) -> tuple[list[str], FloatArray]:
    """Put the norms of a module's parameters together where there are too many rows.

    Args:
        names: Names of the parameters.
        norms: Of shape ``(steps, parameters)``.
        rows: Number of rows wanted at most.

    Returns:
        The rows' names, and norms of shape ``(steps, rows)``.
    """
    groups = by_module(names, rows)
    squares = np.square(norms.astype(np.float64))
    return [*groups], np.sqrt(np.stack([squares[:, places].sum(axis=1) for places in groups.values()], axis=1))


def colored(norms: FloatArray) -> tuple[Pixels, float, float]:
    """Give each norm its color by its logarithm.

    Args:
        norms: Of shape ``(steps, rows)``.

    Returns:
        Colors of shape ``(rows, steps, 3)``, and the logarithms (base 10) of the scale's two ends.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(norms)
    usable = logs[np.isfinite(logs)]
    low, high = np.quantile(usable, (0.02, 1.0)) if len(usable) else (-1.0, 0.0)
    low = float(np.floor(low * 2) / 2)
    high = float(min(max(high, low + 1.0), low + DECADES))
    place = np.clip((np.nan_to_num(logs, nan=low, posinf=high, neginf=low) - low) / (high - low), 0.0, 1.0)
    pixels = _palette(place)
    pixels[~np.isfinite(norms)] = NONFINITE
    return pixels.transpose(1, 0, 2), low, high


def draw(
    steps: npt.NDArray[np.int64], names: Sequence[str], norms: npt.NDArray[Any], step: int | None, where: str | None
) -> Pixels:
    """Draw the heat map, with labels if Pillow is installed.

    Args:
        steps: The steps, ascending.
        names: Names of the parameters, from the input to the output.
        norms: Their gradient norms, shape ``(steps, parameters)``.
        step: Where to draw the line of the first sign.
        where: Name of the parameter or module to point at.

    Returns:
        A picture of shape ``(height, width, 3)``.
    """
    rows, table = grouped(names, norms)
    cells, low, high = colored(table)
    wide = int(np.clip(900 // max(len(steps), 1), 1, 24))
    tall = int(np.clip(520 // max(len(rows), 1), 12, 28))
    field = np.repeat(np.repeat(cells, tall, axis=0), wide, axis=1)
    field[tall - 1 :: tall] = field[tall - 1 :: tall] // 10 * 9
    column = None if step is None or not len(steps) else int(np.searchsorted(steps, step)) * wide
    row = next(
        (place for place, name in enumerate(rows) if where and (where == name or where.startswith(name + "."))), None
    )
    if column is not None and column < field.shape[1]:
        field[:, max(column - 1, 0) : column + 1] = 255
        if row is not None:
            _frame(field, row * tall, column, tall, wide)
    return _labelled(field, rows, steps, tall, wide, row, column, (low, high))


def png(pixels: Pixels) -> bytes:
    """Return a picture of shape ``(height, width, 3)`` encoded as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _palette(place: FloatArray) -> Pixels:
    anchors = np.linspace(0.0, 1.0, len(COLORS))
    return np.stack([np.interp(place, anchors, channel) for channel in COLORS.T], axis=-1).astype(np.uint8)


def _frame(field: Pixels, top: int, left: int, tall: int, wide: int) -> None:
    right, bottom = min(left + max(wide, 4), field.shape[1]) - 1, top + tall - 1
    field[top : bottom + 1, [left, right]] = 255
    field[[top, top + 1, bottom - 1, bottom], left : right + 1] = 255


def _labelled(
    field: Pixels,
    rows: Sequence[str],
    steps: npt.NDArray[np.int64],
    tall: int,
    wide: int,
    row: int | None,
    column: int | None,
    scale: tuple[float, float],
) -> Pixels:
    font = ImageFont.load_default()
    shown = [_shortened(name) for name in rows]
    left = int(max((font.getlength(name) for name in shown), default=0)) + 16
    height, width = field.shape[:2]
    bar = 170
    picture = Image.new("RGB", (max(left + width + 20, left + bar + 240), height + 84), "white")
    picture.paste(Image.fromarray(field), (left, 28))
    pen = ImageDraw.Draw(picture)
    pen.text((left, 8), "L2 norm of the gradients, before clipping", fill="black", font=font)
    for place, name in enumerate(shown):
        color = "#c01020" if place == row else "black"
        pen.text((left - 8 - font.getlength(name), 28 + place * tall + tall / 2 - 6), name, fill=color, font=font)
    every = max(1, -(-len(steps) * 60 // max(width, 1)))
    for place in range(0, len(steps), every):
        pen.text((left + place * wide, 32 + height), str(int(steps[place])), fill="black", font=font)
    if column is not None and column < width:
        pen.text((left + max(min(column, width - 60), 0), 16), "first sign", fill="#c01020", font=font)
    strip = np.repeat(_palette(np.linspace(0.0, 1.0, bar))[None], 10, axis=0)
    picture.paste(Image.fromarray(strip), (left, height + 54))
    pen.text((left, height + 66), f"1e{scale[0]:+.1f}", fill="black", font=font)
    pen.text((left + bar - 30, height + 66), f"1e{scale[1]:+.1f}", fill="black", font=font)
    pen.rectangle((left + bar + 24, height + 54, left + bar + 34, height + 64), fill=NONFINITE)
    pen.text((left + bar + 40, height + 53), "NaN or infinite", fill="black", font=font)
    return np.asarray(picture, dtype=np.uint8)


def _shortened(name: str, letters: int = 44) -> str:
    return name if len(name) <= letters else "..." + name[3 - letters :]
