"""Pictures and curves of a page as data URIs: gray PNG, and SVG drawn by matplotlib."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from medsr.pictures import Window, gray

__all__ = ["Band", "Curve", "curves_svg", "gray_png", "map_png", "map_svg"]

Array = NDArray[Any]

RC: dict[Any, Any] = {
    "svg.hashsalt": "medsr",  # the same figure has the same bytes
    "svg.fonttype": "path",  # looks the same without the font
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#e3e3e6",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "figure.constrained_layout.use": True,
}
SIZE = (5.6, 3.7)
MAP_WIDTH, BAR = 5.6, 0.9
COLORS = 256
"""Of an indexed picture, at most."""
DOTS = 160
"""Pixels to an inch of what is not drawn as lines."""
STYLES = {
    "measured": ("#111111", "-", 1.3),
    "cubic": ("#0072B2", "--", 1.5),
    "estimate": ("#D55E00", "-", 1.7),
    "truth": ("#009E73", ":", 2.0),
}
"""Color-blind safe (Okabe and Ito), and told apart by their dashes in print."""
BAND = "#f6cdae"
"""The color of the estimate, paler: its interval."""
HOLE = "#5c708e"
FLAGGED, PAD = "#0a6b32", 3.5
"""Of a box about a flagged region: a color that no scale holds, and by how many points the box is larger."""
DIVERGING, SEQUENTIAL = "RdBu_r", "cividis"


@dataclass(frozen=True, slots=True)
class Curve:
    """A named curve; `steps`: constant over each sample."""

    x: Array
    y: Array
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A named area between two curves over one x; NaN leaves a gap."""

    x: Array
    lower: Array
    upper: Array
    label: str


def gray_png(plane: Array, window: Window) -> str:
    """An 8-bit PNG of a plane, sample by pixel, as a data URI."""
    pixels = gray(np.asarray(plane), window)
    flat = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
    return _png(Image.fromarray(pixels[..., 0] if flat else pixels))


def map_png(plane: Array, limit: float, *, diverging: bool) -> str:
    """A PNG of a map, sample by pixel, as a data URI."""
    colors = _colors(diverging=diverging)
    norm = Normalize(-limit if diverging else 0.0, limit, clip=True)
    return _png(_indexed(colors(norm(np.ma.masked_invalid(plane)), bytes=True)))


def _png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _indexed(pixels: NDArray[np.uint8]) -> Image.Image:
    """RGBA pixels as a picture of at most 256 colors where they have no more: a third of the bytes."""
    packed = np.ascontiguousarray(pixels).view("<u4")[..., 0]
    colors, index = np.unique(packed, return_inverse=True)
    palette = np.ascontiguousarray(colors).view(np.uint8).reshape(-1, 4)
    if len(colors) > COLORS or (palette[:, 3] < 0xFF).any():
        return Image.fromarray(pixels)
    image = Image.fromarray(index.reshape(packed.shape).astype(np.uint8), "P")
    image.putpalette(palette[:, :3].tobytes())
    return image


def curves_svg(
    curves: Mapping[str, Curve],
    x: str,
    y: str,
    *,
    logarithmic: bool = False,
    level: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    band: Band | None = None,
) -> str:
    """Curves over one axis.

    Args:
        curves: by "measured", "cubic", "estimate" and "truth".
        x, y: labels.
        logarithmic: the y axis.
        level: a horizontal line and its name.
        marks: vertical lines and their names.
        band: an area behind the curves.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
        if band is not None:
            axes.fill_between(band.x, band.lower, band.upper, color=BAND, linewidth=0, zorder=1.5, label=band.label)
        for name, curve in curves.items():
            color, dashes, width = STYLES[name]
            where: dict[str, Any] = {"drawstyle": "steps-mid"} if curve.steps else {}
            axes.plot(curve.x, curve.y, color=color, linestyle=dashes, linewidth=width, label=name, **where)
        if logarithmic:
            axes.set_yscale("log")
        if level is not None:
            axes.axhline(level[0], color="#777777", linewidth=1, linestyle=(0, (1, 1)), label=level[1])
        for at, label in marks:
            axes.axvline(at, color="#777777", linewidth=1, linestyle=(0, (4, 3)), label=label)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(x=0)
        _legend(figure, len(axes.get_legend_handles_labels()[0]))
        return _svg(figure)


def _legend(figure: Figure, count: int) -> None:
    """Above the axes; four names in two rows of two, not three and one."""
    columns = 2 if count == 4 else 3
    figure.legend(loc="outside upper center", ncols=columns, handlelength=2.2, columnspacing=1.4)


def map_svg(
    plane: Array,
    *,
    limit: float,
    diverging: bool,
    extent: tuple[float, float, float, float],
    labels: tuple[str, str, str],
    frame: tuple[float, float, float, float] | None = None,
    boxes: Sequence[tuple[float, float, float, float]] = (),
) -> str:
    """A map with its color bar and its axes.

    Args:
        plane: values; NaN is slate.
        limit: end of the color bar.
        diverging: around 0.
        extent: its top, left, bottom and right in the units of the axes.
        labels: of rows, of columns, of the color bar.
        frame: top, left, bottom and right of the enlarged region.
        boxes: the same of flagged regions.
    """
    with matplotlib.rc_context({**RC, "axes.grid": False}):
        top, left, bottom, right = extent
        tall = min(6.4, max(1.8, (MAP_WIDTH - 1.9) * (bottom - top) / (right - left) + BAR))
        figure = Figure(figsize=(MAP_WIDTH, tall))
        axes = figure.add_subplot()
        norm = Normalize(-limit if diverging else 0.0, limit)
        shown = axes.imshow(
            np.ma.masked_invalid(plane),
            cmap=_colors(diverging=diverging),
            norm=norm,
            extent=(left, right, bottom, top),
            interpolation="none",
            aspect="equal",
        )
        if frame is not None:
            axes.add_patch(_outline(frame, edgecolor="#111111", linewidth=1.4))
        axes.set_ylabel(labels[0])
        axes.set_xlabel(labels[1])
        axes.locator_params(nbins=5)
        beyond = _beyond(plane, limit, diverging=diverging)
        bar = figure.colorbar(shown, ax=axes, extend=beyond, shrink=0.95)
        bar.set_label(textwrap.fill(labels[2], max(12, int(10 * (tall - 0.3)))))  # ten characters to an inch
        bar.outline.set_visible(False)
        if boxes:
            _draw_boxes(figure, axes, boxes)
        return _svg(figure)


def _beyond(plane: Array, limit: float, *, diverging: bool) -> str:
    """At which ends of a color bar values lie beyond it; rounding aside."""
    most = limit * (1 + 1e-6)
    above, below = bool((plane > most).any()), bool(diverging and (plane < -most).any())
    return ("both" if below else "max") if above else ("min" if below else "neither")


def _outline(box: tuple[float, float, float, float], **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    top, left, bottom, right = box
    return Rectangle((left, top), right - left, bottom - top, fill=False, **style)


def _draw_boxes(figure: Figure, axes: Any, boxes: Sequence[tuple[float, float, float, float]]) -> None:
    """Boxes some points larger than what they hold, so that it shows inside however small it is."""
    figure.draw_without_rendering()  # only then is known how large a sample is drawn
    places = axes.transData.transform([(0.0, 0.0), (1.0, 1.0)])
    down, along = PAD * figure.dpi / 72 / abs(places[1] - places[0])[::-1]
    for top, left, bottom, right in boxes:
        padded = top - down, left - along, bottom + down, right + along
        for color, width in (("#ffffff", 2.8), (FLAGGED, 1.4)):  # white about it, for a place full of color
            outline = _outline(padded, edgecolor=color, linewidth=width, clip_on=False)
            outline.set_in_layout(False)
            axes.add_patch(outline)


def _colors(*, diverging: bool) -> Any:
    # One less than an indexed picture holds, for the color of holes.
    return matplotlib.colormaps[DIVERGING if diverging else SEQUENTIAL].resampled(COLORS - 1).with_extremes(bad=HOLE)


def _svg(figure: Figure) -> str:
    out = io.BytesIO()
    nothing = {"Date": None, "Creator": None}
    figure.savefig(out, format="svg", dpi=DOTS, bbox_inches="tight", pad_inches=0.06, metadata=nothing)
    drawn = re.sub(rb"data:image/png;base64,([^\"]+)", _slimmer, out.getvalue())
    return "data:image/svg+xml;base64," + base64.b64encode(drawn).decode()


def _slimmer(embedded: re.Match[bytes]) -> bytes:
    """A picture inside a drawing with fewer bytes for the same pixels."""
    with Image.open(io.BytesIO(base64.b64decode(embedded[1]))) as image:
        return _png(_indexed(np.asarray(image.convert("RGBA")))).encode()
