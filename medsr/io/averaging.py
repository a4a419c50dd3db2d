"""average: the area average from which each level of a pyramid is made; holes are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scan import Factor, Intensity

__all__ = ["average"]


def average(data: NDArray[Any], step: Factor, *, intensity: Intensity | None = None) -> NDArray[Any]:
    """Area average over blocks of `step` (1 or 2 for each axis), same dtype; integers are rounded.

    The last block along an axis of odd size is an average over what is there. Holes (NaN, and the padding of
    `intensity`) are left out of an average; a block of holes only keeps the value of its first.
    """
    exact = np.dtype(np.float32 if data.dtype.kind in "iu" and data.dtype.itemsize <= 2 else np.float64)
    holes = intensity.holes(data) if intensity is not None and intensity.may_have_holes else None
    if holes is not None and holes.any():
        total, count = data.astype(exact), (~holes).astype(exact)
        total[holes] = 0
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = _means(total, step, exact) / _means(count, step, exact)
        mean = np.where(np.isnan(mean), data[tuple(slice(None, None, s) for s in step)], mean)
    else:
        mean = _means(data, step, exact)
    if data.dtype.kind in "iu":
        mean = np.rint(mean)
    result: NDArray[Any] = mean.astype(data.dtype)
    return result


def _means(values: NDArray[Any], step: Factor, exact: np.dtype[Any]) -> NDArray[Any]:
    """Means of pairs along each axis of step 2, a last single value as it is; exact, since only halved."""
    for axis, s in enumerate(step):
        if s > 1:
            along = np.moveaxis(values, axis, 0)
            pairs = len(along) // 2
            shape = list(values.shape)
            shape[axis] -= pairs
            values = np.empty(shape, exact)
            into = np.moveaxis(values, axis, 0)
            np.add(along[: 2 * pairs : 2], along[1::2], out=into[:pairs], dtype=exact)
            into[:pairs] *= exact.type(0.5)
            into[pairs:] = along[2 * pairs :]
    return values
