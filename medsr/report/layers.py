"""The pictures of a page: layers of the viewer, overview, maps, thumbnail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medsr.pictures import number as gray_number
from medsr.report.figures import gray_png, map_png, map_svg
from medsr.report.maps import Map
from medsr.report.material import Material
from medsr.report.sections import Figure, number, signed
from medsr.report.view import plane_of, reduced

if TYPE_CHECKING:
    from medsr.consistency.map import ConsistencyMap

__all__ = ["NO_INTERVALS", "Layer", "by", "geometry", "label", "layers", "overview", "shown_maps", "thumbnail"]

NO_INTERVALS = (
    "No calibrated intervals stand in this result. They are had from scans with known truth that no training has seen: "
    "medsr calibrate RUN SCANS, then medsr upscale again with --intervals."
)
LABELS = {"measured": "Measured", "cubic": "Cubic", "estimate": "Estimate", "truth": "Truth"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A picture of the enlarged region in the viewer; `map`: it stands below too, of the whole plane."""

    name: str
    label: str
    uri: str
    size: tuple[int, int]
    note: str
    map: bool = False


def label(title: str) -> str:
    """What the layer of a map is called: "invention: " is said above the maps."""
    short = title.rpartition(": ")[2]
    return f"{short[:1].upper()}{short[1:]}"


def layers(material: Material, maps: Mapping[str, Map]) -> list[Layer]:
    """The planes of the region, and the same part of each map."""
    notes = {
        "measured": "each sample a block",
        "cubic": "cubic interpolation",
        "estimate": "the result",
        "truth": "measured finer",
    }
    layers = [
        Layer(name, LABELS[name], gray_png(plane, material.close), plane.shape, notes[name])
        for name, plane in material.crops.items()
    ]
    for title, each in maps.items():
        plane = _map_part(material, each)
        limit = _limit(each, plane)
        uri = map_png(plane, limit, diverging=each.diverging)
        layers.append(Layer(title, label(title), uri, plane.shape, _legend(each, limit), map=True))
    return layers


def _fine(material: Material, each: Map) -> bool:
    """Whether a map lies on the result's grid.

    Raises:
        ValueError: it lies on neither.
    """
    coarse = None if material.low is None else material.low.shape
    if each.scan.shape == material.estimate.shape:
        return True
    if each.scan.shape == coarse:
        return False
    raise ValueError(f"map: expected the shape {material.estimate.shape} or {coarse}, found {each.scan.shape}")


def _map_part(material: Material, each: Map) -> Any:
    view = material.view
    return plane_of(each.scan, view, view.rows, view.columns, fine=_fine(material, each))


def _limit(each: Map, plane: Any) -> float:
    if each.limit is not None:
        return each.limit
    known = np.abs(plane[np.isfinite(plane)])
    most = float(np.percentile(known, 99.5)) if known.size else 0.0
    return most or 1.0


def _legend(each: Map, limit: float) -> str:
    ends = f"{number(-limit) if each.diverging else 0} to {number(limit)}"
    return f"{'blue to red' if each.diverging else 'dark to bright'} {ends} {each.scan.intensity.units}".strip()


def shown_maps(
    material: Material, maps: Mapping[str, Map], found: ConsistencyMap | None, absent: Mapping[str, str]
) -> list[tuple[str, Figure | None, str]]:
    """(title, figure or None, what to say).

    Args:
        material: of the page.
        maps: by title.
        found: the consistency map, for its flagged regions.
        absent: by title, why there is no map; of no account where there is one.
    """
    made: list[tuple[str, Figure | None, str]] = [
        (title, _map_figure(material, title, each, found), "") for title, each in maps.items()
    ]
    return made + [(title, None, why) for title, why in absent.items() if title not in maps]


def _map_figure(material: Material, title: str, each: Map, found: ConsistencyMap | None) -> Figure:
    """A map of the whole plane with the enlarged region framed in it, or of that region alone."""
    view = material.view
    region = material.extent(view.rows, view.columns)
    flagged = _flagged(material, found) if found is not None and title == "consistency" else []
    if each.region_only:
        plane, share, extent, frame = _map_part(material, each), 1, region, None
        note = f"{each.note} Of the enlarged region alone: the whole plane would take too long to compute."
    else:
        plane, share = reduced(each.scan, view, fine=_fine(material, each), largest=True)
        extent, frame = material.extent(slice(0, view.size[0]), slice(0, view.size[1])), region
        note = each.note
        if frame == extent:
            frame = None
        else:
            note += " The black frame is the region shown enlarged."
    if flagged:
        note += " Green boxes: flagged regions, drawn a little larger than they are so that they show inside."
    units = each.scan.intensity.units or "value"
    rows, columns = (f"{a}, {material.unit}" for a in view.axes)
    uri = map_svg(
        plane,
        limit=_limit(each, plane),
        diverging=each.diverging,
        extent=extent,
        labels=(rows, columns, f"{title.rpartition(': ')[2]}, {units}"),
        frame=frame,
        boxes=flagged,
    )
    pooled = f" Each pixel shows the value of largest magnitude of {share} × {share} samples." if share > 1 else ""
    alt = f"Map: {title}; {_spread(plane, units)}"
    if found is not None and title == "consistency":
        alt += f"; {flagged_words(found)}, {len(flagged)} of them in this plane" if found.found else "; none flagged"
    return Figure(uri, alt, note + pooled)


def _spread(plane: Any, units: str) -> str:
    """Least and largest value, for who does not see them."""
    known = plane[np.isfinite(plane)]
    if not known.size:
        return "no values"
    return f"least {number(float(known.min()))}, largest {number(float(known.max()))} {units}"


def flagged_words(found: ConsistencyMap) -> str:
    """How many regions are flagged, and the largest of their peaks."""
    many = f"{found.found:,} flagged region{'s' if found.found != 1 else ''}"
    return f"{many}, largest peak {signed(found.regions[0].z)} sigma" if found.regions else many


def _inside(material: Material, found: ConsistencyMap) -> list[tuple[slice, slice]]:
    """Rows and columns of the flagged regions that meet the plane."""
    view = material.view
    return [
        (slice(r.start[view.shown[0]], r.stop[view.shown[0]]), slice(r.start[view.shown[1]], r.stop[view.shown[1]]))
        for r in found.regions
        if view.crosses(r.start, r.stop)
    ]


def _flagged(material: Material, found: ConsistencyMap) -> list[tuple[float, float, float, float]]:
    return [material.extent(rows, columns) for rows, columns in _inside(material, found)]


def geometry(material: Material, found: ConsistencyMap | None) -> dict[str, Any]:
    """Of the enlarged region: its proportions, its width, and the flagged parts in it in hundredths."""
    view = material.view
    sizes = [(s.stop - s.start) * f for s, f in zip((view.rows, view.columns), view.fine, strict=True)]
    high, wide = (n * s for n, s in zip(sizes, material.steps, strict=True))
    boxes = []
    for rows, columns in _inside(material, found) if found is not None else ():
        top, bottom = (
            100 * (v - view.rows.start) / (view.rows.stop - view.rows.start) for v in (rows.start, rows.stop)
        )
        left, right = (
            100 * (v - view.columns.start) / (view.columns.stop - view.columns.start)
            for v in (columns.start, columns.stop)
        )
        if bottom > 0 and top < 100 and right > 0 and left < 100:
            boxes.append(tuple(round(v, 3) for v in (left, top, right - left, bottom - top)))
    black, white = (gray_number(v) for v in material.close)
    return {
        "aspect": round(wide / high, 5),
        "width": wide,
        "unit": material.unit,
        "size": by(sizes),
        "boxes": boxes,
        "window": f"{black} is black and {white} white",
        "same": _same(material),
        "single": math.prod(view.size) == math.prod((s.stop - s.start) for s in (view.rows, view.columns)),
    }


def _same(material: Material) -> bool:
    """Whether the estimate is the cubic one, but for rounding."""
    cubic, estimate = (material.crops.get(name) for name in ("cubic", "estimate"))
    if cubic is None or estimate is None:
        return False
    line = material.estimate.intensity
    level = abs(line.slope) if line.units else 1.0
    return bool(np.allclose(cubic, estimate, rtol=0, atol=1.01 * level, equal_nan=True))


def overview(material: Material) -> dict[str, Any]:
    """The whole plane, its proportions, and where the region lies in hundredths (left, top, width, height)."""
    view = material.view
    spans = [(s.start / n, (s.stop - s.start) / n) for s, n in zip((view.rows, view.columns), view.size, strict=True)]
    (top, high), (left, wide) = spans
    sizes = [n * f * s for n, f, s in zip(view.size, view.fine, material.steps, strict=True)]
    black, white = (gray_number(v) for v in material.whole)
    return {
        "uri": gray_png(material.overview, material.whole),
        "aspect": round(sizes[1] / sizes[0], 5),
        "frame": [round(100 * v, 3) for v in (left, top, wide, high)],
        "size": " × ".join(number(s, 4) for s in sizes) + f" {material.unit}",
        "of": "The measured scan" if material.low is not None else "The estimate",
        "window": f"{black} is black and {white} white",
    }


def thumbnail(plane: Any) -> Any:
    """A part of a plane for an index."""
    step = max(1, min(plane.shape) // 160)
    return plane[::step, ::step][:200, :200]


def by(sizes: Sequence[int]) -> str:
    """Sizes as "3 × 4"."""
    return " × ".join(f"{n:,}" for n in sizes)
