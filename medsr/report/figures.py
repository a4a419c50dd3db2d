"""Pictures and curves of a page as data URIs: gray PNG, and SVG drawn by matplotlib."""

from __future__ import annotations

import base64
import io
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

__all__ = ["Curve", "curves_svg", "gray_png", "map_png", "map_svg"]

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
STYLES = {
    "measured": ("#111111", "-", 1.3),
    "cubic": ("#0072B2", "--", 1.5),
    "estimate": ("#D55E00", "-", 1.7),
    "truth": ("#009E73", ":", 2.0),
}
"""Color-blind safe (Okabe and Ito), and told apart by their dashes in print."""
HOLE = "#5c708e"
DIVERGING, SEQUENTIAL = "RdBu_r", "cividis"


@dataclass(frozen=True, slots=True)
class Curve:
    """A named curve; `steps`: constant over each sample."""

    x: Array
    y: Array
    steps: bool = False


def gray_png(plane: Array, window: Window) -> str:
    """An 8-bit PNG of a plane, sample by pixel, as a data URI."""
    pixels = gray(np.asarray(plane), window)
    flat = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
    return _png(Image.fromarray(pixels[..., 0] if flat else pixels))


def map_png(plane: Array, limit: float, *, diverging: bool) -> str:
    """A PNG of a map, sample by pixel, as a data URI."""
    colors = _colors(diverging=diverging)
    norm = Normalize(-limit if diverging else 0.0, limit, clip=True)
    return _png(Image.fromarray(colors(norm(np.ma.masked_invalid(plane)), bytes=True)[..., :3]))


def _png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def curves_svg(
    curves: Mapping[str, Curve],
    x: str,
    y: str,
    *,
    logarithmic: bool = False,
    level: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Curves over one axis.

    Args:
        curves: by "measured", "cubic", "estimate" and "truth".
        x, y: labels.
        logarithmic: the y axis.
        level: a horizontal line and its name.
        marks: vertical lines and their names.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
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
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.2, columnspacing=1.4)
        return _svg(figure)


def map_svg(
    plane: Array,
    *,
    limit: float,
    diverging: bool,
    extent: tuple[float, float],
    labels: tuple[str, str, str],
    frame: tuple[float, float, float, float] | None = None,
    boxes: Sequence[tuple[float, float, float, float]] = (),
) -> str:
    """A map with its color bar and its axes.

    Args:
        plane: values; NaN is slate.
        limit: end of the color bar.
        diverging: around 0.
        extent: height and width in the units of the axes.
        labels: of rows, of columns, of the color bar.
        frame: top, left, bottom and right of the enlarged region.
        boxes: the same of flagged regions.
    """
    from matplotlib.patches import Rectangle

    with matplotlib.rc_context({**RC, "axes.grid": False}):
        tall = (MAP_WIDTH - 1.9) * extent[0] / extent[1] + BAR
        figure = Figure(figsize=(MAP_WIDTH, min(6.4, max(1.8, tall))))
        axes = figure.add_subplot()
        norm = Normalize(-limit if diverging else 0.0, limit)
        shown = axes.imshow(
            np.ma.masked_invalid(plane),
            cmap=_colors(diverging=diverging),
            norm=norm,
            extent=(0, extent[1], extent[0], 0),
            interpolation="none",
            aspect="equal",
        )
        edges = [(frame, "#111111", 1.4)] if frame is not None else []
        for box, color, width in [*edges, *((b, "#b8005c", 1.2) for b in boxes)]:
            top, left, bottom, right = box
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=width)
            )
        axes.set_ylabel(labels[0])
        axes.set_xlabel(labels[1])
        axes.locator_params(nbins=5)
        bar = figure.colorbar(shown, ax=axes, extend="both" if diverging else "max", shrink=0.95)
        bar.set_label(labels[2])
        bar.outline.set_visible(False)
        return _svg(figure)


def _colors(*, diverging: bool) -> Any:
    return matplotlib.colormaps[DIVERGING if diverging else SEQUENTIAL].with_extremes(bad=HOLE)


def _svg(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", bbox_inches="tight", pad_inches=0.06, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
