"""comparison_png, scan_png: figures that compare scans in one gray window."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

__all__ = ["comparison_png", "gray_window", "scan_png"]

Array = NDArray[Any]
Pixels = NDArray[np.uint8]
Window = tuple[float, float]
Box = tuple[int, int, int, int]

HOLE = (92, 112, 142)
"""Slate: NaN, no gray and no color of the error scale."""
ACCENT = (242, 142, 43)
INK, FAINT, PAPER = (24, 24, 27), (96, 96, 104), (255, 255, 255)
PANEL = 512
"""Wanted width of a panel in pixels; a small plane is enlarged by a whole number, a large one averaged down to it."""
TALLEST = 800
SEARCHED = 2048
SCAN_WIDTH = 1600
MARGIN, GAP, FRAME = 28, 14, 3


@dataclass(frozen=True, slots=True)
class _Panel:
    """One column: its label, the line below it, its plane, and whether it is an error."""

    label: str
    note: str
    plane: Array
    scale: float | None = None


def gray_window(plane: Array) -> Window:
    """(black, white) for display: the 0.1 and 99.9 percentiles of the finite values; never of length 0."""
    finite = np.asarray(plane)[np.isfinite(plane)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.1, 99.9)))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def scan_png(path: Path | str, plane: Array, window: Window | None = None) -> None:
    """Write one plane as an 8-bit PNG, area-averaged to at most 1,600 pixels a side; NaN is slate.

    Args:
        path: the file; replaced when it exists, and complete whenever it exists.
        plane: 2D, any dtype.
        window: values shown black and white, reversed for scans where a high value is dark; None: `gray_window`.
    """
    values = np.asarray(plane, np.float32)
    share = min(1.0, SCAN_WIDTH / max(values.shape))
    height, width = (max(1, round(n * share)) for n in values.shape)
    save(Image.fromarray(gray(resampled(values, (height, width)), window or gray_window(values))), Path(path))


def comparison_png(
    path: Path | str,
    panels: Mapping[str, Array],
    *,
    window: Window | None = None,
    reference: str | None = None,
    errors: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
    title: str = "",
    spacing_um: tuple[float | None, float | None] | None = None,
    units: str = "",
) -> None:
    """Write a figure: a row of panels in one gray window; below it their most detailed region, enlarged, in another.

    Args:
        path: the file; replaced when it exists, and complete whenever it exists.
        panels: planes (2D, any dtype, same units) by their labels, in the order of the row. A plane smaller than the
            largest by whole numbers, such as the coarse scan, is shown with its samples as blocks.
        window: values shown black and white, the same in every panel of the upper row (reversed: a high value is
            dark); None: the 0.1 and 99.9 percentiles of the reference. In the lower row: what the reference spans
            there.
        reference: label of the true plane; None: the last panel.
        errors: labels of panels whose difference from the reference is shown at the end of the row, on one symmetric
            scale of its own that its label names; None: the panel before the reference; empty: no error.
        notes: a second line for a label, such as its figures.
        title: headline.
        spacing_um: distance of fine samples along rows' and columns' axes; known: a scale bar, true proportions.
        units: of the values, for the legend.

    Raises:
        ValueError: there is no panel, or a panel's proportions do not fit the largest.
    """
    planes = {label: np.asarray(plane, np.float32) for label, plane in panels.items()}
    truth, size = checked(planes, reference)
    black, white = window or gray_window(planes[truth])
    names = list(planes)
    if errors is None:
        errors = [n for n in names[: names.index(truth)] if planes[n].shape == size][-1:]
    columns = [_Panel(name, (notes or {}).get(name, ""), plane) for name, plane in planes.items()]
    columns += _error_panels(planes, truth, errors, units)
    step = steps(spacing_um)
    region = detailed_region(planes[truth], zoom_size(size, step), largest_factor(planes, size))
    whole = _display_size(size, step)
    part = (region[2] - region[0], region[3] - region[1])
    zoom = fitted(part, step, width=whole[1], tallest=whole[1])
    close = close_window(planes[truth], region, (black, white))
    figure_legend = _legend((black, white), close, part, units)
    if any(not np.isfinite(plane).all() for plane in planes.values()):
        figure_legend += " Slate: no value."
    figure = _Figure(columns, whole, zoom, title=title, legend=figure_legend)
    for index, column in enumerate(columns):
        figure.draw_column(index, column, region, ((black, white), close), size)
    figure.draw_scale_bars(spacing_um, size, part)
    save(figure.image, Path(path))


def checked(planes: Mapping[str, Array], reference: str | None) -> tuple[str, tuple[int, int]]:
    """The label of the reference and the size of the largest panel."""
    if not planes or any(p.ndim != 2 or not p.size for p in planes.values()):
        raise ValueError(f"panels: expected 2D planes, found {[p.shape for p in planes.values()] or 'none'}")
    truth = list(planes)[-1] if reference is None else reference
    if truth not in planes:
        raise ValueError(f"reference: expected one of {', '.join(planes)}; found {truth!r}")
    rows, columns = planes[truth].shape
    for label, plane in planes.items():
        if rows % plane.shape[0] or columns % plane.shape[1]:
            raise ValueError(f"panel {label!r}: expected a size that divides {(rows, columns)}, found {plane.shape}")
    return truth, (rows, columns)


def _error_panels(planes: Mapping[str, Array], truth: str, names: Sequence[str], units: str) -> list[_Panel]:
    differences = {name: planes[name] - planes[truth] for name in names}
    known = [np.abs(d[np.isfinite(d)]) for d in differences.values()]
    scale = max((float(np.percentile(k, 99.5)) for k in known if k.size), default=0.0)
    note = f"blue {number(-scale)} to red {number(scale)}{' ' + units if units else ''}"
    return [_Panel(f"{n} - {truth}", note, d, scale or 1.0) for n, d in differences.items()]


def close_window(truth: Array, region: Box, window: Window) -> Window:
    """The gray window of the enlarged region: what the reference spans there, at least a fifth of the whole window."""
    top, left, bottom, right = region
    low, high = gray_window(truth[top:bottom, left:right])
    span = max(high - low, abs(window[1] - window[0]) / 5)
    low, high = (low + high - span) / 2, (low + high + span) / 2
    return (low, high) if window[0] < window[1] else (high, low)


def _legend(window: Window, close: Window, part: tuple[int, int], units: str) -> str:
    upper, lower = (f"{number(w[0])} is black and {number(w[1])} white" for w in (window, close))
    return (
        f"In all gray panels of the upper row {upper}, of the lower row {lower}{f' ({units})' if units else ''}. "
        f"Lower row: the framed region of {part[0]} x {part[1]} samples."
    )


class _Figure:
    """The canvas, and where its panels lie."""

    def __init__(
        self, columns: Sequence[_Panel], whole: tuple[int, int], zoom: tuple[int, int], *, title: str, legend: str
    ) -> None:
        self.whole, self.zoom = whole, zoom
        self.pitch = max(whole[1], zoom[1]) + 2 * FRAME + GAP
        head = MARGIN + (44 if title else 0)
        self.labels = head
        self.top = head + (60 if any(c.note for c in columns) else 36)
        self.below = self.top + whole[0] + 2 * FRAME + GAP
        width = 2 * MARGIN + len(columns) * self.pitch - GAP
        font = ImageFont.load_default(size=19)
        lines = _wrapped(legend, font, width - 2 * MARGIN)
        foot = self.below + zoom[0] + 2 * FRAME + 16
        self.image = Image.new("RGB", (width, foot + 27 * len(lines) + MARGIN - 8), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        for row, line in enumerate(lines):
            self.pen.text((MARGIN, foot + 27 * row), line, INK, font=font)
        if title:
            large = ImageFont.load_default(size=28)
            self.pen.text((MARGIN, MARGIN - 6), shortened(title, large, width - 2 * MARGIN), INK, font=large)

    def left(self, index: int) -> int:
        """First pixel of a column."""
        return MARGIN + index * self.pitch

    def draw_column(
        self, index: int, column: _Panel, region: Box, windows: tuple[Window, Window], size: tuple[int, int]
    ) -> None:
        """Label, plane with the framed region, and the region enlarged."""
        x, room = self.left(index), self.pitch - GAP
        fonts = ImageFont.load_default(size=23), ImageFont.load_default(size=18)
        self.pen.text((x + FRAME, self.labels), shortened(column.label, fonts[0], room), INK, font=fonts[0])
        self.pen.text((x + FRAME, self.labels + 29), shortened(column.note, fonts[1], room), FAINT, font=fonts[1])
        plane = column.plane
        cell = size[0] // plane.shape[0], size[1] // plane.shape[1]
        top, left, bottom, right = region
        crop = plane[top // cell[0] : -(-bottom // cell[0]), left // cell[1] : -(-right // cell[1])]
        rows = ((plane, self.whole, self.top), (crop, self.zoom, self.below))
        for (values, shape, y), window in zip(rows, windows, strict=True):
            shown = resampled(values, shape)
            pixels = gray(shown, window) if column.scale is None else _diverging(shown / column.scale)
            self.image.paste(Image.fromarray(pixels), (x + FRAME, y + FRAME))
        scale = self.whole[0] / size[0], self.whole[1] / size[1]
        frame = (left * scale[1], top * scale[0], right * scale[1], bottom * scale[0])
        self._frame(x + FRAME + frame[0], self.top + FRAME + frame[1], frame[2] - frame[0], frame[3] - frame[1])
        self._frame(x + FRAME, self.below + FRAME, self.zoom[1], self.zoom[0])

    def _frame(self, x: float, y: float, width: float, height: float) -> None:
        box = (round(x) - FRAME, round(y) - FRAME, round(x + width) + FRAME - 1, round(y + height) + FRAME - 1)
        self.pen.rectangle(box, outline=ACCENT, width=FRAME)

    def draw_scale_bars(
        self, spacing_um: tuple[float | None, float | None] | None, size: tuple[int, int], part: tuple[int, int]
    ) -> None:
        """A bar of a round length in the first panel of each row, where the spacing is known."""
        if spacing_um is None or spacing_um[1] is None:
            return
        rows = ((self.whole, size[1], self.top), (self.zoom, part[1], self.below))
        for shape, samples, y in rows:
            draw_scale_bar(self.pen, (self.left(0) + FRAME, y + FRAME), shape, samples * spacing_um[1])


def draw_scale_bar(pen: ImageDraw.ImageDraw, corner: tuple[int, int], shape: tuple[int, int], width_um: float) -> None:
    """A bar of a round length in a panel of `shape` pixels, `width_um` wide, if it is large enough for one."""
    length = round_length(width_um * 0.3)
    pixels = round(length / width_um * shape[1])
    if shape[0] < 48 or pixels < 8:
        return
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
    font = ImageFont.load_default(size=19)
    right, bottom = corner[0] + shape[1] - 14, corner[1] + shape[0] - 14
    pen.rectangle((right - pixels - 1, bottom - 7, right + 1, bottom + 1), fill=(0, 0, 0))
    pen.rectangle((right - pixels, bottom - 6, right, bottom), fill=PAPER)
    place = (right - pixels / 2, bottom - 10)
    pen.text(place, text, PAPER, font=font, anchor="mb", stroke_width=2, stroke_fill=(0, 0, 0))


def steps(spacing_um: tuple[float | None, float | None] | None) -> tuple[float, float]:
    """Proportions of a fine sample; square where unknown."""
    if spacing_um is None or spacing_um[0] is None or spacing_um[1] is None:
        return 1.0, 1.0
    return spacing_um[0], spacing_um[1]


def _display_size(size: tuple[int, int], step: tuple[float, float]) -> tuple[int, int]:
    """Pixels of a panel: a small plane enlarged by a whole number, a large one reduced to PANEL."""
    unit = min(step)
    width, height = size[1] * step[1] / unit, size[0] * step[0] / unit
    scale = PANEL / width
    scale = max(1.0, round(scale)) if scale > 0.8 else scale
    scale = min(scale, TALLEST / height)
    return max(1, round(height * scale)), max(1, round(width * scale))


def fitted(part: tuple[int, int], step: tuple[float, float], *, width: int, tallest: int) -> tuple[int, int]:
    """Pixels of an enlarged region: as wide as its panel, in its true proportions."""
    height = part[0] * step[0] * width / (part[1] * step[1])
    share = min(1.0, tallest / height)
    return max(1, round(height * share)), max(1, round(width * share))


def zoom_size(size: tuple[int, int], step: tuple[float, float]) -> tuple[int, int]:
    """Samples of the enlarged region: a third of a small plane, and what is well seen of a large one."""
    unit = min(step)
    width = min(PANEL / 4, size[1] * step[1] / unit / 3)
    width = max(width, 24)
    return tuple(min(n, max(4, round(width * unit / s))) for n, s in zip(size, step, strict=True))  # type: ignore[return-value]


def largest_factor(planes: Mapping[str, Array], size: tuple[int, int]) -> tuple[int, int]:
    cells = [(size[0] // p.shape[0], size[1] // p.shape[1]) for p in planes.values()]
    return max(c[0] for c in cells), max(c[1] for c in cells)


def detailed_region(plane: Array, size: tuple[int, int], factor: tuple[int, int]) -> Box:
    """(top, left, bottom, right) of the region with the most gradient, on whole coarse samples, without holes.

    Gradients above their 90th percentile count as that, so that texture wins over the one edge of a label.
    """
    height, width = (min(n, max(f, part // f * f)) for n, part, f in zip(plane.shape, size, factor, strict=True))
    # A large plane is searched on a reduced copy; places are whole coarse samples of the plane.
    share = -(-max(plane.shape) // SEARCHED)
    small = resampled(plane, tuple(max(1, n // share) for n in plane.shape)) if share > 1 else plane
    rows, columns = (max(1, n // share) for n in (height, width))
    known = np.isfinite(small)
    filled = np.where(known, small, np.median(small[known]) if known.any() else 0.0)
    slope = ndimage.gaussian_gradient_magnitude(filled, 1.0)
    limit = np.percentile(slope, 90)
    energy = np.where(known, np.minimum(slope, limit if limit > 0 else np.inf), -10 * float(slope.max()))
    sums = np.pad(energy.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    total = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    best = np.unravel_index(int(np.argmax(np.round(total, 6))), total.shape)
    spans = zip(best, (height, width), plane.shape, factor, strict=True)
    top, left = (min(int(i) * share, n - part) // f * f for i, part, n, f in spans)
    return top, left, top + height, left + width


def resampled(values: Array, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Area average where pixels are fewer than samples, blocks where they are more; NaN where most of a pixel is."""
    size = shape[1], shape[0]
    known = np.isfinite(values)
    if known.all():
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.BOX))
    share = np.asarray(Image.fromarray(known.astype(np.float32)).resize(size, Image.Resampling.BOX))
    filled = Image.fromarray(np.where(known, values, np.float32(0))).resize(size, Image.Resampling.BOX)
    seen = share >= 0.5
    return np.where(seen, np.asarray(filled) / np.where(seen, share, 1), np.float32(np.nan))


def gray(values: Array, window: Window) -> Pixels:
    """(h, w) to (h, w, 3): black to white over the window, holes in slate."""
    known = np.isfinite(values)
    unit = (np.where(known, values, window[0]) - window[0]) / ((window[1] - window[0]) or 1.0)
    levels = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return _with_holes(np.repeat(levels[..., None], 3, axis=2), known)


BLUE, RED = np.array([5.0, 80.0, 170.0]), np.array([178.0, 16.0, 34.0])


def _diverging(values: Array) -> Pixels:
    """(h, w) in -1..1 to (h, w, 3): blue, white, red; holes in slate."""
    known = np.isfinite(values)
    unit = np.clip(np.where(known, values, 0.0), -1, 1)[..., None]
    color = np.where(unit < 0, BLUE, RED)
    pixels = np.rint(255 + (color - 255) * np.abs(unit)).astype(np.uint8)
    return _with_holes(pixels, known)


def _with_holes(pixels: Pixels, known: NDArray[np.bool_]) -> Pixels:
    pixels[~known] = HOLE
    return pixels


def round_length(um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most `um`."""
    power = 10.0 ** math.floor(math.log10(um))
    return max(m for m in (1, 2, 5) if m * power <= um * (1 + 1e-9)) * power


def number(value: float) -> str:
    """Three digits or more, a comma between thousands. ASCII: Pillow's own font has no minus sign and no micro."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shortened(text: str, font: Any, width: float) -> str:
    while len(text) > 4 and font.getlength(text) > width:
        text = text.removesuffix("...")[:-1].rstrip() + "..."
    return text


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def save(image: Image.Image, path: Path) -> None:
    """Under another name first, so that the file is complete whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        image.save(part, format="PNG", optimize=False)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
