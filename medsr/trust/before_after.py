"""Resolution before and after in micrometers: a row for each measure of a coarse scan, its estimate and the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.frc import Resolution, frc_curve, frc_resolution
from medsr.scan import Factor, Region, Scan
from medsr.trust.decorrelation import decorrelation_analysis
from medsr.trust.resolution import fsc_sectors, one_image_frc

__all__ = ["ResolutionRow", "resolution_table"]

Array = NDArray[Any]
Volume = NDArray[np.float64]

SIDE, DEPTH = 1024, 64
"""Fine samples of the measured region along y and x, and along z."""
CONE = 30.0
LOOKED_AT = 256
"""Side of the windows among which the region of most variation is found."""


@dataclass(frozen=True, slots=True)
class ResolutionRow:
    """One measure of resolution; smaller is finer.

    Attributes:
        measure: "sampling limit", "one-image FRC", "decorrelation" or "FRC with the truth".
        along: "yx" or "z".
        unit: "um" or "sample" (each scan's own samples).
        before: of the coarse scan.
        after: of the estimate.
        truth: of the truth; None without one.
    """

    measure: str
    along: str
    unit: str
    before: Resolution
    after: Resolution
    truth: Resolution | None = None


def resolution_table(scan_low: Scan, scan_estimate: Scan, truth: Scan | None = None) -> tuple[ResolutionRow, ...]:
    """Measure a coarse scan and its estimate, and the truth where there is one, by everything that applies.

    At most 64 x 1024 x 1024 fine samples are read, where the coarse scan varies most; the same field of all scans. A
    one-image ring correlation of an estimate is refused as it must be. Decorrelation tells how fine detail looks,
    only the correlation with a truth whether it is right; before, the coarse scan is interpolated (cubic spline).

    Args:
        scan_low, scan_estimate: of the same field; the shape of the estimate a whole multiple along each axis.
        truth: on the estimate's grid.

    Raises:
        ValueError: shapes that do not fit.
    """
    factor = _factor(scan_low, scan_estimate, truth)
    region = _liveliest(scan_low, factor)
    fine = tuple(slice(s.start * f, s.stop * f) for s, f in zip(region, factor, strict=True))
    low, estimate = _read(scan_low, region), _read(scan_estimate, fine)
    true = None if truth is None else _read(truth, fine)
    scans = [(low, scan_low), (estimate, scan_estimate)] + ([] if truth is None or true is None else [(true, truth)])
    rows = [
        _row("sampling limit", "yx", [_limit(scan, "yx") for _, scan in scans]),
        _row("one-image FRC", "yx", [_one_image(v, scan, computed=scan is scan_estimate) for v, scan in scans]),
        _row("decorrelation", "yx", [_decorrelated(values, scan, "yx") for values, scan in scans]),
    ]
    if low.shape[0] > 1:
        rows.append(_row("sampling limit", "z", [_limit(scan, "z") for _, scan in scans]))
        rows.append(_row("decorrelation", "z", [_decorrelated(values, scan, "z") for values, scan in scans]))
    if true is not None:
        rows += _against(true, low, estimate, scan_estimate)
    return tuple(rows)


def _row(measure: str, along: str, found: Sequence[Resolution]) -> ResolutionRow:
    return ResolutionRow(measure, along, found[0].unit, found[0], found[1], found[2] if len(found) > 2 else None)


def _factor(low: Scan, estimate: Scan, truth: Scan | None) -> Factor:
    """Fine samples for each coarse one along every axis."""
    fits = len(low.shape) == len(estimate.shape) and all(
        e % n == 0 for e, n in zip(estimate.shape, low.shape, strict=True)
    )
    if not fits or low.grid.axes[-2:] != ("y", "x") or (truth is not None and truth.shape != estimate.shape):
        found = (low.shape, estimate.shape, None if truth is None else truth.shape)
        raise ValueError(
            f"expected scans (..., y, x), the estimate's shape a multiple, the truth's equal; found {found}"
        )
    return tuple(e // n for e, n in zip(estimate.shape, low.shape, strict=True))


def _liveliest(scan: Scan, factor: Factor) -> Region:
    """The region of the coarse scan that is measured: about the window of the greatest standard deviation."""
    size = [
        SIDE // f if a in ("y", "x") else DEPTH // f if a == "z" else 1
        for a, f in zip(scan.grid.axes, factor, strict=True)
    ]
    size = [max(1, min(s, n)) for s, n in zip(size, scan.shape, strict=True)]
    middle = [n // 2 for n in scan.shape]
    middle[:-2] = [n // 2 if a == "z" else 0 for a, n in zip(scan.grid.axes[:-2], scan.shape[:-2], strict=True)]
    best = -math.inf
    places = [sorted({int(p) for p in np.linspace(0, max(0, n - LOOKED_AT), 5)}) for n in scan.shape[-2:]]
    center = list(middle)
    for top, left in product(*places):
        window = (*(slice(m, m + 1) for m in middle[:-2]), slice(top, top + LOOKED_AT), slice(left, left + LOOKED_AT))
        values = _read(scan, window)
        spread = float(np.nanstd(values)) if np.isfinite(values).mean() > 0.5 else -math.inf
        if spread > best:
            best, center[-2:] = spread, [top + LOOKED_AT // 2, left + LOOKED_AT // 2]
    starts = [min(max(0, c - s // 2), n - s) for c, s, n in zip(center, size, scan.shape, strict=True)]
    return tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))


def _read(scan: Scan, region: Region) -> Volume:
    """(z, y, x) in unit intensity, holes NaN."""
    stored = scan.read(region)
    values = scan.intensity.to_unit(stored).astype(np.float64)
    values[scan.intensity.holes(stored)] = np.nan
    return values.reshape(-1, *values.shape[-2:])


def _spacing(scan: Scan) -> tuple[float | None, float | None, float | None]:
    grid = scan.grid
    return grid.spacing_of("z"), grid.spacing_of("y"), grid.spacing_of("x")


def _limit(scan: Scan, along: str) -> Resolution:
    """Two samples: the shortest period that the grid holds."""
    z, y, x = _spacing(scan)
    if along == "z":
        return Resolution(2.0, "sample") if z is None else Resolution(2 * z, "um")
    return Resolution(2.0, "sample") if y is None or x is None else Resolution(2 * max(y, x), "um")


def _one_image(values: Volume, scan: Scan, *, computed: bool) -> Resolution:
    found = one_image_frc(values, spacing_um=_spacing(scan)[1:])
    if not computed or found.independence.reason:
        return found.resolution
    # Noise that a method invented may look white; its samples were still computed from the coarse ones.
    measured = f"neighbors correlate by {found.independence.correlation:.2f}"
    reason = f"invalid: samples are not independent (computed from the coarse scan; {measured})"
    return Resolution(math.nan, found.unit, reason)


def _decorrelated(values: Volume, scan: Scan, along: str) -> Resolution:
    z, y, x = _spacing(scan)
    if not np.isfinite(values).all():
        return Resolution(math.nan, "sample" if None in (y, x) else "um", "the region has holes")
    if along == "yx":
        return decorrelation_analysis(values, spacing_um=(y, x)).resolution
    sections = values.swapaxes(0, 1)  # (y, z, x)
    return decorrelation_analysis(sections, spacing_um=(z, x), sector=(0, CONE)).resolution


def _against(true: Volume, low: Volume, estimate: Volume, scan: Scan) -> list[ResolutionRow]:
    """Correlation with the truth on its grid."""
    factor = [e / n for e, n in zip(estimate.shape, low.shape, strict=True)]
    free = np.isfinite(low)
    filled = np.where(free, low, np.nanmean(low) if free.any() else 0.0)
    before = ndimage.zoom(filled, factor, order=3, mode="nearest", grid_mode=True)
    if not free.all():
        before[ndimage.zoom(free.astype(np.float32), factor, order=0, mode="nearest", grid_mode=True) < 0.5] = np.nan
    z, y, x = _spacing(scan)
    itself = Resolution(math.nan, "sample" if None in (y, x) else "um", "the truth itself")
    found = [frc_resolution(frc_curve(v, true, axes=(-2, -1), spacing_um=(y, x))) for v in (before, estimate)]
    rows = [_row("FRC with the truth", "yx", [*found, itself])]
    if true.shape[0] > 1:
        found = [fsc_sectors(v, true, spacing_um=(z, y, x), cone=CONE)["z"] for v in (before, estimate)]
        rows.append(_row("FRC with the truth", "z", [*found, itself]))
    return rows
