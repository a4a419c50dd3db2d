"""Whether numbers measured in an image survive upscaling: bias, slope and agreement with a reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medsr.metrics import foreground_mask

__all__ = [
    "BlandAltman",
    "Line",
    "RegionBias",
    "bias_by_region",
    "bland_altman",
    "deming",
    "ordinary",
]

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

DRAWN = 20_000
"""Points of a Bland-Altman plot that are kept."""
PATCH = 512
"""Side of the patches in which the correlation of differences is measured."""
BLOCK, BLOCKS, DRAWS = 32, 20, 1000
"""Side of the blocks that are drawn anew as wholes, at least; how many there must be; and how often."""
UNEVEN = 1.25
"""Spread of one fifth over that of another, from which one pair of limits is false for both."""


def _empty() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, slots=True)
class Line:
    """estimate = intercept + slope * reference.

    Attributes:
        slope, intercept: nan where there is no spread.
        fit: "ordinary" (least squares, the reference without error) or "deming" (errors in both).
    """

    slope: float
    intercept: float
    fit: Literal["ordinary", "deming"]


@dataclass(frozen=True, slots=True)
class RegionBias:
    """How an estimate departs from a reference in one region.

    Attributes:
        region: "all", "foreground", "background", "band 1 (from .. to ..)" or "label 7".
        samples: that were compared.
        reference: mean of the reference.
        value: bias, mean of estimate less reference; nan where the region is empty.
        unit: "intensity", the units of the arrays.
        deviation: standard deviation of the differences.
        line: of estimate on reference in this region.
        compared: "samples", or "block means" where the reference is coarse.
        reason: why there is no value; empty where there is one.
    """

    region: str
    samples: int
    reference: float
    value: float
    unit: str
    deviation: float
    line: Line
    compared: Literal["samples", "block means"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Fifth:
    """The samples of one fifth of the intensities, `start` to `stop` of the mean of both.

    Attributes:
        bias, deviation: mean and standard deviation of their differences.
        inside: share of them within the limits of agreement of all samples.
    """

    start: float
    stop: float
    bias: float
    deviation: float
    inside: float

    @property
    def limits(self) -> tuple[float, float]:
        """Limits of agreement of this fifth alone."""
        return self.bias - 1.96 * self.deviation, self.bias + 1.96 * self.deviation


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """The data of a Bland-Altman plot.

    Attributes:
        value: bias, mean of first less second; nan where nothing was compared.
        unit: "intensity".
        reason: why there is no value; empty where there is one.
        bias, lower, upper: (value, low end, high end of the 95 % confidence interval) of the bias and of the two limits
            of agreement, bias -+ 1.96 standard deviations; ends nan where there are fewer than 20 blocks.
        mean, difference: points to draw, at most 20,000 taken by chance (always the same).
        slope: of difference on mean (ordinary): not 0 where the bias grows with the intensity.
        samples: compared.
        independent: how many independent ones they are worth by the correlation of neighbors.
        blocks, block: how many blocks the intervals rest on, and their least side in samples.
        inside: share of the samples within the limits.
        fifths: of the samples by their mean, darkest first; fewer where many samples share a value.
    """

    value: float
    unit: str
    reason: str
    bias: tuple[float, float, float]
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    mean: Floats = field(default_factory=_empty)
    difference: Floats = field(default_factory=_empty)
    slope: float = math.nan
    samples: int = 0
    independent: float = 0.0
    blocks: int = 0
    block: int = BLOCK
    inside: float = math.nan
    fifths: tuple[Fifth, ...] = ()

    @property
    def uneven(self) -> bool:
        """Whether the spread depends on the intensity, so that one pair of limits is false for its fifths."""
        spreads = [fifth.deviation for fifth in self.fifths]
        return bool(spreads) and max(spreads) > UNEVEN * min(spreads)


def ordinary(reference: Array, estimate: Array) -> Line:
    """Least squares of estimate on reference (any shape; NaN left out), errors in the estimate only."""
    x, y, sxx, sxy, _ = _moments(reference, estimate)
    if not sxx > 0:
        return Line(math.nan, math.nan, "ordinary")
    return Line(sxy / sxx, y - sxy / sxx * x, "ordinary")


def deming(reference: Array, estimate: Array, *, ratio: float = 1.0) -> Line:
    """The line where both arrays (any shape; NaN left out) have errors.

    Args:
        ratio: variance of the estimate's error over that of the reference's; 1 is orthogonal regression.

    Raises:
        ValueError: a ratio that is not above 0; shapes that differ.

    References:
        W. E. Deming, Statistical adjustment of data, 1943; K. Linnet, 1990, doi:10.1002/sim.4780091210.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio: expected a number above 0, found {ratio}")
    x, y, sxx, sxy, syy = _moments(reference, estimate)
    if not (sxx > 0 and sxy != 0):
        return Line(math.nan, math.nan, "deming")
    part = syy - ratio * sxx
    slope = (part + math.sqrt(part**2 + 4 * ratio * sxy**2)) / (2 * sxy)
    return Line(slope, y - slope * x, "deming")


def _moments(reference: Array, estimate: Array) -> tuple[float, float, float, float, float]:
    """Means and centered second moments of two arrays where both are finite."""
    if reference.shape != estimate.shape:
        raise ValueError(f"expected arrays of one shape, found {reference.shape} and {estimate.shape}")
    known = np.isfinite(reference) & np.isfinite(estimate)
    if not known.any():
        return math.nan, math.nan, math.nan, math.nan, math.nan
    x, y = (np.asarray(v[known], np.float64) for v in (reference, estimate))
    mean_x, mean_y = float(x.mean()), float(y.mean())
    x, y = x - mean_x, y - mean_y
    return mean_x, mean_y, float((x * x).mean()), float((x * y).mean()), float((y * y).mean())


def bias_by_region(
    estimate: Array,
    reference: Array,
    *,
    bands: int = 5,
    labels: Array | None = None,
    foreground: Mask | None = None,
    fit: Literal["ordinary", "deming"] = "ordinary",
    banded_by: Literal["reference", "mean"] = "reference",
) -> tuple[RegionBias, ...]:
    """Bias, spread and line of an estimate in the whole, the foreground, intensity bands and the user's regions.

    Args:
        estimate: (..., y, x).
        reference: the truth, of the same shape; or the coarse scan, whose shape divides it: then block means of the
            estimate are compared, which an instrument that sums over its samples would have measured.
        bands: of equal numbers of samples; fewer where many samples share a value.
        labels: whole numbers on the reference's grid, 0 is no region (such as cells or lesions).
        foreground: on the reference's grid; None: found by Otsu's threshold; bright is foreground.
        fit: "ordinary" where the reference is exact, "deming" where it is as noisy as the estimate.
        banded_by: what bands and foreground are found in; "mean" of the two where both are noisy: sorted by a noisy
            reference, the lowest band comes out too high and the highest too low by chance alone (regression to the
            mean).

    Raises:
        ValueError: shapes that do not fit, fewer than one band.

    References:
        J. M. Bland, D. G. Altman, 1995, doi:10.1016/S0140-6736(95)91748-9 (why not by the reference).
    """
    values, compared = _on_grid(estimate, reference)
    if bands < 1 or any(m is not None and m.shape != reference.shape for m in (labels, foreground)):
        raise ValueError("expected one band or more, labels and foreground of the reference's shape; crop or resample")
    truth = np.asarray(reference, np.float64)
    known = np.isfinite(values) & np.isfinite(truth)
    if not known.any():
        return (_region("all", known, values, truth, fit, compared),)
    key = truth if banded_by == "reference" else (truth + values) / 2
    front = _foreground(np.where(known, key, np.nan)) if foreground is None else foreground
    rows = [
        _region("all", known, values, truth, fit, compared),
        _region("foreground", known & front, values, truth, fit, compared),
        _region("background", known & ~front, values, truth, fit, compared),
    ]
    # A value that many samples share, as a black background, is one band.
    edges = np.append(np.unique(np.quantile(key[known], np.linspace(0, 1, bands + 1)))[:-1], np.inf)
    for i, (low, high) in enumerate(pairwise(edges if len(edges) > 1 else [key[known].min(), np.inf])):
        name = f"band {i + 1} ({low:.4g} to {min(high, float(key[known].max())):.4g})"
        rows.append(_region(name, known & (key >= low) & (key < high), values, truth, fit, compared))
    if labels is not None:
        names = np.unique(labels[labels != 0])
        rows += [_region(f"label {n}", known & (labels == n), values, truth, fit, compared) for n in names]
    return tuple(rows)


def _foreground(array: Array) -> Mask:
    planes = array if array.ndim in (2, 3) else array.reshape(-1, *array.shape[-2:])
    return foreground_mask(planes).reshape(array.shape)


def _on_grid(estimate: Array, reference: Array) -> tuple[Floats, Literal["samples", "block means"]]:
    """The estimate on the reference's grid, by block means."""
    if estimate.shape == reference.shape:
        return np.asarray(estimate, np.float64), "samples"
    fits = estimate.ndim == reference.ndim and all(
        e % r == 0 for e, r in zip(estimate.shape, reference.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"expected an estimate of the reference's shape or a whole multiple, found {estimate.shape} and "
            f"{reference.shape}; crop or resample first"
        )
    split = [n for e, r in zip(estimate.shape, reference.shape, strict=True) for n in (r, e // r)]
    return estimate.reshape(split).mean(tuple(range(1, len(split), 2)), dtype=np.float64), "block means"


def _region(
    name: str,
    mask: Mask,
    values: Floats,
    truth: Floats,
    fit: Literal["ordinary", "deming"],
    compared: Literal["samples", "block means"],
) -> RegionBias:
    x, y = truth[mask], values[mask]
    if not x.size:
        none = Line(math.nan, math.nan, fit)
        return RegionBias(
            name, 0, math.nan, math.nan, "intensity", math.nan, none, compared, "no sample in this region"
        )
    line = ordinary(x, y) if fit == "ordinary" else deming(x, y)
    off = y - x
    return RegionBias(name, x.size, float(x.mean()), float(off.mean()), "intensity", float(off.std()), line, compared)


def bland_altman(first: Array, second: Array, *, mask: Mask | None = None) -> BlandAltman:
    """Bias and limits of agreement of two arrays of one shape, such as an estimate and its truth.

    Neighboring samples err together, and more in one part of an image than in another, so that a million of them are
    worth far fewer: the intervals come from drawing blocks of at least 32 samples a side, and twice the length over
    which differences correlate, with replacement (1,000 times, always the same), times Student's factor.

    Args:
        first, second: any shape; NaN is left out.
        mask: True where samples count.

    Raises:
        ValueError: shapes that differ.

    References:
        J. M. Bland, D. G. Altman, 1999, Measuring agreement in method comparison studies,
        doi:10.1177/096228029900800204, section 2, and 3.2 for spreads that depend on the mean.
        H. R. Kuensch, 1989, The jackknife and the bootstrap for general stationary observations,
        doi:10.1214/aos/1176347265 (blocks).
    """
    if first.shape != second.shape or (mask is not None and mask.shape != first.shape):
        raise ValueError(f"expected arrays of one shape, found {first.shape} and {second.shape}")
    use = np.isfinite(first) & np.isfinite(second) & (True if mask is None else mask)
    count = int(use.sum())
    none = (math.nan,) * 3
    if count < 3:
        return BlandAltman(math.nan, "intensity", "fewer than three samples", none, none, none, samples=count)
    off = np.asarray(first, np.float64) - second
    one, two = np.asarray(first[use], np.float64), np.asarray(second[use], np.float64)
    d, m = one - two, (one + two) / 2
    bias, spread = float(d.mean()), float(d.std(ddof=1))
    area, reach = _correlated(np.where(use, off - bias, 0.0), use)
    block = max(BLOCK, 2 * reach)
    low, high = bias - 1.96 * spread, bias + 1.96 * spread
    blocks, (wide, below, above) = _drawn_anew(np.where(use, off, 0.0), use, block)
    points: Any = slice(None)
    if count > DRAWN:
        points = np.sort(np.random.default_rng(0).choice(count, DRAWN, replace=False))
    return BlandAltman(
        value=bias,
        unit="intensity",
        reason="",
        bias=(bias, bias - wide, bias + wide),
        lower=(low, low - below, low + below),
        upper=(high, high - above, high + above),
        mean=m[points],
        difference=d[points],
        slope=ordinary(m, d).slope,
        samples=count,
        independent=max(3.0, count / area),
        blocks=blocks,
        block=block,
        inside=float(((d >= low) & (d <= high)).mean()),
        fifths=tuple(_fifths(m, d, low, high)),
    )


def _fifths(mean: Floats, off: Floats, low: float, high: float) -> Iterator[Fifth]:
    edges = np.unique(np.quantile(mean, np.linspace(0, 1, 6)))
    for i, (start, stop) in enumerate(pairwise(edges.tolist())):
        part = off[(mean >= start) & ((mean < stop) | (i == len(edges) - 2))]
        inside = float(((part >= low) & (part <= high)).mean())
        yield Fifth(start, stop, float(part.mean()), float(part.std()), inside)


def _drawn_anew(off: Floats, use: Mask, block: int) -> tuple[int, tuple[float, float, float]]:
    """Number of blocks with samples, and half widths of the 95 % intervals of bias, lower and upper limit."""
    sums = np.stack([use.astype(np.float64), off, off * off])
    for axis, n in enumerate(off.shape, start=1):
        starts = np.linspace(0, n, max(1, n // block) + 1).round().astype(int)[:-1]
        sums = np.add.reduceat(sums, starts, axis)
    sums = sums.reshape(3, -1)
    sums = sums[:, sums[0] > 0]
    blocks = sums.shape[1]
    if blocks < BLOCKS:
        return blocks, (math.nan,) * 3
    generator = np.random.default_rng(0)
    drawn = np.stack([sums[:, generator.integers(0, blocks, blocks)].sum(1) for _ in range(DRAWS)], 1)
    bias = drawn[1] / drawn[0]
    spread = np.sqrt(np.maximum(drawn[2] / drawn[0] - bias**2, 0))
    # The spread of few blocks comes out too small, and Student's factor is for what is left of that.
    scale = float(stats.t.ppf(0.975, blocks - 1)) * math.sqrt(blocks / (blocks - 1))
    wide, below, above = (scale * float(v.std()) for v in (bias, bias - 1.96 * spread, bias + 1.96 * spread))
    return blocks, (wide, below, above)


def _correlated(off: Floats, use: Mask) -> tuple[float, int]:
    """Samples over which differences correlate: the product over axes of the sum of the correlation to its first 0, and
    the longest of these sums."""
    volume, reach = 1.0, 1
    patch = off[tuple(slice(0, PATCH) for _ in off.shape)]
    known = use[tuple(slice(0, PATCH) for _ in off.shape)].astype(np.float64)
    for axis in range(off.ndim):
        n = patch.shape[axis]
        found = [_lagged(v, axis) for v in (patch, known)]
        rho = found[0] / np.maximum(found[1], 0.5) * (found[1] > 0.5)
        if not rho[0] > 0:
            continue
        rho = rho[: max(1, n // 2)] / rho[0]
        ends = np.flatnonzero(rho <= 0.05)
        length = 1 + 2 * float(rho[1 : ends[0] if ends.size else len(rho)].sum())
        volume, reach = volume * length, max(reach, round(length))
    return max(1.0, volume), reach


def _lagged(values: Floats, axis: int) -> Floats:
    """Sum of products with itself, by lag along an axis."""
    n = values.shape[axis]
    others = tuple(a for a in range(values.ndim) if a != axis)
    power = np.square(np.abs(np.fft.rfft(values, 2 * n, axis=axis))).sum(others)
    return np.asarray(np.fft.irfft(power, 2 * n)[:n])
