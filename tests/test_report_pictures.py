"""Maps as pictures and drawings: few bytes, no lost color, a color bar that says no more than there is."""

import base64
import io
import re

import numpy as np
from PIL import Image

from medsr.report.figures import map_png, map_svg
from tests.test_report import picture


def test_maps_are_small_and_lose_no_color() -> None:
    values = np.linspace(0, 1, 256 * 256).reshape(256, 256)
    values[0, 0] = np.nan
    image = picture(map_png(values, 1.0, diverging=False))
    assert image.mode == "P"
    colors = np.asarray(image.convert("RGB"))
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 250
    assert tuple(colors[0, 0]) == (0x5C, 0x70, 0x8E)
    uri = map_svg(values, limit=1.0, diverging=False, extent=(2, 1, 6, 5), labels=("y", "x", "value"))
    drawn = base64.b64decode(uri.partition(",")[2]).decode()
    sizes = [Image.open(io.BytesIO(base64.b64decode(p))).mode for p in re.findall(r"image/png;base64,([^\"]+)", drawn)]
    assert "P" in sizes


def test_a_color_bar_points_on_only_where_values_lie_beyond() -> None:
    def bar(most: float, least: float = 0.0, *, diverging: bool = False) -> int:
        values = np.linspace(least, most, 64 * 64).reshape(64, 64)
        uri = map_svg(
            values, limit=1.0, diverging=diverging, extent=(0, 0, 64, 64), labels=("y", "x", "share"), frame=None
        )  # fmt: skip
        drawn = base64.b64decode(uri.partition(",")[2]).decode()
        return len(
            re.findall(r'style="fill: #[0-9a-f]{6}"', drawn.partition("axes_2")[2].partition("matplotlib.axis")[0])
        )

    assert bar(1.0) == bar(0.3)
    assert bar(1.5) == bar(1.0) + 1
    assert bar(1.5, -1.5, diverging=True) == bar(1.5) + 1


def test_a_drawing_with_boxes_is_the_same_again() -> None:
    def drawn() -> str:
        return map_svg(
            np.zeros((9, 9)), limit=1.0, diverging=True, extent=(0, 0, 9, 9), labels=("y", "x", "sigma"),
            boxes=[(0, 0, 2, 2), (7, 7, 9, 9)],
        )  # fmt: skip

    assert drawn() == drawn()
