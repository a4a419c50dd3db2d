"""Patch transfer: which displaced patch of a reference resembles the estimate, and the detail it brings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["REACH", "SEARCH", "SIZES", "Reference", "Transfer", "transfer"]

Image = NDArray[np.float64]

SEARCH = 4
"""Largest displacement that is tried, in fine samples along either axis."""

SIZES = (15, 7, 5)
"""Sides of the patches, tried in this order."""

HALF = SIZES[0] // 2

REACH = 2 * HALF + 1
"""Fine samples around a result whose estimate matters: from it to the center of a patch, from there to its edge, and
one for the gradient there."""

STRIDE = 2
"""Fine samples from one patch to the next."""

SMALLER = 0.3
"""Cost in parts of the variance of a patch above which a smaller one is tried."""

LEAST_WEIGHT = 0.01
"""Weight below which a patch brings nothing at all."""

EXACT = 1e-4
"""Cost, in parts of the variance, below which a match counts as exact."""

TIE = 1e-10
"""Squared unit intensity below which costs do not differ: of a flat field the undisplaced patch is the best."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a registered exemplar gives for a region that reaches `SEARCH` samples farther than the estimate's.

    Attributes:
        band: the exemplar in the band of the estimate.
        detail: what the band lacks.
        valid: where both are known.
    """

    band: Image
    detail: Image
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Transfer:
    """The detail found, and where from.

    Attributes:
        detail: to be added to the estimate; 0 exactly where nothing matches.
        source: int16, number of the reference that counts most; -1 where nothing matches.
        cost: float32, mean cost of the patches that count, in parts of their variance; NaN where nothing matches.
    """

    detail: Image
    source: NDArray[np.int16]
    cost: NDArray[np.float32]


def transfer(
    estimate: Image, references: list[Reference], *, first: tuple[int, int], tolerance: float, slope: float = 1.0
) -> Transfer:
    """Detail from the best matching patches, weighted by how well they match.

    Patches lie on a lattice that is fixed in the plane. In each reference a patch looks for the displacement of least
    cost: the mean squared difference without the mean, plus `slope` times that of the gradients. Where the cost is
    large for the variance of the patch, a smaller one is tried. Overlapping patches of all references are blended: sum
    of w^2 d over sum of w with w = exp(-cost / (tolerance * variance)), so that a poor match brings less detail, and a
    very poor one none. Cost and variance are in the same units, hence gain and offset do not matter.

    Args:
        estimate: interpolated plane, or a region of it, unit intensity.
        references: regions that reach `SEARCH` samples farther at every side.
        first: fine position of the estimate's first sample in its plane.
        tolerance: cost, in parts of the variance, at which a match becomes poor.
        slope: weight of gradients.

    References:
        H. Yue et al., Landmark image super-resolution by retrieving web images, 2013, doi:10.1109/TIP.2013.2279315.
    """
    start = [-f % STRIDE for f in first]
    centers = [np.arange(s, n, STRIDE) for s, n in zip(start, estimate.shape, strict=True)]
    windows = [_windows(size, centers, estimate.shape) for size in SIZES]
    variance = [window.variance(estimate) for window in windows]
    matched = [_best(_matches(estimate, reference, windows, slope), variance) for reference in references]
    least = np.min([m.cost for m in matched], axis=0) if matched else np.inf
    blend = _Blend(estimate.shape, centers, len(references))
    for number, (reference, found) in enumerate(zip(references, matched, strict=True)):
        # Inverse to the cost among references, as independent measurements are averaged: an exact one counts alone.
        with np.errstate(invalid="ignore"):
            weight = np.exp(-found.cost / tolerance) * (least + EXACT) / (found.cost + EXACT)
        blend.add(number, reference.detail, found, np.where(weight >= LEAST_WEIGHT, weight, 0.0))
    return blend.result()


class _Matched(NamedTuple):
    """Of every patch in one reference: which of `SIZES`, which displacement, the cost in parts of its variance."""

    level: NDArray[np.int64]
    shift: NDArray[np.int64]
    cost: Image


def _best(found: tuple[list[Image], list[NDArray[np.int64]]], variance: list[Image]) -> _Matched:
    """The size of each patch, and what it found."""
    best, shifts = found
    level = np.zeros(best[0].shape, np.int64)
    for i in range(len(SIZES) - 1):
        level[(level == i) & (best[i] > SMALLER * variance[i])] = i + 1
    cost, spread = (np.choose(level, parts) for parts in (best, variance))
    return _Matched(level, np.choose(level, shifts), np.asarray(cost / (spread + TIE), np.float64))


def _matches(
    estimate: Image, reference: Reference, windows: list[_Windows], slope: float
) -> tuple[list[Image], list[NDArray[np.int64]]]:
    """For each size of patch the least cost of every patch, and the number of its displacement."""
    best = [np.full(window.count.shape, np.inf) for window in windows]
    chosen = [np.zeros(window.count.shape, np.int64) for window in windows]
    for number, (dy, dx) in enumerate(product(range(-SEARCH, SEARCH + 1), repeat=2)):
        part = tuple(slice(SEARCH + d, SEARCH + d + n) for d, n in zip((dy, dx), estimate.shape, strict=True))
        if not reference.valid[part].any():
            continue
        # So that equal costs, as of a flat field, have one winner in every tile.
        tie = TIE * (1 + dy * dy + dx * dx + 1e-2 * dy + 1e-3 * dx)
        costs = _costs(estimate - reference.band[part], ~reference.valid[part], windows, slope)
        for cost, least, choice in zip(costs, best, chosen, strict=True):
            better = cost + tie < least
            least[better] = cost[better] + tie
            choice[better] = number
    return best, chosen


@dataclass(frozen=True, slots=True)
class _Windows:
    """Patches of one size around the centers, cut at the edges; sums by integral images."""

    top: NDArray[np.intp]
    bottom: NDArray[np.intp]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    count: Image

    def mean(self, summed: Image) -> Image:
        low, high = summed[self.top], summed[self.bottom]
        total: Image = high[:, self.right] - high[:, self.left] - low[:, self.right] + low[:, self.left]
        return total / self.count

    def variance(self, image: Image) -> Image:
        return np.maximum(0, self.mean(_integral(image * image)) - self.mean(_integral(image)) ** 2)


def _windows(size: int, centers: list[NDArray[Any]], shape: tuple[int, ...]) -> _Windows:
    half = size // 2
    ends = [(np.maximum(c - half, 0), np.minimum(c + half + 1, n)) for c, n in zip(centers, shape, strict=True)]
    (top, bottom), (left, right) = ends
    return _Windows(top, bottom, left, right, np.multiply.outer(bottom - top, right - left).astype(np.float64))


def _integral(image: Image) -> Image:
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(image, 0, out=total[1:, 1:])
    np.cumsum(total[1:, 1:], 1, out=total[1:, 1:])
    return total


def _costs(error: Image, unknown: NDArray[np.bool_], windows: list[_Windows], slope: float) -> list[Image]:
    """Cost of one displacement for all patches, one array a size."""
    error = np.where(unknown, 0.0, error)
    square = error * error
    if slope:
        down, across = np.diff(error, axis=0), np.diff(error, axis=1)
        square[:-1] += slope * down * down
        square[:, :-1] += slope * across * across
    squares, errors = _integral(square), _integral(error)
    costs = [np.maximum(0, window.mean(squares) - window.mean(errors) ** 2) for window in windows]
    if unknown.any():
        unsure = _integral(unknown.astype(np.float64))
        for cost, window in zip(costs, windows, strict=True):
            cost[window.mean(unsure) > 0] = np.inf
    return costs


class _Blend:
    """Every patch lays its detail over its samples; overlapping ones are averaged by their weights."""

    def __init__(self, shape: tuple[int, ...], centers: list[NDArray[Any]], references: int) -> None:
        self._centers = centers
        self._inner = tuple(slice(HALF, HALF + n) for n in shape)
        padded = [n + 2 * HALF for n in shape]
        self._total, self._costs = np.zeros(padded), np.zeros(padded)
        self._votes = np.zeros((references, *padded))

    def add(self, number: int, detail: Image, found: _Matched, weight: Image) -> None:
        """The patches of one reference."""
        cost = np.where(weight > 0, found.cost, 0.0)
        dy, dx = np.divmod(
            found.shift, 2 * SEARCH + 1
        )  # from 0: the reference begins `SEARCH` samples before the estimate
        padded = np.pad(detail, HALF)
        width, flat = padded.shape[1], padded.ravel()
        base = (self._centers[0][:, None] + dy + HALF) * width + self._centers[1][None, :] + dx + HALF
        spans = [(int(c[0]) + HALF, int(c[-1]) + HALF + 1) for c in self._centers]
        for i, size in enumerate(SIZES):
            here = np.where(found.level == i, weight, 0.0)
            if not here.any():
                continue
            squared, priced = here * here, here * cost
            for oy, ox in product(range(-(size // 2), size // 2 + 1), repeat=2):
                place = tuple(slice(a + o, b + o, STRIDE) for (a, b), o in zip(spans, (oy, ox), strict=True))
                self._total[place] += squared * flat[base + (oy * width + ox)]
                self._votes[number][place] += here
                self._costs[place] += priced

    def result(self) -> Transfer:
        """All of them blended."""
        total, costs = self._total[self._inner], self._costs[self._inner]
        votes = self._votes[(slice(None), *self._inner)]
        norm = votes.sum(0)
        found = norm > 0
        safe = np.where(found, norm, 1.0)
        source = np.where(found, votes.argmax(0), -1) if len(votes) else np.full(found.shape, -1)
        cost = np.where(found, costs / safe, np.nan)
        return Transfer(total / safe, source.astype(np.int16), cost.astype(np.float32))
