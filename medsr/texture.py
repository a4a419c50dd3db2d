"""Texture of a scan in three numbers: noise, spectral slope, share of foreground; measured on a few crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsr.metrics import foreground_threshold
from medsr.scan import Intensity, Region, Scan

__all__ = ["LEAST_SIDE", "Texture", "crop_regions", "texture_of", "texture_of_crops"]

SIDE, PLANES = 64, 3
"""Samples of a crop along y and x, and planes that are looked at."""

PER_AXIS = {1: 5, 2: 3, 3: 3}
"""Crops along y and along x, by the number of planes."""

LEAST_SIDE = 32
"""Samples along y and x below which a crop has no spectrum to speak of."""

BAND = (1 / 24, 1 / 4)
"""Cycles a sample between which the slope is fitted: the trend of a crop is left out below, noise above."""

Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Texture:
    """What the samples of a scan look like, apart from what they show.

    Attributes:
        noise: robust standard deviation of the finest detail along both diagonals, unit intensity. Of white noise on a
            smooth scene it is the noise's own; sharp structure at the limit of the sampling counts too.
        slope: b of the spectrum f^-b: power over frequency, log-log. Near 0: noise; 1 to 4: scans; more: blur.
        foreground: share of samples above `foreground_threshold`.
    """

    noise: float
    slope: float
    foreground: float


def texture_of(scan: Scan, *, line: Intensity | None = None) -> Texture | None:
    """The texture of a scan; None where it is too small or shows nothing. At most 27 crops are read.

    Args:
        scan: any; planes along y and x are measured.
        line: the intensity line to measure in; None: the scan's own.
    """
    intensity = line or scan.intensity
    crops = []
    for region in crop_regions(scan.shape):
        stored = scan.read(region)
        if not scan.intensity.holes(stored).any():
            crops.append(intensity.to_unit(stored).reshape(stored.shape[-2:]))
    return texture_of_crops(crops, step=1 / max(1e-30, abs(intensity.white - intensity.black)), dtype=intensity.dtype)


def crop_regions(shape: Sequence[int]) -> list[Region]:
    """Where crops lie in a scan: a lattice in evenly spaced planes; none where it is too small."""
    if len(shape) < 2 or min(shape[-2:]) < LEAST_SIDE:
        return []
    lead = tuple(shape[:-2])
    planes = math.prod(lead)
    picks = sorted({(2 * i + 1) * planes // (2 * PLANES) for i in range(PLANES)})
    sides, count = [], PER_AXIS[len(picks)]
    for n in shape[-2:]:
        size = min(SIDE, n)
        starts = sorted({(2 * i + 1) * (n - size) // (2 * count) for i in range(count)})
        sides.append([slice(start, start + size) for start in starts])
    return [
        (*(slice(int(i), int(i) + 1) for i in np.unravel_index(pick, lead)), rows, columns)
        for pick in picks
        for rows in sides[0]
        for columns in sides[1]
    ]


def texture_of_crops(
    crops: Sequence[Plane], *, step: float = 0.0, dtype: np.dtype[np.generic] | None = None
) -> Texture | None:
    """The texture of planes in unit intensity; None where they are none, or constant.

    Noise and slope are medians over the half of the crops that shows most, by their standard deviation.

    Args:
        crops: of at least `LEAST_SIDE` samples along each axis.
        step: distance of stored values in unit intensity: with integers the noise is at least that of rounding.
        dtype: of the stored values.
    """
    shown = sorted((crop for crop in crops if np.isfinite(crop).all()), key=lambda crop: -float(np.std(crop)))
    shown = [crop for crop in shown if np.ptp(crop) > 0]
    if not shown:
        return None
    values = np.concatenate([crop.ravel() for crop in crops])
    best = shown[: (len(shown) + 1) // 2]
    rounding = step / math.sqrt(12) if dtype is not None and dtype.kind in "iu" else 0.0
    return Texture(
        noise=max(float(np.median([_noise(crop) for crop in best])), rounding, 1e-9),
        slope=float(np.median([_slope(crop) for crop in best])),
        foreground=float(np.mean(values > foreground_threshold(values))),
    )


def _noise(crop: Plane) -> float:
    """Robust standard deviation of white noise: of the diagonal Haar coefficients of the finest scale.

    References:
        D. L. Donoho, I. M. Johnstone: Ideal spatial adaptation by wavelet shrinkage, 1994, section 3.2 (median of the
        finest coefficients over 0.6745), doi:10.1093/biomet/81.3.425.
    """
    rows, columns = (n // 2 * 2 for n in crop.shape)
    a, b, c, d = (crop[i:rows:2, j:columns:2].astype(np.float64) for i in (0, 1) for j in (0, 1))
    return float(np.median(np.abs(a - b - c + d) / 2) / 0.6745)


def _slope(crop: Plane) -> float:
    """The exponent b of a spectrum f^-b, by least squares over rings of one frequency each.

    References:
        D. J. Field: Relations between the statistics of natural images and the response properties of cortical cells,
        1987, doi:10.1364/JOSAA.4.002379.
        A. E. Burgess, F. L. Jacobson, P. F. Judy: Human observer detection experiments with mammograms and power-law
        noise, 2001, doi:10.1118/1.1355308 (mammograms: b near 3).
    """
    centered = crop.astype(np.float64) - crop.mean(dtype=np.float64)
    window = np.outer(*(np.hanning(n + 1)[:n] for n in crop.shape))
    power = np.abs(np.fft.rfft2(centered * window)) ** 2
    rows, columns = np.fft.fftfreq(crop.shape[0]), np.fft.rfftfreq(crop.shape[1])
    frequency = np.hypot(rows[:, None], columns[None])
    ring = np.rint(frequency * min(crop.shape)).astype(int)
    logs = []
    for number in np.unique(ring[(frequency >= BAND[0]) & (frequency <= BAND[1])]):
        mean = float(power[ring == number].mean())
        if mean > 0:
            logs.append((math.log(number), math.log(mean)))
    if len(logs) < 2:
        return 0.0
    f, p = np.array(logs).T
    return -float(np.polyfit(f, p, 1)[0])
