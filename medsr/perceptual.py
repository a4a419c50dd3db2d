"""haarpsi, gmsd: how alike two planes look, without a trained network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["gmsd", "haarpsi"]

Array = NDArray[Any]
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEVELS = 0xFF
"""Both measures were fitted to pictures from black at 0 to white at this."""
C, ALPHA = 30.0, 4.2
"""Constants of HaarPSI (Reisenhofer et al. 2018)."""
T = 170.0
"""Constant of GMSD: 0.0026 for a range of 1 (Xue et al. 2014, section III)."""
WINDOW = 8
"""Samples, after halving, that the coarsest of three Haar wavelets extends over."""
BAND = 2**20
"""Samples, after halving, computed at a time."""


class Band(NamedTuple):
    """Rows of two planes, halved or as they are, on a line from 0 to LEVELS.

    Attributes:
        first, second: means of blocks of samples; 0 where not known.
        known: True where all samples of both are finite.
        chosen: True where the mask holds at least half of a block.
    """

    first: Plane
    second: Plane
    known: Mask
    chosen: Mask


def haarpsi(estimate: Array, truth: Array, *, data_range: float, mask: Mask | None = None, halve: bool = True) -> float:
    """Haar wavelet-based perceptual similarity: 1 for planes that look alike, toward 0 the less they do.

    Edges of the estimate are compared with those of the truth at two fine scales, and count by how strong they are at
    a third one; so a blurred plane scores below a sharp one of the same error. As published, both planes are first
    halved. Unlike the published code, which pads with zeros, it counts only windows that lie in the plane, and none
    that holds a NaN or infinity. Blind to a constant difference: read it beside PSNR. It was fitted to photographs of
    8 bits; between scans compare values of the same `data_range` only.

    Args:
        estimate, truth: two planes (y, x) of one shape, in the same units, any dtype.
        data_range: the distance of black and white in these units.
        mask: True where a window counts, by its center; None: everywhere.
        halve: average 2 x 2 samples first, as published for pictures at a usual viewing distance. The finest octave is
            then not seen: for super-resolution by 2 give False, or what is block-consistent scores 1 whatever it is.

    Returns:
        0 to 1; 1 where neither plane has an edge; nan where no window fits (planes below 16 samples, 8 not halved).

    Raises:
        ValueError: the shapes differ, are no planes, or `data_range` is not above 0.

    References:
        R. Reisenhofer, S. Bosse, G. Kutyniok, T. Wiegand: A Haar wavelet-based perceptual similarity index for image
        quality assessment, 2018, doi:10.1016/j.image.2017.11.001.
    """
    windows, weights, total = 0, 0.0, 0.0
    step = 2 if halve else 1
    for band in _bands(estimate, truth, data_range, mask, step=step, before=WINDOW // 2 - 1, after=WINDOW // 2):
        inside = _inside(band.known, WINDOW) & _cut(band.chosen, WINDOW // 2 - 1, WINDOW)
        windows += int(inside.sum())
        for axis in (0, 1):
            mine, true = _wavelets(band.first, axis), _wavelets(band.second, axis)
            # section 2: likeness at the scales 1 and 2, weighed by the stronger coefficient of scale 3
            pairs = list(zip(mine, true, strict=True))
            alike = sum((2 * a * b + C) / (a * a + b * b + C) for a, b in pairs[:2]) / 2
            weight = np.maximum(*pairs[2])[inside]
            weights += float(weight.sum())
            total += float((weight / (1 + np.exp(-ALPHA * np.asarray(alike)[inside]))).sum())
    if not windows:
        return math.nan
    if weights == 0:
        return 1.0
    share = total / weights
    return float((math.log(share / (1 - share)) / ALPHA) ** 2)


def gmsd(estimate: Array, truth: Array, *, data_range: float, mask: Mask | None = None, halve: bool = True) -> float:
    """Gradient magnitude similarity deviation: 0 for planes that look alike, larger (to about 0.4) the less they do.

    The deviation over the plane of how alike the gradients are: an estimate that is right here and wrong there looks
    worse than one that is a little wrong everywhere. Arguments, halving, borders, holes and errors as in `haarpsi`; nan
    for planes below 6 samples (3 not halved).

    References:
        W. Xue, L. Zhang, X. Mou, A. C. Bovik: Gradient magnitude similarity deviation: a highly efficient perceptual
        image quality index, 2014, doi:10.1109/TIP.2013.2293423.
    """
    count, mean, squares = 0, 0.0, 0.0
    for band in _bands(estimate, truth, data_range, mask, step=2 if halve else 1, before=1, after=1):
        inside = _inside(band.known, 3) & _cut(band.chosen, 1, 3)
        mine, true = _gradient(band.first), _gradient(band.second)
        alike = ((2 * mine * true + T) / (mine * mine + true * true + T))[inside]  # equation 4
        if alike.size:
            step = float(alike.mean()) - mean
            squares += float(((alike - alike.mean()) ** 2).sum()) + step**2 * count * alike.size / (count + alike.size)
            count += alike.size
            mean += step * alike.size / count
    return math.sqrt(squares / count) if count else math.nan  # equation 6


def _bands(
    estimate: Array, truth: Array, data_range: float, mask: Mask | None, *, step: int, before: int, after: int
) -> Iterator[Band]:
    """Bands of rows of block means, each with `before` and `after` rows of context, that share no window."""
    found = [array.shape for array in (estimate, truth, mask) if array is not None]
    if len(set(found)) != 1 or len(found[0]) != 2:
        raise ValueError(f"expected planes (y, x) of one shape, found {' and '.join(map(str, found))}; take one plane")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range: expected a finite value above 0 (white minus black), found {data_range}")
    rows, columns = (n // step for n in truth.shape)
    if columns <= before + after:
        return
    height = max(4 * WINDOW, BAND // max(1, columns))
    for start in range(before, rows - after, height):
        stop = min(start + height, rows - after)
        band = np.s_[step * (start - before) : step * (stop + after), : step * columns]
        first, second = (_means(array[band], step, LEVELS / data_range) for array in (estimate, truth))
        known = np.isfinite(first) & np.isfinite(second)
        chosen = known if mask is None else _means(mask[band], step, 1.0) >= 0.5
        yield Band(np.where(known, first, 0.0), np.where(known, second, 0.0), known, chosen)


def _means(array: Array, step: int, gain: float) -> Plane:
    """Means of `step` x `step` samples times `gain`, float64; not finite where one of them is not."""
    with np.errstate(invalid="ignore"):
        total = sum(np.asarray(array[y::step, x::step], np.float64) for y in range(step) for x in range(step))
        return np.asarray(total * (gain / step**2), np.float64)


def _cut(array: Array, before: int, width: int) -> Array:
    """What lies at the centers of the windows of `width` samples that fit."""
    return array[tuple(slice(before, before + n - width + 1) for n in array.shape)]


def _inside(known: Mask, width: int) -> Mask:
    """True for each window of `width` samples that holds no hole."""
    if known.all():
        return np.ones(tuple(max(0, n - width + 1) for n in known.shape), bool)
    free = known
    for axis in (0, 1):
        size = free.shape[axis] - width + 1
        free = np.logical_and.reduce([np.take(free, range(k, k + size), axis) for k in range(width)])
    return np.asarray(free)


def _slid(plane: Plane, axis: int, start: int, size: int) -> Plane:
    return plane[start : start + size] if axis == 0 else plane[:, start : start + size]


def _wavelets(plane: Plane, axis: int) -> list[Plane]:
    """Magnitudes of the Haar wavelet across `axis` at the scales 1, 2 and 3, at the centers of the windows that fit."""
    found = []
    size = [n - WINDOW + 1 for n in plane.shape]
    sums = plane
    for scale in (1, 2, 3):
        half = 2 ** (scale - 1)
        sums = _paired(sums, 1 - axis, half, 1)  # from `half` by `half` samples to twice as many
        across = _paired(sums, axis, half, -1)
        first = WINDOW // 2 - half
        found.append(np.abs(_slid(_slid(across, 0, first, size[0]), 1, first, size[1])) * 2.0**-scale)
        sums = _paired(sums, axis, half, 1)
    return found


def _paired(plane: Plane, axis: int, step: int, sign: int) -> Plane:
    """Each sample plus (or, the other way around, less) the one `step` further along an axis, where there is one."""
    size = plane.shape[axis] - step
    here, there = _slid(plane, axis, 0, size), _slid(plane, axis, step, size)
    return there + here if sign > 0 else there - here


def _gradient(plane: Plane) -> Plane:
    """Magnitude of the Prewitt gradient (equations 1 to 3), at the centers of the windows that fit."""
    steps = list[Plane]()
    for axis in (0, 1):
        across = _paired(plane, axis, 2, -1)
        lines = across.shape[1 - axis] - 2
        steps.append(np.asarray(sum(_slid(across, 1 - axis, k, lines) for k in range(3)) / 3, np.float64))
    return np.asarray(np.hypot(steps[0], steps[1]), np.float64)
