"""estimate_noise: the noise of a scan as a function of its intensity, from the scan itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scan import Intensity, Scan

__all__ = ["NoiseCurve", "estimate_noise", "rounding_sd"]

Floats = NDArray[np.float64]

BLOCK = 16
"""Side of the blocks in which noise is measured."""
PLANES, WINDOW, WINDOWS = 16, 512, 4
"""Planes looked at; of a wider one a lattice of windows."""
BLOCKS_A_LEVEL, LEVELS = 32, 16
QUIET = 0.25
"""Share of the blocks of a level that are taken for flat."""
QUARTILE = 1.064
"""Standard deviation of white noise over the lower quartile of those of 16 x 16 blocks (98,304 blocks simulated)."""


@dataclass(frozen=True, slots=True)
class NoiseCurve:
    """Standard deviation of a scan's noise at some levels, straight between them, constant beyond.

    Attributes:
        levels: unit intensity, ascending.
        deviations: standard deviation at each, unit intensity.

    Raises:
        ValueError: no level, levels that do not ascend, or a deviation that is no finite number of at least 0.
    """

    levels: tuple[float, ...]
    deviations: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        sound = all(math.isfinite(d) and d >= 0 for d in self.deviations)
        if not self.levels or len(self.levels) != len(self.deviations) or not ascending or not sound:
            raise ValueError(
                "NoiseCurve: expected ascending levels with a deviation of at least 0 for each, found "
                f"{self.levels} and {self.deviations}"
            )

    def sd(self, signal: Floats) -> Floats:
        """Standard deviation at a mean signal (any shape), unit intensity."""
        return np.asarray(np.interp(signal, self.levels, self.deviations), np.float64)

    def describe(self, intensity: Intensity) -> str:
        """The curve in stored values."""
        span = abs(intensity.white - intensity.black)
        ends = (span * min(self.deviations), span * max(self.deviations))
        least, most = (f"{d:,.0f}" if d >= 999.5 else f"{d:.3g}" for d in ends)
        return f"sd {least} stored values" if least == most else f"sd {least} to {most} stored values"


def rounding_sd(intensity: Intensity) -> float:
    """Standard deviation that rounding to whole stored values adds, unit intensity; for floats their own precision."""
    span = abs(intensity.white - intensity.black)
    if intensity.dtype.kind in "iu":
        return 1 / math.sqrt(12) / span  # a uniform error over one gray level
    largest = max(abs(intensity.white), abs(intensity.black))
    return float(np.finfo(intensity.dtype).eps) * largest / span


def estimate_noise(scan: Scan) -> NoiseCurve:
    """Noise of a scan by intensity, robust against its structure.

    Up to 16 planes (of large ones 16 windows of 512 x 512) are filtered by Immerkaer's mask, the difference of two
    Laplacians, which keeps no constant, no slope and no straight edge along an axis, and divided by 6, its gain for
    white noise. In blocks of 16 x 16 the root mean square is taken; blocks of nearly equal mean make a level (at least
    32 blocks, at most 16 levels), and of each the lower quartile counts, for structure only adds; white noise alone
    comes out right by a constant. Blocks of one single value (a mask, saturation) and blocks with holes tell nothing
    and are left out. The least is the rounding, 1 / sqrt(12) of a gray level.

    Noise that is correlated between neighbors (filtered, resampled or compressed scans) comes out too small, texture as
    fine as the samples too large.

    References:
        J. Immerkaer: Fast noise variance estimation, 1996, equations 1 to 3, doi:10.1006/cviu.1996.0060.
        A. Foi et al., 2008, section IV, doi:10.1109/TIP.2008.2001399 (levels of equal mean).
    """
    means, deviations = [], []
    for plane in _planes(scan):
        mean, deviation = _blocks(plane)
        means.append(mean)
        deviations.append(deviation)
    mean, deviation = np.concatenate(means), np.concatenate(deviations)
    floor = rounding_sd(scan.intensity)
    if not mean.size:
        return NoiseCurve((0.0,), (floor,))
    order = np.argsort(mean, kind="stable")
    count = max(1, min(LEVELS, mean.size // BLOCKS_A_LEVEL))
    found: dict[float, float] = {}
    for part in np.array_split(order, count):
        quiet = QUARTILE * float(np.quantile(deviation[part], QUIET))
        found[float(np.median(mean[part]))] = max(floor, quiet)
    return NoiseCurve(tuple(found), tuple(found.values()))


def _planes(scan: Scan) -> Iterator[Floats]:
    """Planes or windows of them in unit intensity, holes NaN."""
    counts = scan.shape[:-2]
    total = math.prod(counts)
    for pick in np.unique(np.linspace(0, total - 1, min(PLANES, total)).round().astype(int)):
        lead = [slice(int(i), int(i) + 1) for i in np.unravel_index(pick, counts)] if counts else []
        sizes = scan.shape[-2:]
        starts = [
            sorted({int(s) for s in np.linspace(0, n - WINDOW, WINDOWS)}) if n > WINDOW * WINDOWS else [0]
            for n in sizes
        ]
        for corner in product(*starts):
            ends = zip(corner, starts, sizes, strict=True)
            window = [slice(c, c + WINDOW if len(s) > 1 else n) for c, s, n in ends]
            stored = scan.read((*lead, *window))
            unit = scan.intensity.to_unit(stored).astype(np.float64)
            unit[scan.intensity.holes(stored)] = np.nan
            yield unit.reshape(unit.shape[-2:]) if unit.ndim > 1 else unit.reshape(1, -1)


def _blocks(plane: Floats) -> tuple[Floats, Floats]:
    """Mean and root mean square of the filtered samples of each block that tells something."""
    rows, columns = (n - 2 for n in plane.shape)
    if rows < 1 or columns < 1:
        return np.empty(0), np.empty(0)
    high, wide = min(BLOCK, rows), min(BLOCK, columns)
    rows, columns = rows // high * high, columns // wide * wide
    second = plane[:-2] - 2 * plane[1:-1] + plane[2:]
    filtered = (second[:, :-2] - 2 * second[:, 1:-1] + second[:, 2:]) / 6  # equation 2, gain 6 for white noise
    squares = _cut(filtered[:rows, :columns] ** 2, high, wide).mean(-1)
    values = _cut(plane[1 : rows + 1, 1 : columns + 1], high, wide)
    use = np.isfinite(squares) & (values.max(-1) > values.min(-1))
    return values.mean(-1)[use], np.sqrt(squares[use])


def _cut(values: Floats, high: int, wide: int) -> NDArray[Any]:
    """(rows, columns) to (blocks, samples of a block)."""
    rows, columns = (n // s for n, s in zip(values.shape, (high, wide), strict=True))
    return values.reshape(rows, high, columns, wide).swapaxes(1, 2).reshape(rows * columns, high * wide)
