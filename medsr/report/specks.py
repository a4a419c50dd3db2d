"""speck_table: contrast of specks such as micro-calcifications, before and after, in radiographs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.metrics import foreground_mask
from medsr.pictures import gray_window
from medsr.report.material import Material, crops_of
from medsr.report.sections import Table, number
from medsr.report.view import plane_of

if TYPE_CHECKING:
    from medsr.consistency.map import ConsistencyMap, FlaggedRegion
    from medsr.trust.specks import Speck

__all__ = ["speck_table"]

RADIUS_UM, RADIUS_SAMPLES = 100.0, 2.0
"""Of a speck: micro-calcifications are 0.1 to 0.5 mm wide; coarse samples where the spacing is unknown."""
RADIOGRAPH_UM = (20.0, 200.0)
"""Coarse spacing of projection radiographs: below lie microscopes, above tomographs."""
RADIOGRAPHS = ("MG", "DX", "CR", "IO", "PX", "RG", "RF")
"""Modalities of DICOM that are projections of X-rays, as (0008,0060) names them."""
TOLD = "read by the DICOM reader: "
"""What the line of a scan's history begins with that tells the modality."""
SHOWN = 8
SEARCHED = 1 << 23
"""Coarse samples of a plane that is searched as a whole, two million in a second; of a larger one the region."""
FINER = 4
"""Places for each sample at which the width of a peak is looked for."""
AIR = 0.05
"""Share of the range of a plane up to which it shows no tissue; a threshold in its middle would leave out fat."""
REACH = 4.0
"""Radii about a speck that its surroundings reach to."""

Spacing = tuple[tuple[float, float], tuple[float, float], float]
"""Coarse and fine spacing along rows and columns, and the radius of a speck, in micrometers or fine samples."""
Floats = NDArray[np.float64]


def speck_table(material: Material, *, found: ConsistencyMap | None = None) -> Table | None:
    """Contrast, peak and width of the most prominent specks of a radiograph's tissue; None where a scan is none.

    A radiograph is a single plane of a file that names a modality of projections, such as MG; where none is named, one
    with a spacing of 20 to 200 micrometers, or a DICOM file that does not say its spacing.

    Args:
        found: where the result contradicts the scan; specks that lie there are marked.
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
        specks, shapes = _measured(material, at, spacing, sign)
        said = (f"{a} {number(length, 4)}" for a, length in zip("yx", _edge(material, at, coarse), strict=True))
        row = [f"{', '.join(said)} {material.unit}", *(number(s.value) for s in specks.values())]
        row += [_share(specks["estimate"], specks["measured"])]
        row += [" | ".join(number(shape[i]) for shape in shapes.values()) for i in (0, 1)]
        made.append([*row, *([] if found is None else [_flag(material, found, at, [radius / c for c in coarse])])])
    fine = " | ".join(shapes)
    unit = "samples" if material.unit == "samples" else "µm"
    head = ("where", *specks, "kept", f"peak: {fine}", f"width, {unit}: {fine}")
    return Table(title, head if found is None else (*head, "consistency"), made, _note(material, radius, where, found))


def _flag(material: Material, found: ConsistencyMap, at: tuple[int, int], reach: list[float]) -> str:
    """The deviation of a flagged region that a speck lies in, and that it is one."""

    def holds(region: FlaggedRegion) -> bool:
        near = dict(zip(material.view.shown, zip(at, reach, strict=True), strict=True))
        index = enumerate(zip(region.start, region.stop, material.view.index, strict=True))
        spans = ((s, e, *near.get(axis, (i, 0.0))) for axis, (s, e, i) in index)
        return all(start - r <= place <= stop - 1 + r for start, stop, place, r in spans)

    worst = max((r.z for r in found.regions if holds(r)), key=abs, default=None)
    return "agrees" if worst is None else f"contradicts: {worst:+.1f} σ".replace("-", "−")


def _searched(material: Material) -> tuple[slice, slice, str]:
    """Coarse rows and columns that are searched, and what they are."""
    view = material.view
    if math.prod(view.size) <= SEARCHED:
        return slice(0, view.size[0]), slice(0, view.size[1]), "scan"
    return view.rows, view.columns, "enlarged region"


def _measured(
    material: Material, at: tuple[int, int], spacing: Spacing, sign: float
) -> tuple[dict[str, Speck], dict[str, tuple[float, float]]]:
    """Contrast at a coarse sample by "measured", "cubic", "estimate", "truth", from a window about it alone; and peak
    and width on the fine grid."""
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
    found, shapes = {}, {}
    for name, plane in crops.items():
        steps, origin = (coarse, (0.0, 0.0)) if name == "measured" else (fine, first)
        values = sign * plane.astype(np.float64)
        (found[name],) = speck_contrast(values, [(place[0], place[1])], radius=radius, spacing_um=steps, origin=origin)
        if name != "measured":
            center = [(p - o) / s for p, o, s in zip(place, origin, steps, strict=True)]
            shapes[name] = _peak(values - found[name].background, center, [radius / s for s in steps], steps)
    return found, shapes


def _peak(values: Floats, center: list[float], reach: list[float], steps: tuple[float, float]) -> tuple[float, float]:
    """Height of the peak within the radius, over surroundings of 0, and its width at half of that; nan: none.

    The width is the diameter of the disk as large as the part above the half, up to twice the radius away.
    """
    places = [np.linspace(-2 * r, 2 * r, 2 * max(1, round(2 * r * FINER)) + 1) for r in reach]
    grid = np.meshgrid(*(c + p for c, p in zip(center, places, strict=True)), indexing="ij")
    if not np.isfinite(values).all():
        return math.nan, math.nan
    drawn = ndimage.map_coordinates(values, grid, order=3, mode="nearest")
    away = np.hypot(*np.meshgrid(*(p / r for p, r in zip(places, reach, strict=True)), indexing="ij"))
    near = np.where(away <= 1, drawn, -np.inf)
    top = float(near.max())
    parts, _ = ndimage.label(drawn > top / 2)
    part = parts == parts[np.unravel_index(int(near.argmax()), near.shape)]
    if not top > 0 or part[[0, -1]].any() or part[:, [0, -1]].any():  # no peak, or not one alone
        return top if top > 0 else math.nan, math.nan
    area = float(part.sum()) * math.prod(float(p[1] - p[0]) * s for p, s in zip(places, steps, strict=True))
    return top, 2 * math.sqrt(area / math.pi)


def _edge(material: Material, at: tuple[int, int], coarse: tuple[float, float]) -> list[float]:
    """Where the center of a coarse sample lies from the edge of the scan."""
    scale = 1000 if material.unit == "mm" else 1
    return [(a + 0.5) * c / scale for a, c in zip(at, coarse, strict=True)]


def _spacing(material: Material) -> Spacing | None:
    """Coarse spacing, fine spacing and radius of a radiograph, in micrometers or fine samples; else None."""
    low, view = material.low, material.view
    if low is None or view.axes != ("y", "x") or math.prod(low.shape) != math.prod(view.size):
        return None
    modality = next((line.removeprefix(TOLD).split(",")[0] for line in low.history if line.startswith(TOLD)), "")
    told = modality not in ("", "no modality")
    if told and modality not in RADIOGRAPHS:
        return None
    rows, columns = material.spacing
    factor = view.fine
    if rows is None or columns is None:
        if low.reader != "dicom":
            return None
        return (float(factor[0]), float(factor[1])), (1.0, 1.0), RADIUS_SAMPLES * max(factor)
    coarse = rows * factor[0], columns * factor[1]
    if not told and not all(RADIOGRAPH_UM[0] <= c <= RADIOGRAPH_UM[1] for c in coarse):
        return None
    return coarse, (rows, columns), max(RADIUS_UM, *coarse)


def _share(after: Speck, before: Speck) -> str:
    if not (before.value > 0 and math.isfinite(after.value)):
        return "–"
    return f"{100 * after.value / before.value:.0f} %".replace("-", "−")


def _note(material: Material, radius: float, where: str, found: ConsistencyMap | None) -> str:
    size = f"{number(2 * radius, 4)} {'samples' if material.unit == 'samples' else 'µm'}"
    large = "" if where == "scan" else " (the plane is too large to be searched whole)"
    note = (
        f"The most prominent bright specks of about {size} in the {where}{large}, at most {SHOWN}, as measured: mean "
        f"within the radius less the median of the ring around it, in {material.values}s; kept: estimate over "
        "measured. That mean does not see a peak that is blurred or sharpened within the radius: peak, the highest "
        "value in it less the same median, and width at half of the peak do (– where it does not stand alone). They "
        "may be film dirt or hot samples; contrast that is kept says nothing of the shape."
    )
    if found is not None:
        note += " Contradicts: the speck touches a flagged region, whose peak is said."
        if found.found > len(found.regions):
            note += f" Only the {len(found.regions)} with the largest peaks are looked at."
    return note
