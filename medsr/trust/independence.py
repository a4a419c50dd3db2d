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
"""Largest ratio of the residual's variance between the phases of a lattice of 2, 3 or 4 samples."""
BLOCK = 32
"""Side of the blocks whose median is taken, so that a few sharp structures do not count."""
FILTER = (6.0, -4.0, 1.0)
"""Autocorrelation of the second difference (1, -2, 1) at lags 0, 1 and 2."""
PERIODS = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class Independence:
    """What the finest residual of an image says about its noise.

    Attributes:
        correlation: of the noise in neighboring samples, the axis where it is furthest from 0; nan without noise.
        unevenness: largest ratio of the residual's variance between the phases of a lattice of 2, 3 or 4 samples;
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
    found = [part for plane in _planes(image) if (part := _blocks(plane)) is not None]
    if not found:
        reason = "no block of 32 x 32 samples is free of holes and holds noise; give a larger or a noisy region"
        return Independence(math.nan, math.nan, math.nan, reason)
    rho = np.concatenate([f[0] for f in found], axis=1)
    fano = float(np.median(np.concatenate([f[1] for f in found])))
    each = np.median(_neighbors(rho), axis=1)
    correlation = float(each[np.abs(each).argmax()])
    unevenness = max(float(np.median(np.concatenate([f[2][p] for f in found], axis=1), axis=1).max()) for p in PERIODS)
    unevenness = max(unevenness, _lattice([f[3] for f in found]))
    reason = ""
    if not abs(correlation) <= largest:
        reason = f"invalid: samples are not independent (neighbors correlate by {correlation:.2f}, limit {largest:g})"
    elif unevenness > UNEVEN:
        reason = f"invalid: samples are not independent (noise repeats on a lattice, variance ratio {unevenness:.2f})"
    return Independence(correlation, unevenness, fano, reason)
