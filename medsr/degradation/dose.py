"""Low-dose simulation of linear X-ray images, with the correlated quantum noise of the detector."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["noise_kernel", "noise_power_spectrum", "simulate_low_dose"]

Array = NDArray[np.float64]


def simulate_low_dose(
    stored: Tensor,
    generator: torch.Generator,
    *,
    dose: float,
    gain: float | Tensor,
    read_noise: float = 0.0,
    offset: float = 0.0,
    kernel: Array | None = None,
) -> Tensor:
    """The image as it would be at a fraction of its dose.

    With s = max(stored - offset, 0) and K * w white noise through the detector's noise kernel,

        y' = dose (stored - offset) + offset + sqrt(gain dose (1 - dose) s + (1 - dose**2) read_noise**2) (K * w)

    so that signal, variance and noise power spectrum become those of the lower dose: the noise the image already has
    shrinks by dose**2 in variance and the term adds the rest.

    Valid on linear images only: "for processing" X-ray whose stored value rises in proportion to the exposure. A "for
    presentation" image (logarithm, edge enhancement) or scanned film must not be used. All noise is taken to be
    correlated like the quantum noise. Detectors with a quadratic variance (computed radiography) need a map as gain.

    Args:
        stored: linear image, (..., y, x), stored counts, float32 or float64; each plane is treated by itself.
        generator: where the noise comes from; the same state gives the same image.
        dose: fraction of the dose, above 0 and at most 1.
        gain: variance of the quantum noise for each stored count of signal (lambda), one number or a map (y, x).
        read_noise: standard deviation of the electronic noise, stored counts.
        offset: stored value without exposure (tau).
        kernel: noise kernel (2D), such as `noise_kernel` makes; used with sum of squares 1; None: white noise.

    Returns:
        Stored counts at the lower dose, same shape, dtype and device; not rounded, not clipped.

    Raises:
        ValueError: a dose outside 0..1, a gain or read noise below 0, an image that is no float or has no plane.

    References:
        Borges et al. 2016, Method for simulating dose reduction in digital mammography using the Anscombe
        transformation, doi:10.1118/1.4948502; Borges et al. 2017, Method for simulating dose reduction in digital
        breast tomosynthesis, IEEE Transactions on Medical Imaging 36 (quantum and electronic noise with crosstalk).
    """
    if not 0 < dose <= 1:
        raise ValueError(f"dose: expected a fraction above 0 and at most 1, found {dose}")
    if not stored.is_floating_point() or stored.ndim < 2:
        raise ValueError(
            f"stored: expected floats (..., y, x), found {stored.dtype} {tuple(stored.shape)}; use .float()"
        )
    lowest = float(gain.min()) if isinstance(gain, Tensor) else gain
    if not (lowest >= 0 and read_noise >= 0):
        raise ValueError(f"expected gain and read_noise of at least 0, found {lowest} and {read_noise}")
    signal = stored.to(torch.float64) - offset
    quantum = gain * (dose * (1 - dose)) * signal.clamp(min=0)
    spread = torch.sqrt(quantum + (1 - dose**2) * read_noise**2)
    noise = _correlated(tuple(stored.shape), generator, np.ones((1, 1)) if kernel is None else kernel)
    return (dose * signal + offset + spread * noise.to(stored.device)).to(stored.dtype)


def _correlated(shape: tuple[int, ...], generator: torch.Generator, kernel: Array) -> Tensor:
    """Standard normal noise (float64) filtered by `kernel` scaled to a sum of squares of 1, free of border effects."""
    k = np.asarray(kernel, np.float64)
    if k.ndim != 2 or not np.isfinite(k).all() or not k.any():
        raise ValueError(f"kernel: expected a 2D array of finite weights, not all zero; found shape {k.shape}")
    white_shape = (*shape[:-2], shape[-2] + k.shape[0] - 1, shape[-1] + k.shape[1] - 1)
    white = torch.randn(white_shape, generator=generator, dtype=torch.float64, device=generator.device)
    if k.size == 1:
        return white
    weights = torch.from_numpy(k / math.sqrt((k**2).sum())).to(white.device)
    size = white_shape[-2:]
    noise: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * torch.fft.rfft2(weights, s=size), s=size)
    return noise[..., k.shape[0] - 1 :, k.shape[1] - 1 :]


def noise_power_spectrum(flat: Array, *, roi: int = 128) -> Array:
    """The noise power spectrum of flat-field exposures.

    Regions of `roi` x `roi` samples overlapping by half; from each a second-order polynomial surface is subtracted, as
    IEC 62220-1-2 does with regions of 256.

    Args:
        flat: one or several linear flat fields, (..., y, x), stored counts.
        roi: side of a region in samples.

    Returns:
        (roi, roi), counts squared, in the order of `numpy.fft.fft2` (frequency 0 first); its mean is the variance.

    Raises:
        ValueError: the flat field is smaller than one region.
    """
    planes = np.asarray(flat, np.float64)
    if planes.ndim < 2 or min(planes.shape[-2:]) < roi:
        raise ValueError(f"flat: expected at least {roi} x {roi} samples, found {planes.shape}; give a smaller roi")
    planes = planes.reshape(-1, *planes.shape[-2:])
    y, x = (a.ravel() / roi for a in np.mgrid[:roi, :roi])
    basis, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1))
    total, count = np.zeros((roi, roi)), 0
    for region in _regions(planes, roi):
        values = region.ravel() - basis @ (basis.T @ region.ravel())
        total += np.abs(np.fft.fft2(values.reshape(roi, roi))) ** 2
        count += 1
    return np.asarray(total / (count * roi**2), np.float64)


def _regions(planes: Array, roi: int) -> Iterator[Array]:
    for plane in planes:
        for top in range(0, plane.shape[0] - roi + 1, roi // 2):
            for left in range(0, plane.shape[1] - roi + 1, roi // 2):
                yield plane[top : top + roi, left : left + roi]


def noise_kernel(spectrum: Array, *, reach: int = 8) -> Array:
    """The symmetric kernel that gives white noise the shape of a noise power spectrum.

    Args:
        spectrum: as `noise_power_spectrum` returns it; only its shape matters. The lowest frequencies, which detrending
            empties, are taken from their neighbors.
        reach: samples on each side of the center that are kept.

    Returns:
        (2 reach + 1, 2 reach + 1), sum of squares 1.

    Raises:
        ValueError: no square spectrum, negative power, or a region too small for `reach`.
    """
    power = np.array(spectrum, np.float64)
    if power.ndim != 2 or power.shape[0] != power.shape[1] or power.shape[0] <= 2 * reach or not (power >= 0).all():
        raise ValueError(
            f"spectrum: expected a square array of powers with more than {2 * reach} samples a side, "
            f"found shape {power.shape}; measure it in larger regions or give a smaller reach"
        )
    frequency = np.fft.fftfreq(power.shape[0], 1 / power.shape[0])
    radius = np.hypot(frequency[:, None], frequency[None, :])
    power[radius < 2] = power[(radius >= 2) & (radius < 4)].mean()
    spread = np.fft.fftshift(np.fft.ifft2(np.sqrt(power)).real)
    middle = power.shape[0] // 2
    kept = spread[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    return np.asarray(kept / math.sqrt((kept**2).sum()), np.float64)
