"""Holes (NaN, padding): filled from what lies around them for the method, and put back after it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.scan import Factor, Intensity

__all__ = ["HOLE_REACH", "fill_holes", "off_padding", "refined"]

HOLE_REACH = 8
"""Samples from which the value of a hole is taken, at most; also the halo these need, in coarse samples."""

APPLICABILITY = ((0.8, 1.0), (2.5, 0.01))
"""Weight of a sample by its distance: a sum of Gaussians, (standard deviation in samples, height). Separable, and near
the inverse power of the distance that the paper proposes: the rim counts most, what lies behind it only where nothing
is nearer."""

RIDGE = 0.005
"""Holds slopes back, as a share of `HOLE_REACH` squared: without it a few noisy samples would tilt a whole hole."""

LEAST_WEIGHT = 1e-9
"""Sum of the weights below which nothing is known of a sample."""


def fill_holes(unit: NDArray[np.float32], holes: NDArray[np.bool_], *, dims: int) -> NDArray[np.float32]:
    """Fill NaN holes from their surroundings by normalized convolution, so that a method sees no cliff.

    A hole sample becomes the value of the plane that fits the known samples around it best, weighted by their distance:
    slopes go on into a hole. Without a known sample within `HOLE_REACH` it becomes 0.5, the middle of the unit line.
    The result at a sample depends on its surroundings within `HOLE_REACH` samples only, hence tiles agree.

    Args:
        unit: unit intensity, any number of leading axes.
        holes: True where `unit` is to be filled.
        dims: number of trailing axes along which samples are neighbors.

    References:
        H. Knutsson, C.-F. Westin: Normalized and differential convolution, CVPR 1993, doi:10.1109/CVPR.1993.341081:
        the certainty is 1 where a sample is known, the basis 1 and the coordinates, with a ridge on their slopes.
    """
    if not holes.any() or holes.all():
        return np.where(holes, np.float32(0.5), unit)
    about = np.float32(unit[~holes].mean(dtype=np.float64))  # centered, so that no digits are lost on a pedestal
    known = (~holes).astype(np.float32)
    value = np.where(holes, np.float32(0), unit - about)
    basis = [(0,) * dims, *(tuple(int(a == axis) for a in range(dims)) for axis in range(dims))]
    weights, products = _moments(known, degree=2, dims=dims), _moments(value, degree=1, dims=dims)
    right = np.stack([products[power][holes] for power in basis], axis=-1).astype(np.float64)
    normal = np.empty((*right.shape, len(basis)))
    for i, one in enumerate(basis):
        for j, other in enumerate(basis):
            normal[:, i, j] = weights[tuple(a + b for a, b in zip(one, other, strict=True))][holes]
    total = normal[:, 0, 0].copy()
    near = total > LEAST_WEIGHT
    for axis in range(1, len(basis)):
        normal[:, axis, axis] += RIDGE * total
    normal[~near] = np.eye(len(basis))
    level = np.linalg.solve(normal, right[..., None])[:, 0, 0]
    filled = np.array(unit, np.float32)
    filled[holes] = np.where(near, level + about, 0.5)
    return filled


def _moments(samples: NDArray[np.float32], *, degree: int, dims: int) -> dict[tuple[int, ...], NDArray[np.float32]]:
    """Weighted sums around each sample of samples times powers of their coordinates, by the powers, which sum up to at
    most `degree`; coordinates in units of the reach."""
    place = np.arange(-HOLE_REACH, HOLE_REACH + 1)
    found: dict[tuple[int, ...], NDArray[np.float32]] = {}
    for width, height in APPLICABILITY:
        weight = np.exp(-0.5 * (place / width) ** 2)
        sums: dict[tuple[int, ...], NDArray[np.float32]] = {(): samples * np.float32(height)}
        for axis in range(-dims, 0):
            sums = {
                (*powers, power): ndimage.correlate1d(
                    part, weight * (place / HOLE_REACH) ** power, axis=axis, mode="constant"
                )
                for powers, part in sums.items()
                for power in range(degree - sum(powers) + 1)
            }
        found = {powers: part + found[powers] if found else part for powers, part in sums.items()}
    return found


def refined(samples: NDArray[Any], factor: Factor) -> NDArray[Any]:
    """Samples on the refined grid, each repeated over the fine samples of its cell; any leading axes."""
    for axis, f in zip(range(-len(factor), 0), factor, strict=True):
        samples = np.repeat(samples, f, axis)
    return samples


def off_padding(stored: NDArray[Any], intensity: Intensity) -> NDArray[Any]:
    """Values of samples that were estimated, moved off the padding to the nearest value beside it; any shape.

    A value in the range of the padding would be read back as a hole. The order of values is kept.
    """
    if intensity.padding is None:
        return stored
    low, high = min(intensity.padding), max(intensity.padding)
    inside = (stored >= low) & (stored <= high)
    if not inside.any():
        return stored
    dtype = stored.dtype
    if dtype.kind == "f":
        ends = np.array([low, high], dtype)
        below, above = np.nextafter(ends, np.array([-np.inf, np.inf], dtype)).tolist()
    else:
        info = np.iinfo(dtype)
        # Whole numbers beside the range; where the dtype has none on one side, those of the other.
        below, above = math.ceil(low) - 1, math.floor(high) + 1
        below, above = (above if below < info.min else below), (below if above > info.max else above)
        if not info.min <= above <= info.max:
            return stored  # all values of the dtype are padding
    return np.where(inside, np.where(stored - low < high - stored, dtype.type(below), dtype.type(above)), stored)
