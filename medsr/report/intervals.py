"""ends_of: the ends of calibrated intervals inside a result, their width as a map, and their promise in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.io import read_scan
from medsr.io.places import place
from medsr.report.maps import Map
from medsr.report.view import View, calibrated, plane_of, strips
from medsr.scan import Intensity, Region, Scan, ScanError

__all__ = ["Ends", "ends_of", "inside", "mean_width", "width_map"]

Plane = NDArray[np.float32]

DAMAGED = "The result says that calibrated intervals stand in it, but they cannot be read; they are not shown."


@dataclass(frozen=True, slots=True)
class Ends:
    """The ends of the intervals of a result, on its grid.

    Attributes:
        lower, upper: lower and upper stored values.
        words: the promise in a few words; "" where the result does not say.
        promise: the promise in a sentence, with its conditions.
    """

    lower: Scan
    upper: Scan
    words: str
    promise: str

    def planes(self, view: View) -> tuple[Plane, Plane]:
        """The ends in the enlarged region, calibrated, the lower value first; holes NaN."""
        first, second = (plane_of(end, view, view.rows, view.columns, fine=True) for end in (self.lower, self.upper))
        # A calibration whose values fall as the stored ones rise turns the ends about.
        return np.minimum(first, second), np.maximum(first, second)


def ends_of(result: Path | str, estimate: Scan) -> tuple[Ends | None, list[str]]:
    """The intervals inside a result, if `upscale_folder` has written some, and doubts about them.

    Args:
        result: NAME.ome.zarr, on disk or in an object store.
        estimate: what was read of it.
    """
    said = _said(result)
    if "lower" not in said or "upper" not in said:
        return None, []
    try:
        lower, upper = (
            read_scan(result / side if isinstance(result, Path) else f"{result.rstrip('/')}/{side}")
            for side in ("lower", "upper")
        )
    except (ScanError, OSError):
        return None, [DAMAGED]
    if any(end.shape != estimate.shape for end in (lower, upper)):
        return None, [DAMAGED]
    terms = said.get("promise")
    words, promise = _promise(terms if isinstance(terms, Mapping) else {})
    return Ends(lower, upper, words, promise), []


def _said(result: Path | str) -> Mapping[str, Any]:
    """What a result says of its intervals; nothing where it says nothing that can be read."""
    try:
        stored = place(result).get("zarr.json")
        said = json.loads(stored or b"{}")["attributes"]["medsr"]["intervals"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return said if isinstance(said, Mapping) else {}


def _promise(terms: Mapping[str, Any]) -> tuple[str, str]:
    words = str(terms.get("words", ""))
    share, confidence, groups = (terms.get(name) for name in ("share", "confidence", "groups"))
    if not (isinstance(share, (int, float)) and isinstance(confidence, (int, float))):
        return words, f"Promise: {words}." if words else "The result does not say what its intervals promise."
    over = "whole scan" if terms.get("over") == "whole" else str(terms.get("over", "whole scan"))
    like = f"those {groups} of the calibration" if isinstance(groups, int) else "those of the calibration"
    return words, (
        f"Promise: at confidence {100 * confidence:g} %, at least {100 * share:g} % of the samples of the {over} lie "
        f"inside, on average over scans like {like}; not in each scan, nor at each sample."
    )


class _Width:
    """Distance of the ends in calibrated units, computed where it is asked for; NaN in holes of either."""

    def __init__(self, ends: Ends) -> None:
        self._ends = (ends.lower, ends.upper)
        self.shape, self.dtype = ends.lower.shape, np.dtype(np.float32)

    def __getitem__(self, region: Region, /) -> Plane:
        lower, upper = (calibrated(end.intensity, end.read(region)) for end in self._ends)
        return np.asarray(np.abs(upper - lower), np.float32)


def width_map(ends: Ends, units: str) -> Map:
    """The width of the intervals, on the grid of the result.

    Args:
        ends: of the intervals.
        units: of calibrated values, for the color bar.
    """
    line = Intensity(0.0, 1.0, np.dtype(np.float32), units=units)
    note = (
        f"Upper less lower end of the calibrated interval of each sample. {ends.promise} What was invented within the "
        "interval does not show."
    )
    return Map(Scan(_Width(ends), ends.lower.grid, line), note=note)


def mean_width(width: Map, view: View) -> float:
    """Mean of a map on the fine grid over the shown plane, holes left out; nan where there is nothing else."""
    total, count = 0.0, 0
    for strip in strips(width.scan, view, fine=True):
        known = np.isfinite(strip)
        total += float(strip[known].sum(dtype=np.float64))
        count += int(known.sum())
    return total / count if count else math.nan


def inside(band: tuple[Plane, Plane], truth: Plane) -> float:
    """Share of the samples of a truth that lie within the ends, where all three are known; nan where none is."""
    known = np.isfinite(band[0]) & np.isfinite(band[1]) & np.isfinite(truth)
    within = (band[0] <= truth) & (truth <= band[1])
    return float(within[known].mean()) if known.any() else math.nan
