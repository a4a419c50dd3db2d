"""Contrast of specks such as micro-calcifications, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.trust.sharpness import unit_and_steps

__all__ = ["Speck", "find_specks", "speck_contrast"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

RING = (2.0, 4.0)
"""Inner and outer radius of the surroundings, in radii of a speck."""
SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Speck:
    """One bright speck and its surroundings.

    Attributes:
        position: along y and x in `unit`, from the center of the first sample.
        value: contrast, mean within the radius less the median of the surroundings, in the image's units; nan: none.
        unit: of position and radius, "um" or "sample".
        cnr: contrast over the standard deviation of the surroundings (from the median absolute deviation).
        background: median of the surroundings.
        noise: their standard deviation.
        reason: why there is no value; empty where there is one.
    """

    position: tuple[float, float]
    value: float
    unit: str
    cnr: float = math.nan
    background: float = math.nan
    noise: float = math.nan
    reason: str = ""


def find_specks(
    image: Array,
    *,
    radius: float,
    spacing_um: Sequence[float | None] | None = None,
    threshold: float = 6.0,
    count: int = 50,
    mask: NDArray[np.bool_] | None = None,
) -> tuple[tuple[float, float], ...]:
    """Positions of bright specks of about one size, the most prominent first.

    The image is compared with its surroundings (a Gaussian of the speck's size less one three times as wide) and the
    difference divided by its own local deviation, robustly; local maxima above a threshold are specks. It finds what
    is bright and small: film dirt and hot samples too. It is no diagnosis.

    Args:
        image: plane (y, x); bright is signal; NaN is left out.
        radius: of a speck in micrometers, in samples where the spacing is unknown (0.5 samples or more).
        threshold: robust standard deviations.
        count: at most so many.
        mask: True where specks are looked for, such as tissue.

    Returns:
        (y, x) in micrometers, or samples, from the center of the first sample.

    Raises:
        ValueError: no plane, a radius below half a sample, a mask of another shape.
    """
    _, steps = unit_and_steps(spacing_um)
    if image.ndim != 2 or not radius >= 0.5 * min(steps) or (mask is not None and mask.shape != image.shape):
        raise ValueError(
            f"expected a plane, a mask of its shape and a radius of {0.5 * min(steps):g} or more; "
            f"found shape {image.shape} and radius {radius}"
        )
    values = np.asarray(image, np.float64)
    known = np.isfinite(values)
    if not known.any():
        return ()
    # A Gaussian of sigma = radius / sqrt(2) answers best to a disk of that radius.
    sigma = [radius / math.sqrt(2) / s for s in steps]
    contrast = _blurred(values, known, sigma) - _blurred(values, known, [3 * s for s in sigma])
    # The median of blocks is not moved by the specks themselves.
    scale = _local_deviation(np.where(known, contrast, np.nan), [max(16, round(16 * s)) for s in sigma])
    score = np.where(known & (scale > 0), contrast / np.where(scale > 0, scale, 1), 0.0)
    reach = [2 * max(1, math.ceil(2 * radius / s)) + 1 for s in steps]
    peak = (score == ndimage.maximum_filter(score, reach)) & (score > threshold)
    if mask is not None:
        peak &= mask
    rows, columns = np.nonzero(peak)
    order = np.argsort(-score[rows, columns], kind="stable")[:count]
    return tuple((float(rows[i] * steps[0]), float(columns[i] * steps[1])) for i in order)


def speck_contrast(
    image: Array,
    positions: Sequence[tuple[float, float]],
    *,
    radius: float,
    spacing_um: Sequence[float | None] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
) -> tuple[Speck, ...]:
    """Contrast and contrast-to-noise ratio of specks at given positions, in one image.

    Called with the same positions for the coarse scan, the estimate and the truth, it says what became of each speck.
    Contrasts compare across grids; the noise, and with it the ratio, is that of single samples and falls by smoothing
    without anything being better seen.

    Args:
        image: plane (y, x); NaN is left out.
        positions: (y, x) in micrometers, or samples where the spacing is unknown.
        radius: over which a speck is averaged, same unit.
        origin: position of the first sample's center, as `Grid.origin_um` says it.

    Raises:
        ValueError: no plane, or a radius that is not above 0.
    """
    if image.ndim != 2 or not radius > 0:
        raise ValueError(f"expected a plane and a radius above 0, found shape {image.shape} and radius {radius}")
    unit, steps = unit_and_steps(spacing_um)
    return tuple(_speck(image, place, radius, steps, unit, origin) for place in positions)


def _speck(
    image: Array,
    place: tuple[float, float],
    radius: float,
    steps: tuple[float, float],
    unit: str,
    origin: tuple[float, float],
) -> Speck:
    at = [(p - o) / s for p, o, s in zip(place, origin, steps, strict=True)]
    if any(not -0.5 <= a <= n - 0.5 for a, n in zip(at, image.shape, strict=True)):
        return Speck(place, math.nan, unit, reason="outside the image")
    reach = [math.ceil(RING[1] * radius / s) + 1 for s in steps]
    window = tuple(slice(max(0, round(a) - r), round(a) + r + 1) for a, r in zip(at, reach, strict=True))
    values = np.asarray(image[window], np.float64)
    y, x = np.ogrid[
        window[0].start : window[0].start + values.shape[0], window[1].start : window[1].start + values.shape[1]
    ]
    distance = np.hypot((y - at[0]) * steps[0], (x - at[1]) * steps[1])
    known = np.isfinite(values)
    # A speck smaller than a sample is that sample.
    inside = known & (distance <= max(radius, float(distance.min()) * (1 + 1e-9)))
    around = known & (distance >= RING[0] * radius) & (distance <= RING[1] * radius)
    if not inside.any() or around.sum() < 8:
        return Speck(place, math.nan, unit, reason="too few samples in or about it; give a larger radius")
    background = float(np.median(values[around]))
    noise = SIGMA * float(np.median(np.abs(values[around] - background)))
    contrast = float(values[inside].mean()) - background
    ratio = contrast / noise if noise > 0 else math.inf * np.sign(contrast) if contrast else 0.0
    return Speck(place, contrast, unit, float(ratio), background, noise)


def _blurred(values: Floats, known: NDArray[np.bool_], sigma: Sequence[float]) -> Floats:
    """A Gaussian that passes over holes."""
    if known.all():
        return np.asarray(ndimage.gaussian_filter(values, sigma, mode="nearest"))
    weight = ndimage.gaussian_filter(known.astype(np.float64), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(known, values, 0.0), sigma, mode="nearest")
    return np.asarray(total / np.maximum(weight, 1e-9))


def _local_deviation(contrast: Floats, block: Sequence[int]) -> Floats:
    """Robust standard deviation in blocks, at least that of the whole, brought back to the samples."""
    counts = [max(1, n // b) for n, b in zip(contrast.shape, block, strict=True)]
    rows = np.array_split(np.arange(contrast.shape[0]), counts[0])
    columns = np.array_split(np.arange(contrast.shape[1]), counts[1])
    whole = np.abs(contrast[np.isfinite(contrast)])
    floor = SIGMA * float(np.median(whole))
    table = np.full(counts, floor)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            part = contrast[r[0] : r[-1] + 1, c[0] : c[-1] + 1]
            part = part[np.isfinite(part)]
            if part.size:
                table[i, j] = max(floor, SIGMA * float(np.median(np.abs(part - np.median(part)))))
    y, x = (np.repeat(np.arange(len(parts)), [len(p) for p in parts]) for parts in (rows, columns))
    return table[np.ix_(y, x)]
