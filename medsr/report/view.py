"""View: which plane of a scan and its result a page shows, and which region of it enlarged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.pictures import Window, detailed_region, gray_window
from medsr.scan import Axis, Factor, Intensity, Region, Scan

__all__ = ["Placed", "View", "plane_of", "reduced", "strips", "view_of"]

Array = NDArray[Any]
Plane = NDArray[np.float32]

CROP = 640
"""Fine samples of the enlarged region along each axis, at most."""
OVERVIEW = 900
"""Samples of a reduced plane along each axis, at most."""
PLANES, MIDDLE = 16, 1024
"""Planes among which the liveliest one is chosen, and how much of their middle is looked at."""
STRIP = 1 << 22
"""Samples read at a time."""


@dataclass(frozen=True, slots=True)
class View:
    """A plane, and a region of it on whole coarse samples.

    Attributes:
        axes: names of the shown axes: rows, then columns ("y", "x"; or "z", "x" where only z is refined).
        shown: their places among the scan's axes.
        index: coarse index along every axis; of the shown ones 0.
        factor: fine samples for each coarse one along every axis.
        rows, columns: of the enlarged region, coarse samples.
        size: of the whole plane, coarse samples.
    """

    axes: tuple[Axis, Axis]
    shown: tuple[int, int]
    index: tuple[int, ...]
    factor: Factor
    rows: slice
    columns: slice
    size: tuple[int, int]

    def region(self, rows: slice, columns: slice, *, fine: bool) -> Region:
        """The region of a scan that holds these coarse rows and columns of the plane, in coarse or fine samples."""
        spans = []
        for axis, (i, f) in enumerate(zip(self.index, self.factor, strict=True)):
            f = f if fine else 1
            if axis in self.shown:
                part = rows if axis == self.shown[0] else columns
                spans.append(slice(part.start * f, part.stop * f))
            else:
                at = i * f + f // 2  # of the fine planes of a coarse one the middle
                spans.append(slice(at, at + 1))
        return tuple(spans)

    def place(self, scan: Scan) -> str:
        """Which plane it is, in words; "" where there is only one."""
        named = [
            f"{a} {i + 1} of {n}"
            for axis, (a, i, n) in enumerate(zip(scan.grid.axes, self.index, scan.shape, strict=True))
            if axis not in self.shown and n > 1
        ]
        section = f"section along {' and '.join(self.axes)}" if self.axes != ("y", "x") else ""
        return ", ".join([*([section] if section else []), *named])

    def looked_at(self, scan: Scan) -> int:
        """Planes of a scan among which this one was chosen."""
        return min(PLANES, math.prod(n for axis, n in enumerate(scan.shape) if axis not in self.shown))

    def crosses(self, start: Sequence[int], stop: Sequence[int]) -> bool:
        """Whether a part of the coarse scan meets the plane."""
        return all(a in self.shown or start[a] <= i < stop[a] for a, i in enumerate(self.index))

    def frames(self, start: Sequence[int], stop: Sequence[int]) -> bool:
        """Whether a part of the coarse scan meets the enlarged region."""
        spans = zip(self.shown, (self.rows, self.columns), strict=True)
        return self.crosses(start, stop) and all(start[a] < s.stop and stop[a] > s.start for a, s in spans)

    @property
    def fine(self) -> tuple[int, int]:
        """Fine samples for each coarse one along rows and columns."""
        return self.factor[self.shown[0]], self.factor[self.shown[1]]


class Placed:
    """An array that stands for its region of a larger one, which is all that can be asked for."""

    def __init__(self, values: Array, region: Region, shape: tuple[int, ...]) -> None:
        self._values, self._region = values, region
        self.shape, self.dtype = shape, values.dtype

    def __getitem__(self, region: Region, /) -> Array:
        wanted = [r.indices(n)[:2] for r, n in zip(region, self.shape, strict=True)]
        if any(start < s.start or stop > s.stop for (start, stop), s in zip(wanted, self._region, strict=True)):
            raise IndexError(f"expected a part of {self._region}, found {region}")
        spans = zip(wanted, self._region, strict=True)
        return self._values[tuple(slice(start - s.start, stop - s.start) for (start, stop), s in spans)]


def view_of(scan: Scan, factor: Factor) -> View:
    """The liveliest of the planes of a coarse scan that are looked at, and its most detailed region.

    Raises:
        ValueError: fewer than two axes.
    """
    axes = scan.grid.axes
    if len(axes) < 2:
        raise ValueError(f"expected a scan with at least two axes, found {''.join(axes)}; a line has no page")
    count = len(axes)
    section = factor[-1] == factor[-2] == 1 and "z" in axes and scan.shape[axes.index("z")] > 1
    shown = (axes.index("z"), count - 1) if section and factor[axes.index("z")] > 1 else (count - 2, count - 1)
    size = scan.shape[shown[0]], scan.shape[shown[1]]
    fine = factor[shown[0]], factor[shown[1]]
    whole = slice(0, size[0]), slice(0, size[1])
    others = [a for a in range(count) if a not in shown]

    def at(index: tuple[int, ...]) -> View:
        return View((axes[shown[0]], axes[shown[1]]), shown, index, factor, *whole, size)

    best = at(_liveliest(scan, others, at))
    plane, share = reduced(scan, best, fine=False, most=2 * OVERVIEW)
    wanted = tuple(max(1, min(n, CROP // f) // share) for n, f in zip(size, fine, strict=True))
    top, left, *_ = detailed_region(plane, (wanted[0], wanted[1]), (1, 1))
    starts = [min(start * share, n - min(n, CROP // f)) for start, n, f in zip((top, left), size, fine, strict=True)]
    rows, columns = (slice(s, s + min(n, CROP // f)) for s, n, f in zip(starts, size, fine, strict=True))
    return View(best.axes, shown, best.index, factor, rows, columns, size)


def _liveliest(scan: Scan, others: list[int], at: Callable[[tuple[int, ...]], View]) -> tuple[int, ...]:
    """Coarse index of the plane whose middle has the steepest slopes."""
    counts = [scan.shape[a] for a in others]
    best, most = [0] * len(scan.shape), -1.0
    total = math.prod(counts)
    for pick in np.unique(np.linspace(0, total - 1, min(PLANES, total)).round().astype(int)):
        index = [0] * len(scan.shape)
        for axis, i in zip(others, np.unravel_index(int(pick), counts) if counts else (), strict=True):
            index[axis] = int(i)
        view = at(tuple(index))
        spans = (slice(max(0, (n - MIDDLE) // 2), min(n, (n + MIDDLE) // 2)) for n in view.size)
        plane = plane_of(scan, view, *spans, fine=False)
        steep = [np.abs(np.diff(plane, 2, axis)) for axis in (0, 1)]
        found = float(np.mean([np.nanmean(s) if np.isfinite(s).any() else 0.0 for s in steep if s.size] or [0.0]))
        if found > most:
            best, most = index, found
    return tuple(best)


def calibrated(intensity: Intensity, stored: Array) -> Plane:
    """Stored values in their units where the file has a calibration, else as they are; holes NaN."""
    values = np.asarray(stored, np.float64)
    if intensity.units:
        values = values * intensity.slope + intensity.intercept
    return np.where(intensity.holes(stored), np.nan, values).astype(np.float32)


def plane_of(scan: Scan, view: View, rows: slice, columns: slice, *, fine: bool) -> Plane:
    """Calibrated values of a part of the view's plane, given in coarse samples; holes NaN."""
    stored = scan.read(view.region(rows, columns, fine=fine))
    factor = view.fine if fine else (1, 1)
    shape = (rows.stop - rows.start) * factor[0], (columns.stop - columns.start) * factor[1]
    return calibrated(scan.intensity, stored).reshape(shape)


def reduced(scan: Scan, view: View, *, fine: bool, most: int = OVERVIEW, largest: bool = False) -> tuple[Plane, int]:
    """The whole plane at reduced size, and how many samples of it make one; strip by strip.

    Args:
        scan: on the coarse grid, or on the fine one.
        view: the plane.
        fine: on which grid the scan lies.
        most: samples along each axis.
        largest: take the value of largest magnitude instead of the mean, so that nothing outstanding is lost.
    """
    high, wide = (n * f for n, f in zip(view.size, view.fine if fine else (1, 1), strict=True))
    share = max(1, -(-max(high, wide) // most))
    parts = strips(scan, view, fine=fine, rows=share)
    return np.concatenate([_pooled(v, share, largest=largest) if share > 1 else v for v in parts]), share


def strips(scan: Scan, view: View, *, fine: bool, rows: int = 1) -> Iterator[Plane]:
    """The whole plane from top to bottom, about four million samples at a time, as calibrated values; holes NaN.

    Args:
        scan, view, fine: as in `reduced`.
        rows: each strip but the last has a multiple of so many.
    """
    high, wide = (n * f for n, f in zip(view.size, view.fine if fine else (1, 1), strict=True))
    step = max(1, STRIP // (rows * wide)) * rows
    for top in range(0, high, step):
        region = list(view.region(slice(0, 1), slice(0, view.size[1]), fine=fine))
        region[view.shown[0]] = slice(top, min(high, top + step))
        yield calibrated(scan.intensity, scan.read(tuple(region))).reshape(-1, wide)


def _pooled(values: Plane, share: int, *, largest: bool) -> Plane:
    known = np.isfinite(values)
    rows, columns = (range(0, n, share) for n in values.shape)
    if largest:
        top, bottom = (
            fold.reduceat(fold.reduceat(np.where(known, values, empty), rows, 0), columns, 1)
            for fold, empty in ((np.maximum, -np.inf), (np.minimum, np.inf))
        )
        found = np.where(np.abs(top) >= np.abs(bottom), top, bottom)
        return np.where(np.isfinite(found), found, np.nan).astype(np.float32)
    filled = np.where(known, values, 0.0)
    total = np.add.reduceat(np.add.reduceat(filled, rows, 0), columns, 1)
    count = np.add.reduceat(np.add.reduceat(known.astype(np.float32), rows, 0), columns, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def window_of(plane: Plane, intensity: Intensity) -> Window:
    """The gray window of a plane, reversed where a high value is dark."""
    low, high = gray_window(plane)
    slope = intensity.slope if intensity.units else 1.0
    return (low, high) if (intensity.white - intensity.black) * slope > 0 else (high, low)
