"""Real pairs: which coarse and fine scans belong together, and how they lie on each other."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.io import Source, find_scans
from medsr.io.naming import scan_name
from medsr.registration import Registration, frames_of
from medsr.scan import Factor, Intensity, LazyArray, Region, Scan, ScanError

__all__ = [
    "Pair",
    "aligned",
    "cropped",
    "find_pairs",
    "gray_line",
    "gray_points",
    "resampled",
    "with_line",
]

log = logging.getLogger("medsr.pairs")

POINTS = 4096
"""Places of a pair whose gray values tell how the two sides' values belong together."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A coarse and a fine scan of the same field."""

    low: Source
    high: Source


def find_pairs(folder: Path, *, named: bool = True) -> list[Pair]:
    """The pairs of a folder with the folders `low/` and `high/`: scans of one name, endings left out.

    Folders inside are compared too: `low/day1/a.tif` belongs to `high/day1/a.ome.tif`. What has no partner, or more
    than one, is named in a warning and left out.

    Args:
        folder: the one above `low` and `high`.
        named: False: warnings count what is left out and name nothing.

    Raises:
        ScanError: one of the two folders is missing, or no name is in both.
    """
    sides = []
    for name in ("low", "high"):
        if not (folder / name).is_dir():
            raise ScanError(f"{folder}: expected the folders low and high with scans of one name each, found no {name}")
        sides.append(_named(folder / name, named=named))
    low, high = sides
    for name, (mine, others) in {"low": (low, high), "high": (high, low)}.items():
        alone = sorted("/".join(key) for key in mine.keys() - others.keys())
        if alone:
            log.warning("%s: left out, without a partner: %s", *_said(folder / name, alone, named=named))
    pairs = [Pair(low[key], high[key]) for key in low if key in high]
    if not pairs:
        raise ScanError(f"{folder}: expected scans of one name in low and high, found no name in both; rename them")
    return pairs


def aligned(low: Scan, high: Scan, registration: Registration, factor: Factor) -> tuple[Scan, Scan]:
    """The two scans cropped to what both show, lazy: the fine one has exactly `factor` times the coarse samples.

    Where the registration says resample, the coarse scan is read whole and interpolated by the residual (cubic
    splines); it is then of floats.

    Raises:
        ScanError: a scan with holes is to be resampled.
    """
    full = high.grid.pad_factor(factor)
    fine = tuple(n * f for n, f in zip(registration.shape, full, strict=True))
    part = cropped(low, registration.low_start, registration.shape)
    return (resampled(part, registration.residual) if registration.resample else part), cropped(
        high, registration.high_start, fine
    )


def cropped(scan: Scan, start: Sequence[int], shape: Sequence[int]) -> Scan:
    """A region of a scan, lazy; the scan itself where the region is all of it."""
    if tuple(shape) == scan.shape and not any(start):
        return scan
    data = cast("LazyArray", _Window(scan.data, tuple(start), tuple(shape)))
    return replace(scan, data=data, grid=scan.grid.crop(tuple(start)))


def resampled(scan: Scan, shift: Sequence[float]) -> Scan:
    """A scan moved by a part of a sample against its direction, so that it lies as one at `shift` 0; floats, in memory.

    Raises:
        ScanError: it has holes, which splines would smear.
    """
    stored = scan.read()
    if scan.intensity.holes(stored).any():
        raise ScanError(
            "expected no holes in a coarse scan that is resampled, found some; use data.registration: whole"
        )
    moved = ndimage.shift(stored.astype(np.float64), [-s for s in shift], order=3, mode="nearest").astype(np.float32)
    intensity = replace(scan.intensity, dtype=np.dtype(np.float32), bits=None)
    return replace(scan, data=moved, intensity=intensity).noted("resampled to lie on its fine scan")


def gray_points(low: Scan, high: Scan, factor: Factor, *, smoothing: float = 4.0) -> NDArray[np.float64]:
    """Stored values of an aligned pair where both were measured: (2, n), coarse ones and means of fine ones.

    Both are smoothed by a Gaussian of `smoothing` coarse samples, so that neither noise nor a difference in sharpness
    bends their relation.
    """
    full = high.grid.pad_factor(factor)
    whole = Registration(
        (0,) * len(full), (0,) * len(full), low.shape, (0.0,) * len(full), (0.0,) * len(full), 1.0, 0
    )  # fmt: skip
    parts = []
    for one, other, holes in frames_of(low, high, whole, full, dims=len(factor)):
        if one.size and not holes.all():
            smooth = np.stack([ndimage.gaussian_filter(side, smoothing, mode="nearest") for side in (one, other)])
            parts.append(smooth[:, ~holes])
    points = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0))
    return points[:, :: max(1, points.shape[1] // POINTS)]


def gray_line(points: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Gain and offset of `high = gain * low + offset` in stored values, one line for all pairs.

    The coarse values carry the noise, so they are fitted to the fine ones and the line is turned round; values further
    than 3 robust standard deviations off are left out, ten times over.

    Args:
        points: (2, n) of each pair, from `gray_points`.

    Raises:
        ScanError: the values do not vary, or have no line that rises.
    """
    low, high = np.concatenate(list(points), axis=1) if points else np.zeros((2, 0))
    kept = np.ones(low.size, bool)
    slope = intercept = 0.0
    for _ in range(10):
        if kept.sum() < 8 or np.ptp(high[kept]) == 0:
            raise ScanError("pairs: expected gray values that vary, found a constant; no line fits them")
        center = float(high[kept].mean())
        deviation = high[kept] - center
        slope = float((deviation @ low[kept]) / (deviation @ deviation))
        intercept = float(low[kept].mean()) - slope * center
        off = np.abs(low - slope * high - intercept)
        limit = 3 * 1.4826 * float(np.median(off[kept]))
        kept = off <= max(limit, 1e-9 * float(np.ptp(low)))
    if slope <= 0:
        raise ScanError(
            f"pairs: expected gray values of low that rise with those of high, found a slope of {slope:.3g}; one of "
            "the two is inverted: fix the files"
        )
    return 1 / slope, -intercept / slope


def with_line(low: Intensity, high: Intensity, gain: float = 1.0, offset: float = 0.0) -> Intensity:
    """The intensity of a fine scan whose values lie on `gain * low + offset`, so that equal things are equal in unit
    intensity on both sides; with gain 1 and offset 0 stored values are compared as they are."""
    return replace(high, black=gain * low.black + offset, white=gain * low.white + offset)


class _Window:
    """A region of a lazy array."""

    def __init__(self, data: LazyArray, start: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self._data, self._start = data, start
        self.shape, self.dtype = shape, data.dtype

    def __getitem__(self, region: Region, /) -> Array:
        moved = []
        for part, start, size in zip(region, self._start, self.shape, strict=True):
            first, last, step = part.indices(size)
            moved.append(slice(first + start, last + start, step))
        return np.asarray(self._data[tuple(moved)])


def _said(folder: Path, names: Sequence[str], *, named: bool) -> tuple[str, str]:
    return (str(folder), ", ".join(names)) if named else (folder.name, f"{len(names)}")


def _named(folder: Path, *, named: bool) -> dict[tuple[str, ...], Source]:
    """The scans of a folder by the path of their names below it; without those whose name is there twice."""
    found: dict[tuple[str, ...], list[Source]] = defaultdict(list)
    for source in find_scans(folder):
        inside = source.path.relative_to(folder)
        name = source.name if inside == Path() else scan_name(inside)
        found[(*inside.parts[:-1], name)].append(source)
    twice = sorted("/".join(key) for key, sources in found.items() if len(sources) > 1)
    if twice:
        log.warning("%s: left out, several files of one name: %s", *_said(folder, twice, named=named))
    return {key: sources[0] for key, sources in found.items() if len(sources) == 1}
