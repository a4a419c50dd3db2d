"""Sharpness and noise of X-ray images: the transfer function from a slanted edge, the noise power of flat regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

__all__ = ["EdgeSharpness", "NoisePower", "noise_power", "slanted_edge_mtf"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
EMPTY: Floats = np.zeros(0)

OVERSAMPLING = 4
"""Bins of the edge spread function for each sample."""
STEEPEST = 40.0
"""Degrees from the axis up to which an edge is taken."""
FLATTEST = 1.0
"""Degrees below which rows do not fall between each other's samples."""
LEAST_CONTRAST = 5.0
"""Step of an edge over the noise beside it."""
STRAIGHTNESS = 0.5
"""Samples by which the rows' edges may depart from a line (median)."""
HANNED = 0.5
"""Share of the line spread function that is faded at its ends."""
LEAST_ROWS = 16


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
    frequency: Floats = EMPTY
    mtf: Floats = EMPTY
    angle: float = math.nan
    position: Floats = EMPTY
    spread: Floats = EMPTY


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
    spectrum: Floats = EMPTY
    frequency: Floats = EMPTY
    radial: Floats = EMPTY
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
    unit, steps = _units(spacing_um)
    values = np.asarray(region, np.float64)
    known = np.isfinite(values)
    if min(values.shape) < LEAST_ROWS or known.mean() < 0.5:
        return EdgeSharpness(math.nan, unit, f"expected at least {LEAST_ROWS} x {LEAST_ROWS} samples, half without NaN")
    across, down = (np.nanmean(np.abs(np.diff(np.where(known, values, np.nan).mean(a)))) for a in (0, 1))
    level = [np.ptp(_sides(values, known, axis)) for axis in (0, 1)]
    if level[0] > level[1]:  # the edge lies along x: turn, so that it crosses rows
        values, known, steps = values.T, known.T, (steps[1], steps[0])
    del across, down
    line = _edge_line(values, known)
    if isinstance(line, str):
        return EdgeSharpness(math.nan, unit, line)
    return _measure(values, known, line, steps, unit)
