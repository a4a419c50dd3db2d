"""psnr, ssim, nrmse, consistency, Fourier ring correlation: functions of two arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from medsr.frc import FourierRings, Resolution, RingCurve, frc_curve, frc_resolution, frc_um

__all__ = [
    "Agreement",
    "FourierRings",
    "Resolution",
    "RingCurve",
    "agreement",
    "consistency_db",
    "foreground_mask",
    "foreground_threshold",
    "frc_curve",
    "frc_resolution",
    "frc_um",
    "nrmse",
    "psnr_db",
    "ssim",
]

Array = NDArray[Any]
Mask = NDArray[np.bool_]

SIGMA = 1.5
"""Width of the SSIM window in samples; with `RADIUS` the 11 taps of Wang et al."""
RADIUS = 5
K1, K2 = 0.01, 0.03
_NO_WINDOW: tuple[Array, Mask] = (np.zeros(0), np.zeros(0, bool))
BAND = 2**22
"""Samples computed at a time: temporaries stay near 300 MB however large the arrays are."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over samples and windows that two arrays have in common; those of several planes add up.

    Attributes:
        squared, samples: sum of squared differences and number of samples.
        similarity, windows: sum of the SSIM map and number of its windows.
    """

    squared: float = 0.0
    samples: int = 0
    similarity: float = 0.0
    windows: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.squared + other.squared,
            self.samples + other.samples,
            self.similarity + other.similarity,
            self.windows + other.windows,
        )

    def psnr_db(self, data_range: float) -> float:
        """10 log10(data_range² / mean squared error), decibels; inf where the arrays are equal, nan without samples."""
        if not self.samples:
            return math.nan
        mean = self.squared / self.samples
        return 10 * math.log10(_positive(data_range) ** 2 / mean) if mean > 0 else math.inf

    def nrmse(self, data_range: float) -> float:
        """Root mean squared error divided by `data_range`; nan without samples."""
        return math.sqrt(self.squared / self.samples) / _positive(data_range) if self.samples else math.nan

    @property
    def ssim(self) -> float:
        """Mean of the SSIM map; nan where no window fits."""
        return self.similarity / self.windows if self.windows else math.nan


def agreement(
    estimate: Array,
    truth: Array,
    *,
    data_range: float,
    mask: Mask | None = None,
    dims: int = 2,
    similarity: bool = True,
) -> tuple[Agreement, Agreement]:
    """Errors and similarity over all samples, and over those of `mask`, in one pass of bounded memory.

    Samples where either array is NaN or infinite are left out, and so is every window that holds one.

    Args:
        estimate, truth: same shape, same units, any dtype.
        data_range: the distance of black and white in these units.
        mask: True where the second result is taken; a window belongs to it by its center. None: everywhere.
        dims: trailing axes an SSIM window extends over: 2 (planes of a stack are averaged) or 3.
        similarity: False leaves SSIM out.

    Raises:
        ValueError: the shapes differ, or `data_range` is not above 0.
    """
    _positive(data_range)
    if estimate.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        found = [array.shape for array in (estimate, truth, mask) if array is not None]
        raise ValueError(f"expected arrays of one shape, found {' and '.join(map(str, found))}; crop or resample first")
    if estimate.ndim < dims:
        raise ValueError(f"expected at least {dims} axes, found shape {estimate.shape}")
    whole, inside = Agreement(), Agreement()
    for band, core in _bands(truth.shape, dims):
        first, second = np.asarray(estimate[band], np.float64), np.asarray(truth[band], np.float64)
        known = np.isfinite(first) & np.isfinite(second)
        first, second = np.where(known, first, 0.0), np.where(known, second, 0.0)
        squares = np.square(first[core] - second[core])
        chosen = None if mask is None else mask[band]
        similar, fits = _similarity(first, second, known, data_range) if similarity else _NO_WINDOW
        whole += _summed(squares, known[core], similar, fits)
        if chosen is not None:
            inner = tuple(slice(RADIUS, n - RADIUS) for n in chosen.shape)
            centers = chosen[inner] if fits.size else fits
            inside += _summed(squares, known[core] & chosen[core], similar, fits & centers)
    return whole, whole if mask is None else inside


def psnr_db(estimate: Array, truth: Array, *, data_range: float, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio in decibels: 10 log10(data_range² / mean squared error).

    Arrays of one shape (2D, 3D or more) in the same units; NaN is left out. `data_range` is always the caller's: the
    same 12-bit scan gives 24.1 dB more for 65,535 than for 4,095. Equal arrays give inf.

    Raises:
        ValueError: the shapes differ, or `data_range` is not above 0.
    """
    flat = _flat(estimate, truth, mask)
    return agreement(flat[0], flat[1], data_range=data_range, mask=flat[2], similarity=False)[1].psnr_db(data_range)


def nrmse(estimate: Array, truth: Array, *, data_range: float, mask: Mask | None = None) -> float:
    """Root mean squared error divided by `data_range` (0 is perfect); arrays and errors as in `psnr_db`."""
    flat = _flat(estimate, truth, mask)
    return agreement(flat[0], flat[1], data_range=data_range, mask=flat[2], similarity=False)[1].nrmse(data_range)


def ssim(estimate: Array, truth: Array, *, data_range: float, mask: Mask | None = None, dims: int = 2) -> float:
    """Mean structural similarity: Gaussian window of 11 samples, sigma 1.5, K1 0.01, K2 0.03.

    Only windows that lie in the array and hold no NaN count; nan where none does.

    Args:
        estimate, truth: same shape and units; 2D, 3D or more.
        data_range: the distance of black and white in these units.
        mask: True at the centers of the windows that count.
        dims: 2: windows in the last two axes, planes averaged; 3: windows in the last three.

    Raises:
        ValueError: the shapes differ, or `data_range` is not above 0.

    References:
        Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli: Image quality assessment, 2004,
        doi:10.1109/TIP.2003.819861.
    """
    return agreement(estimate, truth, data_range=data_range, mask=mask, dims=dims)[1].ssim


def consistency_db(degraded: Array, low: Array, *, data_range: float) -> float:
    """PSNR in decibels of an estimate that was degraded again against the coarse scan it came from.

    High: the estimate invents nothing that the measurement contradicts. Arrays and errors as in `psnr_db`.
    """
    return psnr_db(degraded, low, data_range=data_range)


def foreground_threshold(values: Array) -> float:
    """The value that parts background from tissue or signal: Otsu's threshold of the square roots of `values`.

    The root makes room for dim tissue beside bright spots, and counts of photons equally noisy. Values (any shape,
    bright is foreground, best smoothed) are clipped to their 0.1 to 99.9 percentiles. A constant gives minus
    infinity: it has no background.

    Raises:
        ValueError: no value is finite.

    References:
        N. Otsu: A threshold selection method from gray-level histograms, 1979, doi:10.1109/TSMC.1979.4310076.
    """
    finite = np.asarray(values, np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    finite = finite[:: max(1, finite.size // 2**20)]
    if not finite.size:
        raise ValueError("foreground: expected at least one finite value, found none (all NaN or infinite)")
    low, high = np.percentile(finite, (0.1, 99.9))
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return -math.inf
    roots = np.sqrt(np.clip((finite - low) / (high - low), 0, 1))
    return float(low + (high - low) * threshold_otsu(roots, nbins=512) ** 2)


def foreground_mask(array: Array, *, threshold: float | None = None, smoothing: float = 2.0) -> Mask:
    """Where tissue or signal is: the smoothed array above a threshold; bright is foreground.

    Args:
        array: 2D plane or 3D stack (smoothed plane by plane); NaN is background and does not spread.
        threshold: in the units of `array`, such as one `foreground_threshold` of a whole stack; None: of this array.
        smoothing: standard deviation of the Gaussian in samples.

    Returns:
        A mask of the array's shape that is never empty: where nothing exceeds the threshold, all finite samples.

    Raises:
        ValueError: no value is finite.
    """
    smooth = smoothed(array, smoothing)
    limit = foreground_threshold(smooth) if threshold is None else threshold
    known = np.isfinite(array)
    mask = (smooth > limit) & known
    if not known.any():
        raise ValueError("foreground: expected at least one finite value, found none (all NaN or infinite)")
    return np.asarray(mask if mask.any() else known)


def smoothed(array: Array, smoothing: float) -> NDArray[np.float32]:
    """The planes of `array` under a Gaussian, float32; holes are passed over, and NaN where nothing is near."""
    sigma = (0.0,) * (array.ndim - 2) + (smoothing,) * 2
    value = np.asarray(array, np.float32)
    known = np.isfinite(value)
    if known.all():
        return np.asarray(ndimage.gaussian_filter(value, sigma, mode="nearest"), np.float32)
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(known, value, np.float32(0)), sigma, mode="nearest")
    near = weight > 1e-3
    return np.asarray(np.where(near, total / np.where(near, weight, 1), np.nan), np.float32)


def _positive(data_range: float) -> float:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range: expected a finite value above 0 (white minus black), found {data_range}")
    return data_range


def _flat(estimate: Array, truth: Array, mask: Mask | None) -> tuple[Array, Array, Mask | None]:
    """Arrays of any number of axes as two-dimensional ones where they have fewer."""
    if truth.ndim >= 2 or estimate.shape != truth.shape:
        return estimate, truth, mask
    return estimate[None], truth[None], None if mask is None else mask[None]


def _bands(shape: Sequence[int], dims: int) -> Iterator[tuple[tuple[Any, ...], tuple[slice, ...]]]:
    """Regions of about BAND samples with the context of an SSIM window, and where their own samples lie in them."""
    lead, frame = shape[: len(shape) - dims], shape[len(shape) - dims :]
    size = list(frame)
    for axis in range(dims):
        rest = math.prod(size) // max(1, size[axis])
        size[axis] = min(size[axis], max(64 if dims == 2 else 24, BAND // max(1, rest)))
    starts = [range(0, n, step) for n, step in zip(frame, size, strict=True)]
    for index in product(*map(range, lead)):
        for corner in product(*starts):
            band, core = [], []
            for start, step, n in zip(corner, size, frame, strict=True):
                stop, first = min(start + step, n), max(0, start - RADIUS)
                band.append(slice(first, min(n, stop + RADIUS)))
                core.append(slice(start - first, stop - first))
            yield (*index, *band), tuple(core)


def _similarity(first: Array, second: Array, known: Mask, data_range: float) -> tuple[Array, Mask]:
    """The SSIM map at all centers whose window lies inside, and True where that window holds no hole."""
    inner = tuple(slice(RADIUS, n - RADIUS) for n in first.shape)
    if min(first.shape) <= 2 * RADIUS:
        return _NO_WINDOW

    def mean(x: Array) -> Array:
        return np.asarray(ndimage.gaussian_filter(x, SIGMA, radius=RADIUS)[inner])

    # Centered first: variances as differences of squares lose digits on a high pedestal.
    shift = second[known].mean() if known.any() else 0.0
    one, two = np.where(known, first - shift, 0.0), np.where(known, second - shift, 0.0)
    mean_1, mean_2 = mean(one), mean(two)
    var_1, var_2 = mean(one * one) - mean_1**2, mean(two * two) - mean_2**2
    covariance = mean(one * two) - mean_1 * mean_2
    mean_1, mean_2 = mean_1 + shift, mean_2 + shift
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # Wang et al. 2004, equation 13
    similar = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    similar /= (mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2)
    if known.all():
        return similar, np.ones(similar.shape, bool)
    return similar, np.asarray(ndimage.minimum_filter(known, 2 * RADIUS + 1)[inner])


def _summed(squares: Array, known: Mask, similar: Array, fits: Mask) -> Agreement:
    return Agreement(float(squares[known].sum()), int(known.sum()), float(similar[fits].sum()), int(fits.sum()))
