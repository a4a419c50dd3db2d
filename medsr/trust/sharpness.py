"""Sharpness and noise of X-ray images: the transfer function from a slanted edge, the noise power of flat regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage, signal, stats

__all__ = ["EdgeSharpness", "NoisePower", "noise_power", "slanted_edge_mtf", "unit_and_steps"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

OVERSAMPLING = 4
"""Bins of the edge spread function for each sample."""
STEEPEST = 26.0
"""Degrees from the axis up to which an edge is taken."""
LEAST_CONTRAST = 5.0
"""Step of an edge over the noise beside it."""
STRAIGHTNESS = 0.5
"""Samples by which the rows' edges may depart from a line (median)."""
FADED = 0.5
"""Share of the line spread function that is faded at its ends."""
LEAST_ROWS = 16


def _empty() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, slots=True)
class EdgeSharpness:
    """The presampled modulation transfer function across an edge.

    Attributes:
        value: frequency at which it falls to one half, cycles per `unit`; nan where it does not.
        unit: "um" or "sample".
        reason: why there is no value; empty where there is one.
        frequency: cycles per `unit`, from 0 to the highest the samples can hold.
        mtf: 1 at frequency 0.
        angle: degrees between the edge and the axis it is nearest to.
        position: distance from the edge, `unit`, for the edge spread function.
        spread: edge spread function, in the units of the image.
    """

    value: float
    unit: str
    reason: str = ""
    frequency: Floats = field(default_factory=_empty)
    mtf: Floats = field(default_factory=_empty)
    angle: float = math.nan
    position: Floats = field(default_factory=_empty)
    spread: Floats = field(default_factory=_empty)


@dataclass(frozen=True, slots=True)
class NoisePower:
    """The noise power spectrum of flat regions.

    Attributes:
        value: variance, in the image's units squared: the integral of the spectrum over all frequencies.
        unit: "um" or "sample".
        reason: why there is no value; empty where there is one.
        spectrum: (roi, roi), units squared times `unit` squared, in the order of `numpy.fft.fft2`.
        frequency: of the rings, cycles per `unit`.
        radial: mean of the spectrum over rings.
        mean: mean of the image in the regions, by whose square a normalized spectrum is divided.
        regions: how many there were.
        spacing: distance of samples along y and x in `unit`.
    """

    value: float
    unit: str
    reason: str = ""
    spectrum: Floats = field(default_factory=_empty)
    frequency: Floats = field(default_factory=_empty)
    radial: Floats = field(default_factory=_empty)
    mean: float = math.nan
    regions: int = 0
    spacing: tuple[float, float] = (1.0, 1.0)


def slanted_edge_mtf(region: Array, *, spacing_um: Sequence[float | None] | None = None) -> EdgeSharpness:
    """The modulation transfer function across one straight edge, slightly turned against the samples.

    The edge is found in each row as the centroid of the derivative, a line is laid through, all samples are sorted by
    their distance from it into bins of a quarter sample, and the derivative of that edge spread function is
    transformed. The losses by bin and difference are divided out. NaN is left out.

    Args:
        region: (y, x), linear in exposure, with one edge that crosses it and flat sides.
        spacing_um: distance of samples along y and x.

    Returns:
        the curve, or a reason where there is no edge.

    Raises:
        ValueError: the region is no plane.

    References:
        ISO 12233:2017, annex D; E. Samei, M. J. Flynn, D. A. Reimann, 1998, doi:10.1118/1.598165.
    """
    if region.ndim != 2:
        raise ValueError(f"region: expected a plane (y, x), found shape {region.shape}; give one plane")
    unit, steps = unit_and_steps(spacing_um)
    values = np.asarray(region, np.float64)
    known = np.isfinite(values)
    if min(values.shape) < LEAST_ROWS or known.mean() < 0.5:
        reason = f"too small: expected {LEAST_ROWS} x {LEAST_ROWS} samples or more, half of them without NaN"
        return EdgeSharpness(math.nan, unit, reason)
    values = np.where(known, values, np.nan)
    if abs(_step(values)) < abs(_step(values.T)):  # the edge lies along x: turned, it crosses rows
        values, steps = values.T, (steps[1], steps[0])
    line = _edge_line(values)
    if isinstance(line, str):
        return EdgeSharpness(math.nan, unit, line)
    return _measured(values, line, steps, unit)


def unit_and_steps(spacing_um: Sequence[float | None] | None) -> tuple[str, tuple[float, float]]:
    """ "um" and the spacings along y and x; "sample" and ones where one is unknown."""
    known = [float(s) for s in spacing_um or () if s is not None]
    return ("um", (known[0], known[1])) if len(known) == 2 else ("sample", (1.0, 1.0))


def _step(values: Floats) -> float:
    """Mean of the right third less that of the left third."""
    third = values.shape[1] // 3
    return float(np.nanmean(values[:, -third:]) - np.nanmean(values[:, :third]))


def _edge_line(values: Floats) -> tuple[float, float] | str:
    """Edge position x = a + b y in samples, or why there is none."""
    step = _step(values)
    rows = np.flatnonzero(np.isfinite(values).all(1))
    if len(rows) < LEAST_ROWS:
        return f"fewer than {LEAST_ROWS} rows without NaN; give a region without holes"
    slope = np.diff(values[rows], axis=1) * (1.0 if step > 0 else -1.0)
    at = np.arange(slope.shape[1]) + 0.5
    smooth = ndimage.gaussian_filter1d(slope, 2.0, axis=1, mode="constant")
    guess = at[smooth.argmax(1)]
    for reach in (8.0, 8.0, 6.0):
        weight = np.cos(np.clip((at - guess[:, None]) / reach, -1, 1) * np.pi / 2) ** 2 * slope
        total = weight.sum(1)
        use = total > 0.2 * abs(step)
        if use.sum() < max(LEAST_ROWS, len(rows) / 2):
            return "no edge: most rows have no step of the sign that the two sides differ by"
        center = (weight * at).sum(1)[use] / total[use]
        line = stats.theilslopes(center[_thinned(use)], rows[use][_thinned(use)])
        a, b = float(line.intercept), float(line.slope)
        guess = a + b * rows
    off = center - guess[use]
    near = np.abs(off) <= 3 * max(np.median(np.abs(off)), 1e-9)
    if np.median(np.abs(off)) > STRAIGHTNESS:
        return f"no straight edge: rows depart from a line by {np.median(np.abs(off)):.2f} samples (median)"
    b, a = (float(v) for v in np.polyfit(rows[use][near], center[near], 1))
    distance = np.arange(values.shape[1]) - (a + b * np.arange(len(values)))[:, None]
    sides = [values[(sign * distance > 6) & np.isfinite(values)] for sign in (-1, 1)]
    if min(map(len, sides)) < LEAST_ROWS * 4:
        return "the edge lies too near the border; give a region with flat sides"
    noise = 1.4826 * max(float(np.median(np.abs(side - np.median(side)))) for side in sides)
    height = abs(float(np.median(sides[1]) - np.median(sides[0])))
    if not height > LEAST_CONTRAST * noise:
        return (
            f"no edge: a step of {height:.4g} over a noise of {noise:.4g}, at least {LEAST_CONTRAST:g} times is needed"
        )
    if abs(b) * len(values) < 1:
        return "the edge is not slanted: its rows do not fall between each other's samples"
    return a, b


def _thinned(use: NDArray[np.bool_]) -> slice:
    """At most 300 rows for the robust line, which looks at every pair."""
    return slice(None, None, max(1, int(use.sum()) // 300))


def _measured(values: Floats, line: tuple[float, float], steps: tuple[float, float], unit: str) -> EdgeSharpness:
    down, across = steps
    a, b = line
    angle = math.atan(b * across / down)
    degrees = abs(math.degrees(angle))
    if degrees > STEEPEST:
        return EdgeSharpness(
            math.nan, unit, f"the edge is turned by {degrees:.0f} degrees, at most {STEEPEST:g} are allowed"
        )
    rows, columns = np.arange(len(values))[:, None], np.arange(values.shape[1])
    distance = (columns - (a + b * rows)) * (across * math.cos(angle))
    reach = min(float(np.median(-distance[:, 0])), float(np.median(distance[:, -1])))
    width = across / OVERSAMPLING
    bins = 2 * int(reach / width)
    at = np.floor(distance / width).astype(np.intp) + bins // 2
    use = (at >= 0) & (at < bins) & np.isfinite(values)
    counts = np.bincount(at[use], minlength=bins)
    if bins < 16 * OVERSAMPLING or (counts == 0).mean() > 0.25:
        return EdgeSharpness(math.nan, unit, "too few samples about the edge; give a larger region, or one less turned")
    place: Floats = (np.arange(bins, dtype=np.float64) + 0.5 - bins // 2) * width
    filled = counts > 0
    spread = np.asarray(
        np.interp(place, place[filled], np.bincount(at[use], values[use], bins)[filled] / counts[filled]), np.float64
    )
    frequency, mtf = _transfer(spread, width, across)
    below = np.flatnonzero(mtf < 0.5)
    if not below.size:
        reason = f"above one half up to the sampling limit ({0.5 / across:.4g} cycles per {unit})"
        return EdgeSharpness(math.nan, unit, reason, frequency, mtf, degrees, place, spread)
    i = int(below[0])
    half = frequency[i - 1] + (mtf[i - 1] - 0.5) / (mtf[i - 1] - mtf[i]) * (frequency[i] - frequency[i - 1])
    return EdgeSharpness(float(half), unit, "", frequency, mtf, degrees, place, spread)


def _transfer(spread: Floats, width: float, across: float) -> tuple[Floats, Floats]:
    """Frequencies up to the sampling limit and the transfer function of an edge spread function."""
    line = np.diff(spread)
    line = line if line.sum() > 0 else -line
    smooth = ndimage.gaussian_filter1d(line, OVERSAMPLING)
    peak = int(smooth.argmax())
    wide = int((smooth > smooth[peak] / 2).sum())
    reach = min(peak, len(line) - 1 - peak, max(10 * OVERSAMPLING, 4 * wide))
    line = line[peak - reach : peak + reach + 1] * signal.windows.tukey(2 * reach + 1, FADED)
    size = scipy.fft.next_fast_len(max(1024, 4 * len(line)))
    frequency = scipy.fft.rfftfreq(size, width)
    kept = frequency <= 0.5 / across * (1 + 1e-9)
    raw = np.abs(scipy.fft.rfft(line, size))[kept]
    # A bin's mean and the difference of two bins each lose sinc(f width).
    mtf = raw / max(float(raw[0]), 1e-300) / np.sinc(frequency[kept] * width) ** 2
    return frequency[kept], mtf


def noise_power(
    flat: Array,
    *,
    spacing_um: Sequence[float | None] | None = None,
    roi: int = 128,
    mask: NDArray[np.bool_] | None = None,
    share: float = 1.0,
) -> NoisePower:
    """The noise power spectrum of flat regions, each freed of a polynomial surface of second order.

    Args:
        flat: (..., y, x), linear in exposure.
        spacing_um: distance of samples along y and x.
        roi: side of the half-overlapping regions in samples; the standard asks for 256.
        mask: True where the image is flat, shape of `flat`; a region counts where all its samples are; None: all.
            Regions with NaN do not count.
        share: fraction of the regions that is kept, those of least variance: structure is left out where a mask is not
            at hand, and the noise comes out too low by the choice.

    Raises:
        ValueError: shapes differ, a region of fewer than 8 samples, a share outside 0..1.

    References:
        IEC 62220-1-2:2007, section 6 (regions of 256, half overlapping, second-order surface subtracted).
    """
    if flat.ndim < 2 or (mask is not None and mask.shape != flat.shape) or roi < 8 or not 0 < share <= 1:
        raise ValueError(
            "expected an image (..., y, x), a mask of its shape, a region of at least 8 samples and a share in (0, 1]; "
            f"found {flat.shape}, {None if mask is None else mask.shape}, {roi} and {share}"
        )
    unit, steps = unit_and_steps(spacing_um)
    found = [(float(v.var()), corner, m) for corner, v, m in _regions(flat, mask, roi)]
    if not found:
        return NoisePower(math.nan, unit, f"no flat region of {roi} x {roi} samples without NaN; give a smaller roi")
    found = sorted(found, key=lambda item: item[0])[: max(1, round(share * len(found)))]
    chosen = {corner for _, corner, _ in found}
    total = np.zeros((roi, roi))
    for corner, values, _ in _regions(flat, mask, roi):
        if corner in chosen:
            total += np.abs(scipy.fft.fft2(values)) ** 2
    spectrum = total * (steps[0] * steps[1] / (roi**2 * len(found)))
    fy, fx = (scipy.fft.fftfreq(roi, s) for s in steps)
    radius = np.hypot(fy[:, None], fx[None, :])
    width = 1 / (roi * min(steps))
    ring = np.rint(radius / width).astype(np.intp)
    inside = (radius > 0) & (radius <= 0.5 / min(steps) * (1 + 1e-9))
    counts = np.bincount(ring[inside])
    use = counts > 0
    frequency, radial = (np.bincount(ring[inside], x[inside])[use] / counts[use] for x in (radius, spectrum))
    variance = float(spectrum.mean() / (steps[0] * steps[1]))
    mean = float(np.mean([m for _, _, m in found]))
    return NoisePower(variance, unit, "", spectrum, frequency, radial, mean, len(found), steps)


def _regions(
    flat: Array, mask: NDArray[np.bool_] | None, roi: int
) -> Iterator[tuple[tuple[int, int, int], Floats, float]]:
    """Corner, detrended values and mean of each region that counts."""
    planes = flat.reshape(-1, *flat.shape[-2:])
    masks = None if mask is None else mask.reshape(planes.shape)
    y, x = (a.ravel() / roi for a in np.mgrid[:roi, :roi])
    basis, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1))
    for i, plane in enumerate(planes):
        for top in range(0, plane.shape[0] - roi + 1, roi // 2):
            for left in range(0, plane.shape[1] - roi + 1, roi // 2):
                window = (slice(top, top + roi), slice(left, left + roi))
                values = np.asarray(plane[window], np.float64).ravel()
                if not np.isfinite(values).all() or (masks is not None and not masks[i][window].all()):
                    continue
                yield (i, top, left), (values - basis @ (basis.T @ values)).reshape(roi, roi), float(values.mean())
