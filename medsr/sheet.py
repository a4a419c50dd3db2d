"""sheet_png: the same crop of many methods side by side, in rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medsr.pictures import (
    ACCENT,
    FAINT,
    FRAME,
    GAP,
    INK,
    MARGIN,
    PANEL,
    PAPER,
    Window,
    checked,
    close_window,
    detailed_region,
    draw_scale_bar,
    fitted,
    gray,
    gray_window,
    largest_factor,
    number,
    resampled,
    save,
    shortened,
    steps,
    zoom_size,
)

__all__ = ["sheet_png"]

Array = NDArray[Any]

IN_A_ROW = 5
LABEL = 62
"""Pixels above a panel for its name and its figures."""


def sheet_png(
    path: Path | str,
    panels: Mapping[str, Array],
    *,
    window: Window | None = None,
    reference: str | None = None,
    notes: Mapping[str, str] | None = None,
    title: str = "",
    spacing_um: tuple[float | None, float | None] | None = None,
    units: str = "",
) -> None:
    """Write a figure: the most detailed region of the reference, in all panels, in one gray window.

    The first panel shows the whole reference with the region framed.

    Args:
        path: the file; replaced when it exists, and complete whenever it exists.
        panels, reference, notes, title, spacing_um, units: as in `comparison_png`.
        window: ends of the gray scale of the whole reference; None: its 0.1 and 99.9 percentiles.

    Raises:
        ValueError: there is no panel, or a panel's proportions do not fit the largest.
    """
    planes = {label: np.asarray(plane, np.float32) for label, plane in panels.items()}
    truth, size = checked(planes, reference)
    whole_window = window or gray_window(planes[truth])
    step = steps(spacing_um)
    top, left, bottom, right = region = detailed_region(
        planes[truth], zoom_size(size, step), largest_factor(planes, size)
    )
    shape = fitted((bottom - top, right - left), step, width=PANEL * 3 // 4, tallest=PANEL)
    close = close_window(planes[truth], region, whole_window)
    rows = math.ceil((len(planes) + 1) / IN_A_ROW)
    columns = min(IN_A_ROW, len(planes) + 1)
    pitch = shape[1] + 2 * FRAME + GAP, shape[0] + 2 * FRAME + GAP + LABEL
    head = MARGIN + (44 if title else 0)
    image = Image.new("RGB", (2 * MARGIN + columns * pitch[0] - GAP, head + rows * pitch[1] + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    if title:
        font = ImageFont.load_default(size=28)
        pen.text((MARGIN, MARGIN - 6), shortened(title, font, image.width - 2 * MARGIN), INK, font=font)
    fonts = ImageFont.load_default(size=22), ImageFont.load_default(size=17)
    for index, (label, plane) in enumerate([("whole", planes[truth]), *planes.items()]):
        x, y = MARGIN + index % IN_A_ROW * pitch[0], head + index // IN_A_ROW * pitch[1]
        note = (notes or {}).get(label, "") if index else f"{truth}; framed: the crop of all others"
        pen.text((x, y), shortened(label, fonts[0], pitch[0] - GAP), INK, font=fonts[0])
        pen.text((x, y + 29), shortened(note, fonts[1], pitch[0] - GAP), FAINT, font=fonts[1])
        if index:
            cell = size[0] // plane.shape[0], size[1] // plane.shape[1]
            crop = plane[top // cell[0] : -(-bottom // cell[0]), left // cell[1] : -(-right // cell[1])]
            image.paste(Image.fromarray(gray(resampled(crop, shape), close)), (x + FRAME, y + LABEL + FRAME))
            if index == 1 and spacing_um is not None and spacing_um[1] is not None:
                draw_scale_bar(pen, (x + FRAME, y + LABEL + FRAME), shape, (right - left) * spacing_um[1])
            continue
        share = min(shape[0] / (size[0] * step[0]), shape[1] / (size[1] * step[1]))
        shown = max(1, round(size[0] * step[0] * share)), max(1, round(size[1] * step[1] * share))
        image.paste(Image.fromarray(gray(resampled(plane, shown), whole_window)), (x + FRAME, y + LABEL + FRAME))
        scale = shown[0] / size[0], shown[1] / size[1]
        corner = x + FRAME + left * scale[1], y + LABEL + FRAME + top * scale[0]
        box = (*corner, corner[0] + (right - left) * scale[1], corner[1] + (bottom - top) * scale[0])
        pen.rectangle([round(v) for v in box], outline=ACCENT, width=FRAME)
    legend = f"Crops of {bottom - top} x {right - left} fine samples: {number(close[0])} is black and "
    legend += f"{number(close[1])} white{f' ({units})' if units else ''}."
    pen.text((MARGIN, image.height - 2 * MARGIN), legend, INK, font=ImageFont.load_default(size=19))
    save(image, Path(path))
