"""Whether the noise of neighboring samples is independent, as one-image measures of resolution need it to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_CORRELATION", "Independence", "sample_independence"]

Array = NDArray[Any]

LARGEST_CORRELATION = 0.2
"""Correlation of neighboring samples up to which noise passes for white; twofold interpolation gives 0.6."""
UNEVEN = 1.5
"""Largest ratio of the residual's variance between the phases of a lattice of 2, 4 or 8 samples."""
BLOCK = 32
"""Side of the blocks whose median is taken, so that a few sharp structures do not count."""
FILTER = (6.0, -4.0, 1.0)
"""Autocorrelation of the second difference (1, -2, 1) at lags 0, 1 and 2."""
PERIODS = (2, 4, 8)
BATCH = 2**20
"""Samples of a band, which bounds memory."""


@dataclass(frozen=True, slots=True)
class Independence:
    """What the finest residual of an image says about its noise.

    Attributes:
        correlation: of the noise in neighboring samples, the axis where it is furthest from 0; nan without noise.
        unevenness: largest ratio of the residual's variance between the phases of a lattice of 2, 4 or 8 samples;
            1 for a camera, more for an image that was resampled.
        fano: variance of the noise over the mean of the values, median of blocks; 1 for counts of photons.
        reason: why samples are not independent; empty where they are.
    """

    correlation: float
    unevenness: float
    fano: float
    reason: str = ""


def sample_independence(image: Array, *, largest: float = LARGEST_CORRELATION) -> Independence:
    """Test whether noise is white and the samples were measured, not computed from one another.

    The residual is the second difference along both last axes: structure that is smooth over three samples vanishes,
    noise stays. White noise gives it the correlation -2/3 between neighbors; any other value is converted into the
    correlation of neighboring samples that explains it. An image whose structure is as fine as its samples looks
    correlated too. A residual whose variance changes with the position on a lattice was resampled.

    Args:
        image: plane or stack of planes, (..., y, x), any units; blocks of 32 with NaN are left out.
        largest: correlation up to which the noise passes for white.

    Raises:
        ValueError: fewer than two axes.
    """
    if image.ndim < 2:
        raise ValueError(f"image: expected (..., y, x), found shape {image.shape}")
    parts = [_Blocks.of(e, v) for plane in image.reshape(-1, *image.shape[-2:]) for e, v in _bands(plane)]
    kept = [part for part in parts if part.fano.size]
    if not kept:
        reason = (
            f"no block of {BLOCK} x {BLOCK} samples is free of holes and holds noise; give a larger or a noisy region"
        )
        return Independence(math.nan, math.nan, math.nan, reason)
    each = np.median(np.concatenate([part.neighbors for part in kept], axis=1), axis=1)
    correlation = float(each[np.abs(each).argmax()])
    unevenness = max(_ratio([part.lattice[key] for part in kept]) for key in kept[0].lattice)
    fano = float(np.median(np.concatenate([part.fano for part in kept])))
    reason = ""
    if not abs(correlation) <= largest:
        reason = f"invalid: samples are not independent (neighbors correlate by {correlation:.2f}, limit {largest:g})"
    elif unevenness > UNEVEN:
        reason = f"invalid: samples are not independent (noise repeats on a lattice, variance ratio {unevenness:.2f})"
    return Independence(correlation, unevenness, fano, reason)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What the blocks of one band say: correlation of neighbors along (y, x), Fano factor, variance by phase."""

    neighbors: NDArray[np.float64]
    fano: NDArray[np.float64]
    lattice: dict[tuple[int, int], NDArray[np.float64]]

    @staticmethod
    def of(residual: NDArray[np.float64], values: NDArray[np.float64]) -> _Blocks:
        energy = np.square(residual).mean((1, 2))
        # Residuals below rounding are no noise: a ramp or a flat field in floating point.
        scale = np.square(values).mean((1, 2)) * 1e-20
        use = np.isfinite(energy) & (energy > scale)
        residual, energy, mean = residual[use], energy[use], values[use].mean((1, 2))
        rho = np.stack([_lag_one(residual, axis) for axis in (1, 2)])
        w0, w1, w2 = FILTER
        # Noise with correlation c between neighbors gives rho = (w1 + c (w0 + w2)) / (w0 + 2 c w1); solved for c.
        neighbors = (w1 - rho * w0) / (2 * rho * w1 - (w0 + w2))
        # Ten standard deviations count no more than three: an edge is no lattice.
        even = np.minimum(np.square(residual) / energy[:, None, None], 9.0)
        lattice = {
            (axis, period): np.array([even.take(range(first, BLOCK, period), axis).sum() for first in range(period)])
            / [max(1, len(range(first, BLOCK, period)) * even.size / BLOCK) for first in range(period)]
            * max(1, len(even))
            for axis in (1, 2)
            for period in PERIODS
        }
        variance = energy / w0**2
        return _Blocks(neighbors, np.where(mean > 0, variance / np.where(mean > 0, mean, 1), np.inf), lattice)


def _bands(plane: Array) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Residuals and values in blocks, (blocks, 32, 32), a band of rows at a time."""
    rows = max(1, BATCH // (BLOCK * max(1, plane.shape[1]))) * BLOCK
    for top in range(0, plane.shape[0] - 2, rows):
        values = np.asarray(plane[top : top + rows + 2], np.float64)
        residual = np.diff(np.diff(values, 2, axis=0), 2, axis=1)
        yield _cut(residual), _cut(values[1:-1, 1:-1])


def _cut(values: NDArray[np.float64]) -> NDArray[np.float64]:
    high, wide = (n // BLOCK for n in values.shape)
    blocks = values[: high * BLOCK, : wide * BLOCK].reshape(high, BLOCK, wide, BLOCK)
    return blocks.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)


def _lag_one(residual: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Correlation of each block with itself one sample further along an axis."""
    first, second = (np.take(residual, range(s, s + BLOCK - 1), axis) for s in (0, 1))
    power = (np.square(first) + np.square(second)).sum((1, 2)) / 2
    return np.asarray((first * second).sum((1, 2)) / np.where(power > 0, power, 1))


def _ratio(sums: list[NDArray[np.float64]]) -> float:
    """Largest over smallest variance by phase."""
    total = np.sum(sums, axis=0)
    return float(total.max() / max(total.min(), 1e-12 * total.max()))
