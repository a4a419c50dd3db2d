"""speck_table: contrast of specks such as micro-calcifications, before and after, in radiographs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medsr.metrics import foreground_mask
from medsr.pictures import gray_window
from medsr.report.material import Material, crops_of
from medsr.report.sections import Table, number
from medsr.report.view import plane_of

if TYPE_CHECKING:
    from medsr.trust.specks import Speck

__all__ = ["speck_table"]

RADIUS_UM, RADIUS_SAMPLES = 100.0, 2.0
"""Of a speck: micro-calcifications are 0.1 to 0.5 mm wide; coarse samples where the spacing is unknown."""
RADIOGRAPH_UM = (20.0, 200.0)
"""Coarse spacing of projection radiographs: below lie microscopes, above tomographs."""
SHOWN = 8
SEARCHED = 1 << 23
"""Coarse samples of a plane that is searched as a whole, a million in about a second; of a larger one the region."""
AIR = 0.05
"""Share of the range of a plane up to which it shows no tissue; a threshold in its middle would leave out fat."""
REACH = 4.0
"""Radii about a speck that its surroundings reach to."""

Spacing = tuple[tuple[float, float], tuple[float, float], float]
"""Coarse and fine spacing along rows and columns, and the radius of a speck, in micrometers or fine samples."""


def speck_table(material: Material) -> Table | None:
    """Contrast of the most prominent specks of a radiograph's tissue; None where a scan is no radiograph.

    A radiograph is a single plane with a spacing of 20 to 200 micrometers, or a DICOM file of a single plane that does
    not say its spacing.
    """
    spacing = _spacing(material)
    if spacing is None or material.low is None:
        return None
    title = "Contrast of specks, such as micro-calcifications"
    from medsr.trust import find_specks

    coarse, _, radius = spacing
    line = material.estimate.intensity
    # A speck is bright in the picture: where black lies above white, its values are low.
    sign = math.copysign(1.0, (line.white - line.black) * (line.slope if line.units else 1.0))
    rows, columns, where = _searched(material)
    plane = sign * plane_of(material.low, material.view, rows, columns, fine=False).astype(np.float64)
    if not np.isfinite(plane).any():
        return Table(title, reason=f"No sample of the {where} has a value.")
    black, white = gray_window(plane)
    tissue = foreground_mask(plane, threshold=black + AIR * (white - black))
    places = find_specks(plane, radius=radius, spacing_um=coarse, count=SHOWN, mask=tissue)
    if not places:
        return Table(title, reason=f"No speck stands out from its surroundings in the {where}.")
    made = []
    for y, x in places:
        at = rows.start + round(y / coarse[0]), columns.start + round(x / coarse[1])
        found = _contrasts(material, at, spacing, sign)
        said = (f"{a} {number(length, 4)}" for a, length in zip("yx", _edge(material, at, coarse), strict=True))
        shares = [_share(found["estimate"], found["measured"])]
        made.append([f"{', '.join(said)} {material.unit}", *(number(s.value) for s in found.values()), *shares])
    return Table(title, ("where", *found, "kept"), made, _note(material, radius, where))


def _searched(material: Material) -> tuple[slice, slice, str]:
    """Coarse rows and columns that are searched, and what they are."""
    view = material.view
    if math.prod(view.size) <= SEARCHED:
        return slice(0, view.size[0]), slice(0, view.size[1]), "scan"
    return view.rows, view.columns, "enlarged region"


def _contrasts(material: Material, at: tuple[int, int], spacing: Spacing, sign: float) -> dict[str, Speck]:
    """Contrast at a coarse sample by "measured", "cubic", "estimate", "truth", from a window about it alone."""
    from medsr.trust import speck_contrast

    coarse, fine, radius = spacing
    view, low = material.view, material.low
    spans = [
        slice(max(0, a - reach), min(n, a + reach + 1))
        for a, n, c in zip(at, view.size, coarse, strict=True)
        for reach in [math.ceil(REACH * radius / c) + 2]
    ]
    window = replace(view, rows=spans[0], columns=spans[1])
    crops = crops_of(low, material.estimate, material.truth, window)
    place = [(a - s.start) * c for a, s, c in zip(at, spans, coarse, strict=True)]
    # The center of the first fine sample lies half the difference of the spacings before that of the coarse one.
    first = ((fine[0] - coarse[0]) / 2, (fine[1] - coarse[1]) / 2)
    found = {}
    for name, plane in crops.items():
        steps, origin = (coarse, (0.0, 0.0)) if name == "measured" else (fine, first)
        values = sign * plane.astype(np.float64)
        (found[name],) = speck_contrast(values, [(place[0], place[1])], radius=radius, spacing_um=steps, origin=origin)
    return found


def _edge(material: Material, at: tuple[int, int], coarse: tuple[float, float]) -> list[float]:
    """Where the center of a coarse sample lies from the edge of the scan."""
    scale = 1000 if material.unit == "mm" else 1
    return [(a + 0.5) * c / scale for a, c in zip(at, coarse, strict=True)]


def _spacing(material: Material) -> Spacing | None:
    """Coarse spacing, fine spacing and radius of a radiograph, in micrometers or fine samples; else None."""
    low, view = material.low, material.view
    if low is None or view.axes != ("y", "x") or math.prod(low.shape) != math.prod(view.size):
        return None
    rows, columns = material.spacing
    factor = view.fine
    if rows is None or columns is None:
        if low.reader != "dicom":
            return None
        return (float(factor[0]), float(factor[1])), (1.0, 1.0), RADIUS_SAMPLES * max(factor)
    coarse = rows * factor[0], columns * factor[1]
    if not all(RADIOGRAPH_UM[0] <= c <= RADIOGRAPH_UM[1] for c in coarse):
        return None
    return coarse, (rows, columns), max(RADIUS_UM, *coarse)


def _share(after: Speck, before: Speck) -> str:
    if not (before.value > 0 and math.isfinite(after.value)):
        return "–"
    return f"{100 * after.value / before.value:.0f} %".replace("-", "−")


def _note(material: Material, radius: float, where: str) -> str:
    size = f"{2 * radius:.4g} {'samples' if material.unit == 'samples' else 'µm'}"
    return (
        f"The most prominent bright specks of about {size} in the {where}, at most {SHOWN}, as measured: mean within "
        f"the radius less the median of the ring around it, in {material.values}s; kept: estimate over measured. They "
        "may be film dirt or hot samples; contrast that is kept says nothing of the shape."
    )
